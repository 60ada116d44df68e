/**
 * PCI config space of stock QEMU's vhost-user-test-device-pci: modern virtio registers in BAR 2, the shared memory
 * region in BAR 4, one MSI-X vector in BAR 1.
 */
import { PCI_VENDOR_ID, PciCap, PciCap64, PciCapType, PciNotifyCap } from "../../shared/spec/virtio.js";

/** Where things are in BAR 2. */
export const Layout = { COMMON: 0, ISR: 0x1000, DEVICE: 0x2000, NOTIFY: 0x3000, SIZE: 0x4000 } as const;
export const NOTIFY_MULTIPLIER = 4;
export const REGISTER_BAR = 2;
export const WINDOW_BAR = 4;
export const MSIX_BAR = 1;
const VENDOR_CAP = 0x09;
const MSIX_CAP = 0x11;

export function makeConfigSpace(pciDeviceId: number, configSize: number, windowSize: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(256);
  const data = new DataView(bytes.buffer);
  data.setUint16(0x00, PCI_VENDOR_ID, true);
  data.setUint16(0x02, pciDeviceId, true);
  // Memory decoding is on; the capabilities list is there.
  data.setUint16(0x04, 0x0002, true);
  data.setUint16(0x06, 0x0010, true);
  data.setUint32(0x08, 0xff000001, true);
  data.setUint32(0x10 + 4 * MSIX_BAR, 0xfe000000, true);
  data.setUint32(0x10 + 4 * REGISTER_BAR, 0xfd00000c, true);
  data.setUint32(0x10 + 4 * WINDOW_BAR, 0x0000000c, true);
  data.setUint32(0x10 + 4 * WINDOW_BAR + 4, 0x40, true);
  data.setUint16(0x2c, PCI_VENDOR_ID, true);
  data.setUint16(0x2e, 0x1100, true);

  // QEMU puts each new capability at the head of the list.
  let end = 0x40;
  const add = (capVndr: number, capability: Uint8Array) => {
    bytes.set(capability, end);
    bytes[end] = capVndr;
    bytes[end + 1] = bytes[0x34];
    bytes[0x34] = end;
    end += (capability.length + 3) & ~3;
  };
  const cap = (cfgType: number, offset: number, length: number, capLen: number = PciCap.size) =>
    PciCap.encode({ capLen, cfgType, bar: REGISTER_BAR, offset, length });
  const longer = (start: Uint8Array, size: number) => {
    const all = new Uint8Array(size);
    all.set(start);
    return all;
  };
  add(VENDOR_CAP, cap(PciCapType.COMMON, Layout.COMMON, 0x1000));
  add(VENDOR_CAP, cap(PciCapType.ISR, Layout.ISR, 0x1000));
  add(VENDOR_CAP, cap(PciCapType.DEVICE, Layout.DEVICE, Math.max(0x1000, configSize)));
  const notify = longer(cap(PciCapType.NOTIFY, Layout.NOTIFY, 0x1000, PciNotifyCap.size), PciNotifyCap.size);
  PciNotifyCap.view(new DataView(notify.buffer)).notifyOffMultiplier = NOTIFY_MULTIPLIER;
  add(VENDOR_CAP, notify);
  add(VENDOR_CAP, longer(PciCap.encode({ capLen: 20, cfgType: PciCapType.PCI }), 20));
  const shared = PciCap64.encode({ lengthHigh: Math.floor(windowSize / 2 ** 32) });
  const low = { capLen: PciCap64.size, cfgType: PciCapType.SHARED_MEMORY, bar: WINDOW_BAR, id: 0 };
  shared.set(PciCap.encode({ ...low, length: windowSize % 2 ** 32 }));
  add(VENDOR_CAP, shared);
  const msix = new Uint8Array(12);
  const msixData = new DataView(msix.buffer);
  msixData.setUint32(4, MSIX_BAR, true);
  msixData.setUint32(8, 0x800 | MSIX_BAR, true);
  add(MSIX_CAP, msix);
  return bytes;
}
