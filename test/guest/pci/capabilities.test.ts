/**
 * Each capability byte by byte: as it is after reset, and after all ones were written to all of it. The expected bytes
 * are written out by hand from the specifications' register pictures.
 */
import test, { type ExecutionContext } from "ava";
import type { PciCapabilities, PciIdentity } from "../../../guest/device.js";
import { ConfigSpace, type InterruptHooks } from "../../../guest/pci/config-space.js";
import { bytesAsRegisters } from "../../../guest/pci/registers.js";
import { Msi, Msix } from "../../../shared/spec/pci.js";

const PM = 0x40;
/** Where what is behind the capabilities that every device has begins: MSI-X here, if there is one. */
const EXPRESS = 0x48;
const THIRD = 0x84;

interface Setup extends Partial<PciIdentity> {
  readonly capabilities?: PciCapabilities;
}

/** What the driver VM wrote, as it is read back. */
const control = (config: ConfigSpace, name: string) => config.registers.get(name);
const msixEnabled = (config: ConfigSpace) => (control(config, "msix.control") & Msix.CONTROL_ENABLE) !== 0;
const msixMasked = (config: ConfigSpace) => (control(config, "msix.control") & Msix.CONTROL_FUNCTION_MASK) !== 0;
const msiEnabled = (config: ConfigSpace) => (control(config, "msi.control") & Msi.CONTROL_ENABLE) !== 0;
function msiVectorsAllowed(config: ConfigSpace): number {
  if (config.msiVectors === 0) return 0;
  const log2 = (control(config, "msi.control") >>> Msi.CONTROL_ENABLED_SHIFT) & Msi.CONTROL_COUNT_MASK;
  return Math.min(2 ** log2, config.msiVectors);
}

function setup(change: Setup, hooks: InterruptHooks = {}) {
  const identity: PciIdentity = { vendorId: 0xfff4, deviceId: 1, classCode: 0xff0000, bars: {}, ...change };
  const resets = { count: 0 };
  const config = new ConfigSpace(identity, () => resets.count++, hooks);
  return { config, resets };
}

const bytesOf = (config: ConfigSpace, offset: number, length: number) =>
  Array.from({ length }, (_, n) =>
    config
      .read(offset + n, 1)
      .toString(16)
      .padStart(2, "0"),
  ).join(" ");

/**
 * Compares `length` bytes with what they are after reset, after all ones were written to each, and after a reset again.
 */
function exact(t: ExecutionContext, config: ConfigSpace, offset: number, fresh: string, written: string): void {
  const length = fresh.split(" ").length;
  const tidy = (text: string) => text.replaceAll(/\s+/g, " ").trim();
  t.is(bytesOf(config, offset, length), tidy(fresh));
  for (let n = 0; n < length; n++) config.write(offset + n, 1, 0xff);
  t.is(bytesOf(config, offset, length), tidy(written));
  config.reset();
  for (let n = 0; n < length; n += 4) config.write(offset + n, 4, 0xffffffff);
  t.is(bytesOf(config, offset, length), tidy(written), "in words as in bytes");
  config.reset();
  t.is(bytesOf(config, offset, length), tidy(fresh));
}

/** [id, offset] of each capability, as a driver walks the list. */
function walk(config: ConfigSpace): number[][] {
  const found: number[][] = [];
  for (let at = config.read(0x34, 1); at !== 0 && found.length < 48; at = config.read(at + 1, 1)) {
    found.push([config.read(at, 1), at]);
  }
  return found;
}

/** [id, version, offset] of each extended capability. */
function walkExtended(config: ConfigSpace): number[][] {
  const found: number[][] = [];
  for (let at = 0x100; at !== 0 && found.length < 960; ) {
    const header = config.read(at, 4);
    if (header === 0) break;
    found.push([header & 0xffff, (header >>> 16) & 0xf, at]);
    at = header >>> 20;
  }
  return found;
}

test("a device that says nothing is an endpoint with power management; the extended space reads as zeros", (t) => {
  const { config } = setup({});
  t.deepEqual(walk(config), [
    [0x01, PM],
    [0x10, EXPRESS],
  ]);
  t.is(config.read(6, 2), 0x0010, "status: there is a list");
  for (let at = THIRD; at < 4096; at += 4) {
    config.write(at, 4, 0xffffffff);
    t.is(config.read(at, 4), 0);
  }
});

test("no capability at all: no list, and a space of 256 bytes", (t) => {
  const { config } = setup({ capabilities: { pm: false, pcie: false } });
  t.is(config.read(0x34, 1), 0);
  t.is(config.read(6, 2), 0);
  t.is(config.size, 256);
  t.throws(() => config.read(256, 4), { instanceOf: RangeError });
});

test("all of them in their order, each behind the one before", (t) => {
  const { config } = setup({
    bars: { 0: { size: 4096 } },
    msix: { vectors: 2, bar: 0, offset: 0 },
    capabilities: {
      msi: { is64Bit: false },
      vendor: [
        { size: 5, registers: {} },
        { size: 16, registers: {} },
      ],
      errorReporting: true,
      serialNumber: 1n,
      vendorExtended: [{ id: 1, revision: 2, size: 8, registers: {} }],
      extended: [{ id: 0x23, version: 1, size: 10, registers: {} }],
    },
  });
  t.deepEqual(walk(config), [
    [0x01, 0x40],
    [0x10, 0x48],
    [0x11, 0x84],
    [0x05, 0x90],
    [0x09, 0x9c],
    [0x09, 0xa4],
  ]);
  t.deepEqual(walkExtended(config), [
    [0x01, 1, 0x100],
    [0x03, 1, 0x12c],
    [0x0b, 1, 0x138],
    [0x23, 1, 0x140],
  ]);
});

test("power management: D0 and D3hot, and a write of what is between is discarded", (t) => {
  const { config, resets } = setup({});
  exact(t, config, PM, "01 48 03 00 08 00 00 00", "01 48 03 00 0b 00 00 00");
  config.write(PM + 4, 2, 1);
  t.is(config.read(PM + 4, 2), 8);
  config.write(PM + 4, 2, 3);
  config.write(PM + 4, 2, 2);
  t.is(config.read(PM + 4, 2), 0x0b);
  config.write(PM + 4, 2, 0);
  t.is(config.read(PM + 4, 2), 8);
  t.is(resets.count, 0, "No_Soft_Reset");
});

test("power management: without No_Soft_Reset the way back to D0 resets the function", (t) => {
  const { config, resets } = setup({ capabilities: { pm: { softReset: true } } });
  exact(t, config, PM, "01 48 03 00 00 00 00 00", "01 48 03 00 03 00 00 00");
  config.write(PM + 4, 2, 0);
  config.write(PM + 4, 2, 3);
  config.write(PM + 4, 2, 1);
  config.write(PM + 4, 2, 3);
  t.is(resets.count, 0);
  config.write(PM + 4, 1, 0);
  t.is(resets.count, 1);
});

test("in D3hot the function is no bus master", (t) => {
  const { config } = setup({});
  config.write(4, 2, 4);
  t.true(config.busMaster);
  config.write(PM + 4, 2, 3);
  t.false(config.busMaster);
  config.write(PM + 4, 2, 0);
  t.true(config.busMaster);
});

test("PCI Express, as it comes", (t) => {
  const { config } = setup({});
  const unused = "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00";
  exact(
    t,
    config,
    EXPRESS,
    `10 00 02 00  20 80 00 10  10 28 00 00  11 00 40 00  00 00 11 00
     ${unused}  10 00 00 00  00 00 00 00  02 00 00 00  01 00 00 00  00 00 00 00  00 00 00 00`.replaceAll(/\s+/g, " "),
    `10 00 02 00  20 80 00 10  ff 79 00 00  11 00 40 00  c3 00 11 00
     ${unused}  10 00 00 00  10 00 00 00  02 00 00 00  3f 00 00 00  00 00 00 00  00 00 00 00`,
  );
});

test("PCI Express: speed, width and payload are the author's", (t) => {
  const { config } = setup({ capabilities: { pcie: { linkSpeed: 5, linkWidth: 16, maxPayload: 512 } } });
  t.is(config.read(EXPRESS + 0x04, 4), 0x10008022);
  t.is(config.read(EXPRESS + 0x0c, 4), 0x00400102);
  t.is(config.read(EXPRESS + 0x12, 2), 0x0102);
  t.is(config.read(EXPRESS + 0x2c, 4), 0x00000006);
  t.is(config.read(EXPRESS + 0x30, 2), 0x0002);
});

test("PCI Express: function-level reset is asked for by its bit, in an access of any size, and reads as zero", (t) => {
  const { config, resets } = setup({});
  config.write(EXPRESS + 8, 2, 0x7fff);
  config.write(EXPRESS + 10, 2, 0x8000);
  config.write(EXPRESS + 8, 1, 0x80);
  t.is(resets.count, 0);
  config.write(EXPRESS + 8, 2, 0x8000);
  config.write(EXPRESS + 9, 1, 0x80);
  config.write(EXPRESS + 8, 4, 0x8000);
  t.is(resets.count, 3);
  t.is(config.read(EXPRESS + 8, 2), 0);
});

test("MSI-X", (t) => {
  const { config } = setup({ bars: { 2: { size: 0x8000 } }, msix: { vectors: 9, bar: 2, offset: 0x4000 } });
  exact(t, config, THIRD, "11 00 08 00 02 40 00 00 92 40 00 00", "11 00 08 c0 02 40 00 00 92 40 00 00");
  t.false(msixEnabled(config));
  config.write(THIRD + 2, 2, 0x8000);
  t.true(msixEnabled(config));
  t.false(msixMasked(config));
  config.write(THIRD + 2, 2, 0xc000);
  t.true(msixMasked(config));
  t.is(config.msixVectors, 9);
});

const ENTRIES = "00 00 00 00";

test("MSI in its four layouts", (t) => {
  const of = (capabilities: PciCapabilities) => setup({ capabilities }).config;
  exact(
    t,
    of({ msi: { is64Bit: false } }),
    THIRD,
    `05 00 00 00 ${ENTRIES} 00 00 00 00`,
    "05 00 71 00 fc ff ff ff ff ff 00 00",
  );
  exact(
    t,
    of({ msi: {} }),
    THIRD,
    `05 00 80 00 ${ENTRIES} ${ENTRIES} 00 00 00 00`,
    "05 00 f1 00 fc ff ff ff ff ff ff ff ff ff 00 00",
  );
  exact(
    t,
    of({ msi: { is64Bit: false, vectors: 4, perVectorMasking: true } }),
    THIRD,
    `05 00 04 01 ${ENTRIES} 00 00 00 00 ${ENTRIES} ${ENTRIES}`,
    "05 00 75 01 fc ff ff ff ff ff 00 00 0f 00 00 00 00 00 00 00",
  );
  exact(
    t,
    of({ msi: { vectors: 32, perVectorMasking: true } }),
    THIRD,
    `05 00 8a 01 ${ENTRIES} ${ENTRIES} 00 00 00 00 ${ENTRIES} ${ENTRIES}`,
    "05 00 fb 01 fc ff ff ff ff ff ff ff ff ff 00 00 ff ff ff ff 00 00 00 00",
  );
});

test("MSI: what the driver VM enabled, allowed and masked is seen and told of; pending bits are the device's", (t) => {
  let pending = 0;
  let changes = 0;
  const hooks = { msiPending: () => pending, changed: () => changes++ };
  const { config } = setup({ capabilities: { msi: { vectors: 32, perVectorMasking: true } } }, hooks);
  t.is(config.msiVectors, 32);
  t.is(msiVectorsAllowed(config), 1);
  t.false(msiEnabled(config));
  config.write(THIRD + 2, 2, 0x0031);
  t.true(msiEnabled(config));
  t.is(msiVectorsAllowed(config), 8);
  config.write(THIRD + 2, 2, 0x0071);
  t.is(msiVectorsAllowed(config), 32, "no more than there are");
  config.write(THIRD + 0x10, 4, 0x80000002);
  t.deepEqual(
    [0, 1, 2, 31].map((vector) => config.msiMasked(vector)),
    [false, true, false, true],
  );
  t.is(changes, 3);
  pending = 0x80000000;
  t.is(config.read(THIRD + 0x14, 4), 0x80000000);
  t.is(config.read(THIRD + 0x17, 1), 0x80);
  const without = setup({ capabilities: { msi: { vectors: 2 } } }, hooks).config;
  without.write(THIRD + 2, 2, 0x0051);
  t.is(msiVectorsAllowed(without), 2);
  t.false(without.msiMasked(1));
  t.is(msiVectorsAllowed(setup({}).config), 0);
});

test("vendor-specific: its length, the author's bytes, masks and hooks", (t) => {
  const calls: number[][] = [];
  const registers = bytesAsRegisters(3, Uint8Array.of(0x42, 0, 0, 9), Uint8Array.of(0, 0xff, 0x0f, 0), (...call) =>
    calls.push(call),
  );
  const live = { offset: 8, size: 4, onRead: () => 0xcafef00d } as const;
  const { config } = setup({ capabilities: { vendor: [{ size: 12, registers: { ...registers, live } }] } });
  const head = "09 00 0c 42";
  exact(t, config, THIRD, `${head} 00 00 09 00 0d f0 fe ca`, `${head} ff 0f 09 00 0d f0 fe ca`);
  t.deepEqual(calls.slice(0, 3), [
    [3, 0x42],
    [4, 0xff],
    [5, 0x0f],
  ]);
});

test("device serial number, in every spelling", (t) => {
  for (const serialNumber of [
    0x0123456789abcdefn,
    "01-23-45-67-89-ab-cd-ef",
    "01:23:45:67:89:AB:CD:EF",
    "0123456789abcdef",
  ]) {
    const { config } = setup({ capabilities: { serialNumber } });
    const bytes = "03 00 01 00 ef cd ab 89 67 45 23 01";
    exact(t, config, 0x100, bytes, bytes);
  }
});

test("advanced error reporting", (t) => {
  const { config } = setup({ capabilities: { errorReporting: true } });
  const rest = Array(20).fill("00").join(" ");
  exact(
    t,
    config,
    0x100,
    `01 00 01 00 00 00 00 00 00 00 00 00 10 20 06 00 00 00 00 00 00 20 00 00 ${rest}`,
    `01 00 01 00 00 00 00 00 10 f0 17 00 10 f0 17 00 00 00 00 00 c1 31 00 00 ${rest}`,
  );
});

test("vendor-specific extended: id, revision and length, and the author's registers", (t) => {
  const registers = { mailbox: { offset: 8, size: 4, reset: 0x12345678, writable: 0xffff } } as const;
  const { config } = setup({
    capabilities: { vendorExtended: [{ id: 0xabcd, revision: 5, size: 0xffc - 0x100, registers }] },
  });
  exact(
    t,
    config,
    0x100,
    "0b 00 01 00 cd ab c5 ef 78 56 34 12 00 00 00 00",
    "0b 00 01 00 cd ab c5 ef ff ff 34 12 00 00 00 00",
  );
});

test("the extended space to its last byte", (t) => {
  const registers = { last: { offset: 0xefc, size: 4, writable: 0xffffffff } } as const;
  const { config } = setup({ capabilities: { extended: [{ id: 0x19, version: 2, size: 0xf00, registers }] } });
  config.write(0xffc, 4, 0xfedcba98);
  t.is(config.read(0xffe, 2), 0xfedc);
  t.is(config.read(0x100, 4), 0x00020019);
});

test("capabilities that cannot be are refused", (t) => {
  const refused = (capabilities: object, message: RegExp) =>
    t.throws(() => setup({ capabilities: capabilities as PciCapabilities }), { instanceOf: RangeError, message });
  refused({ msi: { vectors: 3 } }, /3 MSI vectors/);
  refused({ msi: { vectors: 64 } }, /64 MSI vectors/);
  refused({ msi: { vectors: 0 } }, /0 MSI vectors/);
  refused({ pcie: { linkSpeed: 8 } }, /8 GT/);
  refused({ pcie: { linkSpeed: 0 } }, /0 GT/);
  refused({ pcie: { linkWidth: 3 } }, /x3/);
  refused({ pcie: { maxPayload: 64 } }, /64 bytes/);
  refused({ serialNumber: 1n << 64n }, /64 bits/);
  refused({ serialNumber: -1n }, /64 bits/);
  refused({ serialNumber: "01-23-45-67-89-ab-cd" }, /hexadecimal/);
  refused({ serialNumber: "01-23:45-67-89-ab-cd-ef" }, /hexadecimal/);
  refused({ pcie: false, serialNumber: 1n }, /PCI Express/);
  refused({ vendor: [{ size: 256, registers: {} }] }, /256 bytes/);
  refused(
    {
      vendor: [
        { size: 0x79, registers: {} },
        { size: 4, registers: {} },
      ],
    },
    /no room.*vendor1/,
  );
  refused({ vendor: [{ size: 4, registers: { a: { offset: 2, size: 1 } } }] }, /overlaps/);
  refused({ vendor: [{ size: 4, registers: { a: { offset: 0, size: 2 } } }] }, /outside/);
  refused({ vendor: [{ size: 4, registers: { a: { offset: 4, size: 1 } } }] }, /outside/);
  refused({ vendor: [{ size: 1, registers: {} }] }, /no size/);
  refused({ vendorExtended: [{ id: 0x10000, revision: 0, size: 8, registers: {} }] }, /65536/);
  refused({ vendorExtended: [{ id: 0, revision: 16, size: 8, registers: {} }] }, /revision 16/);
  refused({ vendorExtended: [{ id: 0, revision: 0, size: 12, registers: { a: { offset: 4, size: 4 } } }] }, /overlaps/);
  refused({ extended: [{ id: 0, version: 1, size: 8, registers: {} }] }, /id 0/);
  refused({ extended: [{ id: 0x10000, version: 1, size: 8, registers: {} }] }, /id 65536/);
  refused({ extended: [{ id: 5, version: 16, size: 8, registers: {} }] }, /version 16/);
  refused({ extended: [{ id: 5, version: 1, size: 0xf04, registers: {} }] }, /no room/);
});
