/**
 * What is in PCI configuration space, and whether it fits the regions and interrupts. Only what a driver or a VMM would
 * stumble over; sections are those of the PCI Local Bus Specification 3.0.
 */
import { inBounds, isPowerOfTwo } from "../../../shared/bits.js";
import {
  BarBits,
  Capability,
  CONFIG_SIZE,
  EXTENDED_CONFIG_SIZE,
  HEADER_SIZE,
  Header,
  Msix,
  NUM_BARS,
  StatusBits,
} from "../../../shared/spec/pci.js";
import { Command, Irq, Region, RegionInfoFlags } from "../../../shared/spec/vfio-user.js";
import { topic } from "../check.js";
import type { Device } from "../device.js";
import { expectEqual, expectThat, Failure, Skip, walkList } from "../expect.js";
import { encodeAccess } from "../messages.js";
import type { CheckerSession } from "../session.js";

const PCI = (section: string) => `PCI 3.0, ${section}`;
const hex = (value: number) => `0x${value.toString(16)}`;
const ALL_ONES = 0xffff_ffff;
const HEADER_TYPE_MASK = 0x7f;
const MSI_CAPABILITY = 0x05;
const MSI_SIZE = 10;
const EXTENDED_CAPABILITIES = 0x100;
const PENDING_BITS = 64;

/** The first 256 bytes, or as many as there are. */
function readHeader(session: CheckerSession, device: Device): Promise<DataView> {
  return device.readConfig(session, 0, Math.min(device.config().size, CONFIG_SIZE));
}

interface PciCapability {
  readonly id: number;
  readonly at: number;
}

/** @throws Failure when the list leaves configuration space or does not end */
function capabilities(data: DataView): PciCapability[] {
  if (!(data.getUint16(Header.STATUS, true) & StatusBits.CAPABILITIES_LIST)) return [];
  const bounds = { name: "a capability", from: HEADER_SIZE, to: data.byteLength, headerSize: 2, alignment: 4 };
  const pointer = (at: number) => data.getUint8(at) & 0xfc;
  const found = walkList(bounds, pointer(Header.CAPABILITIES), (at) => pointer(at + 1));
  return found.map((at) => ({ id: data.getUint8(at), at }));
}

/** @throws Skip when the device does not have it */
function capability(data: DataView, id: number, size: number, name: string): number {
  const found = capabilities(data).find((each) => each.id === id);
  if (found === undefined) throw new Skip(`the device has no ${name} capability`);
  expectThat(found.at + size <= data.byteLength, `the ${name} capability within configuration space`, hex(found.at));
  return found.at;
}

/** The BARs that are the upper half of a 64-bit one in front of them. */
function upperHalves(data: DataView): Set<number> {
  const upper = new Set<number>();
  for (let bar = 0; bar < NUM_BARS - 1; bar++) {
    const value = data.getUint32(Header.BAR0 + 4 * bar, true);
    const is64 = (value & BarBits.IO) === 0 && (value & BarBits.TYPE_MASK) === BarBits.TYPE_64_BIT;
    if (!upper.has(bar) && is64) upper.add(bar + 1);
  }
  return upper;
}

export const configSpace = topic({ section: PCI("6.7"), prefix: "config-" }, [
  {
    id: "region",
    section: PCI("6.1"),
    title: "Configuration space has 256 or 4096 bytes and can be read and written",
    run: async (context) => {
      const { size, flags } = context.device().config();
      expectThat(size === CONFIG_SIZE || size === EXTENDED_CONFIG_SIZE, "256 or 4096 bytes", size);
      const both = RegionInfoFlags.READ | RegionInfoFlags.WRITE;
      expectThat((flags & both) === both, "the flags READ and WRITE", `flags ${flags}`);
      return `${size} bytes`;
    },
  },
  {
    id: "header",
    section: PCI("6.2.1"),
    title: "There is a device: a vendor id other than 0xffff and a type 0 header",
    described: async (session, device) => {
      const data = await readHeader(session, device);
      const vendor = data.getUint16(Header.VENDOR_ID, true);
      expectThat(vendor !== 0xffff, "a vendor id", hex(vendor));
      expectEqual("the header type", data.getUint8(Header.HEADER_TYPE) & HEADER_TYPE_MASK, 0);
      return `${vendor.toString(16)}:${data.getUint16(Header.DEVICE_ID, true).toString(16)}`;
    },
  },
  {
    id: "intx",
    section: PCI("6.2.4"),
    title: "The interrupt pin is 0 to 4, and not 0 when there is an INTx",
    described: async (session, device) => {
      const pin = (await readHeader(session, device)).getUint8(Header.INTERRUPT_PIN);
      expectThat(pin <= 4, "an interrupt pin of at most 4", pin);
      expectThat(device.irqCount(Irq.INTX) === 0 || pin !== 0, "an interrupt pin, as there is an INTx", pin);
      return pin === 0 ? "no pin" : `INT${"ABCD"[pin - 1]}`;
    },
  },
  {
    id: "bar-sizes",
    section: PCI("6.2.5.1"),
    title: "Each BAR's region has a size that a BAR can have, a power of two",
    described: async (session, device) => {
      const data = await readHeader(session, device);
      const upper = upperHalves(data);
      let found = 0;
      for (let bar = 0; bar < NUM_BARS; bar++) {
        const size = device.regionSize(bar);
        if (size === 0) continue;
        found++;
        expectThat(!upper.has(bar), `no region for BAR ${bar}, the upper half of BAR ${bar - 1}`, `${size} bytes`);
        const isIo = (data.getUint32(Header.BAR0 + 4 * bar, true) & BarBits.IO) !== 0;
        const least = isIo ? 4 : 16;
        const fits = isPowerOfTwo(size) && size >= least;
        expectThat(fits, `region ${bar}: a power of two, at least ${least}`, `${size} bytes`);
      }
      if (found === 0) throw new Skip("the device has no BARs");
      return `${found} BARs`;
    },
  },
  {
    id: "bar-probe",
    section: PCI("6.2.5.1"),
    title: "All ones written to a BAR read back as its region's size",
    destructive: true,
    described: async (session, device) => {
      device.config();
      const bar = [0, 1, 2, 3, 4, 5].find((index) => device.regionSize(index) > 0);
      if (bar === undefined) throw new Skip("the device has no BARs");
      const offset = Header.BAR0 + 4 * bar;
      const read = async () => (await device.readConfig(session, offset, 4)).getUint32(0, true);
      const write = (value: number) => {
        const bytes = new Uint8Array(Uint32Array.of(value).buffer);
        const body = encodeAccess({ region: Region.CONFIG, offset, count: 4, bytes });
        return session.success(Command.REGION_WRITE, body);
      };
      const before = await read();
      await write(ALL_ONES);
      const mask = await read();
      await write(before);
      const flags = mask & BarBits.IO ? 3 : BarBits.MEMORY_FLAGS_MASK;
      const size = device.regionSize(bar);
      const came = (~(mask & ~flags) >>> 0) + 1;
      expectThat(came === size || size > ALL_ONES, `BAR ${bar} to say ${hex(size)}`, hex(came));
      return `BAR ${bar}: ${hex(size)}`;
    },
  },
  {
    id: "capabilities",
    title: "The capability list stays within configuration space and ends",
    described: async (session, device) => {
      const found = capabilities(await readHeader(session, device));
      if (found.length === 0) throw new Skip("the device has no capabilities");
      return found.map(({ id }) => hex(id)).join(", ");
    },
  },
  {
    id: "extended-capabilities",
    section: "PCI Express 3.0, 7.9",
    title: "The extended capability list stays within configuration space and ends",
    described: async (session, device) => {
      const [from, to] = [EXTENDED_CAPABILITIES, EXTENDED_CONFIG_SIZE];
      if (device.config().size < to) throw new Skip("there is no extended configuration space");
      const data = await device.readConfig(session, 0, to);
      const header = (at: number) => data.getUint32(at, true);
      const isThere = (at: number) => header(at) !== 0 && header(at) !== ALL_ONES;
      const bounds = { name: "an extended capability", from, to, headerSize: 4, alignment: 4 };
      const found = walkList(bounds, from, (at) => (isThere(at) ? (header(at) >>> 20) & 0xffc : 0)).filter(isThere);
      if (found.length === 0) throw new Skip("the device has no extended capabilities");
      return `${found.length}`;
    },
  },
  {
    id: "msix",
    section: PCI("6.8.2"),
    title: "MSI-X: table and pending bits lie in a region, and there are as many vectors as interrupts",
    described: async (session, device) => {
      const data = await readHeader(session, device);
      const at = capability(data, Capability.MSIX, Msix.SIZE, "MSI-X");
      const vectors = (data.getUint16(at + Msix.CONTROL, true) & Msix.CONTROL_SIZE_MASK) + 1;
      const expectInBar = (name: string, from: number, bytes: number) => {
        const word = data.getUint32(at + from, true);
        const bar = word & Msix.BAR_INDEX_MASK;
        const offset = (word & ~Msix.BAR_INDEX_MASK) >>> 0;
        const size = bar < NUM_BARS ? device.regionSize(bar) : 0;
        const came = `${bytes} bytes at ${hex(offset)} of BAR ${bar} of ${size} bytes`;
        expectThat(inBounds(offset, bytes, size), `the ${name} within its BAR`, came);
      };
      expectInBar("table", Msix.TABLE, vectors * Msix.TABLE_ENTRY_SIZE);
      expectInBar("pending bits", Msix.PENDING, Math.ceil(vectors / PENDING_BITS) * 8);
      expectEqual("the vectors of interrupt type 2:", device.irqCount(Irq.MSIX), vectors);
      return `${vectors} vectors`;
    },
  },
  {
    id: "msi",
    section: PCI("6.8.1"),
    title: "MSI: the capability can do as many vectors as there are interrupts",
    described: async (session, device) => {
      const data = await readHeader(session, device);
      const at = capability(data, MSI_CAPABILITY, MSI_SIZE, "MSI");
      const capable = 1 << ((data.getUint16(at + 2, true) >> 1) & 7);
      const count = device.irqCount(Irq.MSI);
      if (count > capable) throw new Failure(`at most ${capable} vectors of interrupt type 1`, `${count}`);
      return `${count} of ${capable} vectors`;
    },
  },
]);
