import test from "ava";
import type { PciIdentity } from "../../../guest/device.js";
import { ConfigSpace } from "../../../guest/pci/config-space.js";
import { MsixTable, msixLayout } from "../../../guest/pci/msix.js";
import { Capability, Express, Header, Msix } from "../../../shared/spec/pci.js";

const identity: PciIdentity = {
  vendorId: 0x1b36,
  deviceId: 0x0010,
  revisionId: 2,
  classCode: 0x010802,
  bars: {
    0: { size: 0x4000, is64Bit: true },
    2: { size: 16 },
    4: { size: 8 * 2 ** 30, is64Bit: true, prefetchable: true },
  },
  msix: { vectors: 17, bar: 0, offset: 0x2000 },
};
const msixOff = { vectors: 0, bar: 0, offset: 0 };
const bar = (index: number) => Header.BAR0 + index * 4;

function findCapability(config: ConfigSpace, id: number): number {
  for (let at = config.read(Header.CAPABILITIES, 1), n = 0; at !== 0 && n < 48; at = config.read(at + 1, 1), n++) {
    if (config.read(at, 1) === id) return at;
  }
  throw new Error(`no capability ${id}`);
}

test("the header says who the device is", (t) => {
  const config = new ConfigSpace(identity, () => {});
  t.is(config.size, 4096);
  t.is(config.read(0, 4), 0x00101b36);
  t.is(config.read(8, 4), 0x01080202);
  t.is(config.read(Header.SUBSYSTEM_VENDOR_ID, 4), 0x00101b36);
  t.is(config.read(Header.HEADER_TYPE, 1), 0);
  t.is(config.read(Header.CAPABILITIES, 1), 0x40);
  config.write(0, 4, 0xffffffff);
  t.is(config.read(0, 4), 0x00101b36);
  t.is(config.read(256, 4), 0, "no extended capabilities");
});

test("BARs answer their size, and keep an address", (t) => {
  const config = new ConfigSpace(identity, () => {});
  for (let index = 0; index < 6; index++) config.write(bar(index), 4, 0xffffffff);
  t.deepEqual(
    [0, 1, 2, 3, 4, 5].map((index) => config.read(bar(index), 4)),
    [0xffffc004, 0xffffffff, 0xfffffff0, 0, 0x0000000c, 0xfffffffe],
  );
  config.write(bar(0), 4, 0xfebd1234);
  config.write(bar(1), 4, 0x12);
  t.is(config.read(bar(0), 4), 0xfebd0004);
  t.is(config.read(bar(1), 4), 0x12);
  t.deepEqual([...config.barSizes], [0x4000, 0, 16, 0, 8 * 2 ** 30, 0]);
});

test("every kind of BAR has its type in the low bits, which nobody can write", (t) => {
  const bars = { 0: { size: 256, io: true }, 1: { size: 4, io: true }, 2: { size: 2 ** 31, prefetchable: true } };
  const large = { 4: { size: 2 ** 32, is64Bit: true } };
  const config = new ConfigSpace({ ...identity, bars: { ...bars, ...large }, msix: { ...msixOff } }, () => {});
  const sized = [0xffffff01, 0xfffffffd, 0x80000008, 0, 4, 0xffffffff];
  for (let index = 0; index < 6; index++) {
    config.write(bar(index), 4, 0xffffffff);
    t.is(config.read(bar(index), 4), sized[index]);
    config.write(bar(index), 4, 0);
    t.is(config.read(bar(index), 4), [1, 1, 8, 0, 4, 0][index]);
  }
  t.deepEqual([...config.barSizes], [256, 4, 2 ** 31, 0, 2 ** 32, 0]);
  t.is(config.memoryBars, 0b10100, "writes to I/O BARs are not posted");
  config.write(bar(0) + 1, 1, 0xc0);
  t.is(config.read(bar(0), 4), 0xc001);
  config.write(bar(0) + 2, 4, 0xfffffeb0);
  t.is(config.read(bar(0), 4), 0xfeb0c001, "an unaligned access reaches into two BARs");
  t.is(config.read(bar(1), 4), 0x0000fffd);
  config.write(Header.COMMAND, 2, 0xffff);
  t.is(config.read(Header.COMMAND, 2), 0x0547, "I/O can be enabled where there is some");
});

test("an expansion ROM tells its size and holds its enable bit; behind its bytes it is erased", (t) => {
  const bytes = Uint8Array.from({ length: 3000 }, (_, n) => n);
  const config = new ConfigSpace({ ...identity, rom: bytes }, () => {});
  t.is(config.rom.length, 4096);
  t.deepEqual(config.rom.subarray(0, 3000), bytes);
  t.true(config.rom.subarray(3000).every((byte) => byte === 0xff));
  config.write(Header.EXPANSION_ROM, 4, 0xfffff800);
  t.is(config.read(Header.EXPANSION_ROM, 4), 0xfffff000);
  config.write(Header.EXPANSION_ROM, 4, 0xffffffff);
  t.is(config.read(Header.EXPANSION_ROM, 4), 0xfffff001);
  t.is(new ConfigSpace({ ...identity, rom: new Uint8Array(1) }, () => {}).rom.length, 2048);
  const without = new ConfigSpace(identity, () => {});
  t.is(without.rom.length, 0);
  without.write(Header.EXPANSION_ROM, 4, 0xffffffff);
  t.is(without.read(Header.EXPANSION_ROM, 4), 0);
});

test("accesses beyond the space are refused, whatever their size", (t) => {
  const config = new ConfigSpace(identity, () => {});
  t.is(config.read(4092, 4), 0);
  for (const [offset, size] of [
    [4093, 4],
    [4095, 2],
    [4096, 1],
    [-1, 1],
    [Number.NaN, 1],
  ]) {
    t.throws(() => config.read(offset, size), { instanceOf: RangeError });
    t.throws(() => config.write(offset, size, 0), { instanceOf: RangeError });
  }
});

test("INTx: a pin where the author wants one, or where there is nothing else", (t) => {
  const pinOf = (change: Partial<PciIdentity>) => {
    const config = new ConfigSpace({ ...identity, ...change }, () => {});
    t.is(config.read(Header.INTERRUPT_PIN, 1), config.intxPins);
    return config.intxPins;
  };
  t.is(pinOf({}), 0);
  t.is(pinOf({ intx: true }), 1);
  t.is(pinOf({ msix: msixOff }), 1);
  t.is(pinOf({ msix: msixOff, intx: false }), 0);
  t.is(pinOf({ msix: msixOff, capabilities: { msi: {} } }), 0);
  const config = new ConfigSpace(identity, () => {});
  config.write(Header.INTERRUPT_LINE, 2, 0xff0b);
  t.is(config.read(Header.INTERRUPT_LINE, 2), 0x000b, "the line is the firmware's, the pin is ours");
});

test("INTx: the status bit follows the interrupt, the disable bit is seen and told of", (t) => {
  let changes = 0;
  const hooks = { changed: () => changes++ };
  const config = new ConfigSpace({ ...identity, intx: true }, () => {}, hooks);
  t.is(config.read(Header.STATUS, 2), 0x10);
  config.intxPending = true;
  t.is(config.read(Header.STATUS, 2), 0x18);
  config.write(Header.STATUS, 2, 0xffff);
  t.is(config.read(Header.STATUS, 2), 0x18, "software cannot clear it");
  t.false(config.intxDisabled);
  config.write(Header.COMMAND, 2, 0x0400);
  t.true(config.intxDisabled);
  t.is(changes, 1);
  t.is(config.read(Header.STATUS, 2), 0x18, "disabled, it is still pending");
  const without = new ConfigSpace(identity, () => {}, hooks);
  t.is(without.read(Header.STATUS, 2), 0x10, "no pin, no status");
});

test("the command register holds its own bits alone; bus mastering is seen", (t) => {
  const config = new ConfigSpace(identity, () => {});
  t.false(config.busMaster);
  config.write(Header.COMMAND, 2, 0xffff);
  t.is(config.read(Header.COMMAND, 2), 0x0546);
  t.true(config.busMaster);
  config.write(Header.COMMAND, 1, 2);
  t.is(config.read(Header.COMMAND, 2), 0x0502);
  t.false(config.busMaster);
  config.reset();
  t.is(config.read(Header.COMMAND, 2), 0);
  t.is(config.read(Header.STATUS, 2), 0x10);
});

test("MSI-X: count, table and pending bits; only enable and mask are writable", (t) => {
  const config = new ConfigSpace(identity, () => {});
  const at = findCapability(config, Capability.MSIX);
  t.is(config.read(at + Msix.CONTROL, 2), 16);
  t.is(config.read(at + Msix.TABLE, 4), 0x2000);
  t.is(config.read(at + Msix.PENDING, 4), 0x2000 + 17 * 16);
  config.write(at + Msix.CONTROL, 2, 0xffff);
  t.is(config.read(at + Msix.CONTROL, 2), 0xc010);
});

test("a function-level reset is asked for by PCI Express's device control", (t) => {
  let resets = 0;
  const config = new ConfigSpace(identity, () => resets++);
  const at = findCapability(config, Capability.PCI_EXPRESS);
  t.not(config.read(at + Express.DEVICE_CAPABILITIES, 4) & (1 << 28), 0);
  config.write(at + Express.DEVICE_CONTROL, 2, 0x2810);
  t.is(resets, 0);
  config.write(at + Express.DEVICE_CONTROL, 2, 0xa810);
  t.is(resets, 1);
  t.is(config.read(at + Express.DEVICE_CONTROL, 2), 0x2810, "the bit reads as zero");
});

test("a device without MSI-X has no such capability; an MSI-X BAR that the author left out is made", (t) => {
  const { msix: _, ...rest } = identity;
  const without = new ConfigSpace(rest, () => {});
  t.throws(() => findCapability(without, Capability.MSIX), { message: /no capability/ });
  const made = new ConfigSpace({ ...identity, msix: { vectors: 300, bar: 3, offset: 0 } }, () => {});
  t.is(made.barSizes[3], 8192);
});

test("identities that contradict themselves are refused", (t) => {
  const refused = (change: Partial<PciIdentity>) =>
    t.throws(() => new ConfigSpace({ ...identity, ...change }, () => {}), { instanceOf: RangeError });
  refused({ bars: { 0: { size: 0x3000 } } });
  refused({ bars: { 0: { size: 8 } } });
  refused({ bars: { 6: { size: 0x1000 } } });
  refused({ bars: { 5: { size: 0x1000, is64Bit: true } } });
  refused({ bars: { 0: { size: 0x4000, is64Bit: true }, 1: { size: 0x1000 } } });
  refused({ bars: { 0: { size: 2 ** 32 } } });
  refused({ bars: { 0: { size: 512, io: true } } });
  refused({ bars: { 0: { size: 2, io: true } } });
  refused({ bars: { 0: { size: 16, io: true, is64Bit: true } } });
  refused({ bars: { 0: { size: 16, io: true, prefetchable: true } } });
  refused({ bars: { 1: { size: 256, io: true } }, msix: { vectors: 1, bar: 1, offset: 0 } });
  refused({ rom: new Uint8Array(2 ** 24 + 1) });
  refused({ msix: { vectors: 2049, bar: 0, offset: 0 } });
  refused({ msix: { vectors: 1, bar: 0, offset: 4 } });
  refused({ msix: { vectors: 1, bar: 2, offset: 0 } });
  refused({ msix: { vectors: 600, bar: 0, offset: 0x2000 } });
});

test("the MSI-X table is memory; every vector is masked after reset; pending bits are read-only", (t) => {
  const layout = msixLayout(identity);
  if (layout === undefined) throw new Error("no layout");
  const table = new MsixTable(layout, (vector) => vector === 1 || vector === 16);
  t.false(table.covers(0, 0x1fff));
  t.true(table.covers(0, 0x2000));
  t.false(table.covers(2, 0x2000));
  t.true(table.covers(0, layout.end - 1));
  t.false(table.covers(0, layout.end));
  t.is(table.read(0x200c, 4), 1);
  table.write(0x2010, 4, 0xfee01004);
  table.write(0x201c, 4, 0);
  t.is(table.read(0x2010, 4), 0xfee01004);
  t.is(table.read(0x2012, 2), 0xfee0);
  t.is(table.read(0x201c, 4), 0);
  table.write(layout.pendingOffset, 4, 0xffffffff);
  t.is(table.read(layout.pendingOffset, 4), 0x10002);
  table.reset();
  t.is(table.read(0x2010, 4), 0);
  t.is(table.read(0x201c, 4), 1);
});
