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
import { encodeAccess } from "../bodies.js";
import type { Check } from "../check.js";
import type { Context } from "../context.js";
import type { Device } from "../device.js";
import { expectEqual, expectSuccess, expectThat } from "../expect.js";
import { Failure, Skip } from "../verdict.js";

const PCI = (section: string) => `PCI 3.0, ${section}`;
const hex = (value: number) => `0x${value.toString(16)}`;
const ALL_ONES = 0xffff_ffff;
const HEADER_TYPE_MASK = 0x7f;
const MSI_CAPABILITY = 0x05;
const EXTENDED_CAPABILITIES = 0x100;
const PENDING_BITS = 64;

/** The first 256 bytes, or as many as there are. */
async function config(context: Context): Promise<{ device: Device; data: DataView }> {
  const device = context.device();
  const session = await context.connect();
  const { size } = device.config();
  const data = await device.readConfig(session, 0, Math.min(size, CONFIG_SIZE));
  session.close();
  return { device, data };
}

interface PciCapability {
  readonly id: number;
  readonly at: number;
}

/** @throws Failure when the list leaves configuration space or does not end */
function capabilities(data: DataView): PciCapability[] {
  if (!(data.getUint16(Header.STATUS, true) & StatusBits.CAPABILITIES_LIST)) return [];
  const found: PciCapability[] = [];
  let at = data.getUint8(Header.CAPABILITIES) & 0xfc;
  while (at !== 0) {
    expectThat(at >= HEADER_SIZE && at + 2 <= data.byteLength, "capabilities behind the header", hex(at));
    expectThat(
      !found.some((other) => other.at === at),
      "a capability list that ends",
      `one that comes back to ${hex(at)}`,
    );
    found.push({ id: data.getUint8(at), at });
    at = data.getUint8(at + 1) & 0xfc;
  }
  return found;
}

/** @throws Skip when the device does not have it */
function capability(data: DataView, id: number, size: number, name: string): number {
  const found = capabilities(data).find((each) => each.id === id);
  if (found === undefined) throw new Skip(`the device has no ${name} capability`);
  expectThat(found.at + size <= data.byteLength, `the ${name} capability within configuration space`, hex(found.at));
  return found.at;
}

function regionSize(device: Device, index: number): number {
  return device.regions.find((region) => region.index === index)?.size ?? 0;
}

const header: Check[] = [
  {
    id: "config-region",
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
    id: "config-header",
    section: PCI("6.2.1"),
    title: "There is a device: a vendor id other than 0xffff and a type 0 header",
    run: async (context) => {
      const { data } = await config(context);
      const vendor = data.getUint16(Header.VENDOR_ID, true);
      expectThat(vendor !== 0xffff, "a vendor id", hex(vendor));
      const type = data.getUint8(Header.HEADER_TYPE) & HEADER_TYPE_MASK;
      expectEqual("the header type", type, 0);
      return `${vendor.toString(16)}:${data.getUint16(Header.DEVICE_ID, true).toString(16)}`;
    },
  },
  {
    id: "config-intx",
    section: PCI("6.2.4"),
    title: "The interrupt pin is 0 to 4, and not 0 when there is an INTx",
    run: async (context) => {
      const { device, data } = await config(context);
      const pin = data.getUint8(Header.INTERRUPT_PIN);
      expectThat(pin <= 4, "an interrupt pin of at most 4", pin);
      const intx = device.irqs.find(({ index }) => index === Irq.INTX)?.count ?? 0;
      expectThat(intx === 0 || pin !== 0, "an interrupt pin, as there is an INTx", pin);
      return pin === 0 ? "no pin" : `INT${"ABCD"[pin - 1]}`;
    },
  },
];

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

const bars: Check[] = [
  {
    id: "config-bar-sizes",
    section: PCI("6.2.5.1"),
    title: "Each BAR's region has a size that a BAR can have, a power of two",
    run: async (context) => {
      const { device, data } = await config(context);
      const upper = upperHalves(data);
      let found = 0;
      for (let bar = 0; bar < NUM_BARS; bar++) {
        const size = regionSize(device, bar);
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
    id: "config-bar-probe",
    section: PCI("6.2.5.1"),
    title: "All ones written to a BAR read back as its region's size",
    destructive: true,
    run: async (context) => {
      const device = context.device();
      device.config();
      const session = await context.connect();
      const bar = [0, 1, 2, 3, 4, 5].find((index) => regionSize(device, index) > 0);
      if (bar === undefined) throw new Skip("the device has no BARs");
      const offset = Header.BAR0 + 4 * bar;
      const write = async (value: number) => {
        const bytes = new Uint8Array(Uint32Array.of(value).buffer);
        const body = encodeAccess({ region: Region.CONFIG, offset, count: 4, bytes });
        expectSuccess(await session.request(Command.REGION_WRITE, body), Command.REGION_WRITE);
      };
      const before = (await device.readConfig(session, offset, 4)).getUint32(0, true);
      await write(ALL_ONES);
      const mask = (await device.readConfig(session, offset, 4)).getUint32(0, true);
      await write(before);
      const flags = mask & BarBits.IO ? 3 : BarBits.MEMORY_FLAGS_MASK;
      const size = regionSize(device, bar);
      const came = (~(mask & ~flags) >>> 0) + 1;
      expectThat(came === size || size > ALL_ONES, `BAR ${bar} to say ${hex(size)}`, hex(came));
      return `BAR ${bar}: ${hex(size)}`;
    },
  },
];

const lists: Check[] = [
  {
    id: "config-capabilities",
    section: PCI("6.7"),
    title: "The capability list stays within configuration space and ends",
    run: async (context) => {
      const { data } = await config(context);
      const found = capabilities(data);
      if (found.length === 0) throw new Skip("the device has no capabilities");
      return found.map(({ id }) => hex(id)).join(", ");
    },
  },
  {
    id: "config-extended-capabilities",
    section: "PCI Express 3.0, 7.9",
    title: "The extended capability list stays within configuration space and ends",
    run: async (context) => {
      const device = context.device();
      if (device.config().size < EXTENDED_CONFIG_SIZE) throw new Skip("there is no extended configuration space");
      const session = await context.connect();
      const data = await device.readConfig(session, 0, EXTENDED_CONFIG_SIZE);
      const found: number[] = [];
      for (let at = EXTENDED_CAPABILITIES; at !== 0; ) {
        expectThat(at >= EXTENDED_CAPABILITIES, "extended capabilities from 0x100 on", hex(at));
        expectThat(!found.includes(at), "a list that ends", `one that comes back to ${hex(at)}`);
        const word = data.getUint32(at, true);
        if (word === 0 || word === ALL_ONES) break;
        found.push(at);
        at = (word >>> 20) & 0xffc;
      }
      if (found.length === 0) throw new Skip("the device has no extended capabilities");
      return `${found.length}`;
    },
  },
  {
    id: "config-msix",
    section: PCI("6.8.2"),
    title: "MSI-X: table and pending bits lie in a region, and there are as many vectors as interrupts",
    run: async (context) => {
      const { device, data } = await config(context);
      const at = capability(data, Capability.MSIX, Msix.SIZE, "MSI-X");
      const vectors = (data.getUint16(at + Msix.CONTROL, true) & Msix.CONTROL_SIZE_MASK) + 1;
      const place = (name: string, from: number, bytes: number) => {
        const word = data.getUint32(at + from, true);
        const bar = word & Msix.BAR_INDEX_MASK;
        const offset = (word & ~Msix.BAR_INDEX_MASK) >>> 0;
        const size = bar < NUM_BARS ? regionSize(device, bar) : 0;
        const came = `${bytes} bytes at ${hex(offset)} of BAR ${bar} of ${size} bytes`;
        expectThat(inBounds(offset, bytes, size), `the ${name} within its BAR`, came);
      };
      place("table", Msix.TABLE, vectors * Msix.TABLE_ENTRY_SIZE);
      place("pending bits", Msix.PENDING, Math.ceil(vectors / PENDING_BITS) * 8);
      const count = device.irqs.find(({ index }) => index === Irq.MSIX)?.count ?? 0;
      expectEqual("the vectors of interrupt type 2:", count, vectors);
      return `${vectors} vectors`;
    },
  },
  {
    id: "config-msi",
    section: PCI("6.8.1"),
    title: "MSI: the capability can do as many vectors as there are interrupts",
    run: async (context) => {
      const { device, data } = await config(context);
      const at = capability(data, MSI_CAPABILITY, 10, "MSI");
      const capable = 1 << ((data.getUint16(at + 2, true) >> 1) & 7);
      const count = device.irqs.find(({ index }) => index === Irq.MSI)?.count ?? 0;
      if (count > capable) throw new Failure(`at most ${capable} vectors of interrupt type 1`, `${count}`);
      return `${count} of ${capable} vectors`;
    },
  },
];

export const configSpace: readonly Check[] = [...header, ...bars, ...lists];
