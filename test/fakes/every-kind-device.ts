/** A PCI device with every kind of BAR, interrupt, reset and capability that can be declared, and no function. */
import type { Device, DeviceContext, PciIdentity } from "../../guest/device.js";
import { bytesAsRegisters } from "../../guest/pci/registers.js";

const VENDOR_ID = 0xfff4;
const DEVICE_ID = 0x0003;

/**
 * Two kibibytes and a bit more, with the header of an image that no firmware runs (PCI Firmware 3.0, 5.1: code type 1).
 */
export const ROM = romImage(2560);

function romImage(size: number): Uint8Array {
  const image = Uint8Array.from({ length: size }, (_, n) => n * 7);
  const data = new DataView(image.buffer);
  const structure = 0x1c;
  const blocks = size / 512;
  data.setUint16(0, 0xaa55, true);
  data.setUint16(0x18, structure, true);
  image.set(Buffer.from("PCIR"), structure);
  data.setUint16(structure + 0x04, VENDOR_ID, true);
  data.setUint16(structure + 0x06, DEVICE_ID, true);
  data.setUint16(structure + 0x08, 0, true);
  data.setUint16(structure + 0x0a, 0x18, true);
  data.setUint16(structure + 0x10, blocks, true);
  data.setUint8(structure + 0x14, 1);
  data.setUint8(structure + 0x15, 0x80); // the last image
  return image;
}

export class EveryKindDevice implements Device {
  readonly accesses: string[] = [];
  resets = 0;
  context: DeviceContext | undefined;
  readonly identity: PciIdentity = {
    vendorId: VENDOR_ID,
    deviceId: DEVICE_ID,
    subsystemVendorId: 0xfff5,
    subsystemId: 0x0042,
    revisionId: 7,
    classCode: 0xff0000,
    bars: { 0: { size: 0x100, io: true }, 1: { size: 0x1000 }, 2: { size: 0x2000, is64Bit: true, prefetchable: true } },
    rom: ROM,
    intx: true,
    capabilities: {
      pm: { softReset: true },
      pcie: { linkSpeed: 5, linkWidth: 4, maxPayload: 256 },
      msi: { vectors: 4, perVectorMasking: true },
      vendor: [
        {
          size: 12,
          registers: {
            ...bytesAsRegisters(4, Uint8Array.of(1, 2, 3, 4), Uint8Array.of(0, 0xff, 0x0f, 0)),
            resets: { offset: 8, size: 4, onRead: () => this.resets },
          },
        },
      ],
      errorReporting: true,
      serialNumber: "00-11-22-33-44-55-66-77",
      vendorExtended: [
        { id: 0x1234, revision: 3, size: 16, registers: { mailbox: { offset: 8, size: 4, writable: 0xffffffff } } },
      ],
    },
  };

  start(context: DeviceContext): void {
    this.context = context;
  }

  readBar(bar: number, offset: number, size: number): number {
    this.accesses.push(`r${size} ${bar}:${offset}`);
    return 0;
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    this.accesses.push(`w${size} ${bar}:${offset}=${value}`);
  }

  reset(): void {
    this.resets++;
  }

  quiesce(): void {}
  close(): void {}
}

/** For `vfio-user-device run`. */
export default function create(): Device {
  return new EveryKindDevice();
}
