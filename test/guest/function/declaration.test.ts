/** What an author may get wrong in a device: each is one sentence that names what it is about. */
import test from "ava";
import type { Device } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { pair, type Register, RegisterFile } from "../../../guest/pci/registers.js";
import { quietLog } from "../../../shared/log.js";

type Loose = Record<string, unknown>;

const identity = (changes: Loose = {}): Loose => ({
  identity: { vendorId: 0xfff4, deviceId: 1, classCode: 0xff0000, bars: { 0: { size: 0x1000 } }, ...changes },
});
const make = (device: unknown) =>
  new DeviceEndpoint(device as Device, new LocalLink({ socket: "/nowhere", log: quietLog }), quietLog);
const file = (size: number, registers: Record<string, Loose> = {}) =>
  new RegisterFile(size, registers as unknown as Record<string, Register>);
const register = (changes: Loose) => () => file(16, { DATA: { offset: 0, size: 4, ...changes } });

const MISTAKES: Record<string, [unknown, RegExp]> = {
  "no object": [undefined, /a device is an object, not undefined/],
  "no identity": [{}, /the device's identity is an object, not undefined/],
  "no vendor": [identity({ vendorId: undefined }), /identity\.vendorId is missing/],
  "a negative vendor": [identity({ vendorId: -1 }), /identity\.vendorId is -1: it must be a number of 16 bits/],
  "a vendor that is none": [identity({ vendorId: 0xffff }), /identity\.vendorId is 0xffff/],
  "a device id that is text": [identity({ deviceId: "0x1" }), /identity\.deviceId is "0x1": .*16 bits/],
  "a class that is too large": [identity({ classCode: 0x1000000 }), /identity\.classCode is 16777216: .*24 bits/],
  "a revision that is no whole number": [identity({ revisionId: 1.5 }), /identity\.revisionId is 1\.5: .*8 bits/],
  "no BARs": [identity({ bars: undefined }), /identity\.bars is an object .* not undefined/],
  "a BAR that is a number": [identity({ bars: { 0: 4096 } }), /BAR 0 is an object with its size, not 4096/],
  "a BAR of 3 bytes": [identity({ bars: { 0: { size: 3 } } }), /BAR 0: 3 bytes is not a power of two from 16/],
  "a BAR of 8 bytes": [identity({ bars: { 2: { size: 8 } } }), /BAR 2: 8 bytes is not a power of two from 16/],
  "a BAR of text": [identity({ bars: { 0: { size: "4096" } } }), /BAR 0: its size is "4096": it must be a number/],
  "a BAR without a size": [identity({ bars: { 0: {} } }), /BAR 0: its size is undefined/],
  "a BAR of 4 GiB and 32 bits": [
    identity({ bars: { 0: { size: 2 ** 32 } } }),
    /BAR 0: 4294967296 bytes .* to 2147483648/,
  ],
  "an I/O BAR of 512 bytes": [identity({ bars: { 0: { size: 512, io: true } } }), /BAR 0: 512 bytes .* from 4 to 256/],
  "a BAR 6": [identity({ bars: { 6: { size: 4096 } } }), /there is no BAR 6: a function has BARs 0 to 5/],
  "a BAR of a name": [identity({ bars: { registers: { size: 4096 } } }), /there is no BAR registers: /],
  "a BAR 5 of 64 bits": [
    identity({ bars: { 5: { size: 4096, is64Bit: true } } }),
    /there is no BAR 6, which one of 64 bits/,
  ],
  "a BAR in another's upper half": [
    identity({ bars: { 0: { size: 4096, is64Bit: true }, 1: { size: 4096 } } }),
    /BAR 1 is the upper half of BAR 0/,
  ],
  "a ROM that is text": [identity({ rom: "bytes" }), /identity\.rom is a Uint8Array, not "bytes"/],
  "4096 vectors": [identity({ msix: { vectors: 4096, bar: 1, offset: 0 } }), /4096 MSI-X vectors: at most 2048/],
  "vectors that are text": [identity({ msix: { vectors: "4", bar: 1, offset: 0 } }), /MSI-X vectors/],
  "an MSI-X table that is a number": [identity({ msix: 4 }), /identity\.msix is an object, not 4/],
  "an MSI-X table in BAR 7": [identity({ msix: { vectors: 1, bar: 7, offset: 0 } }), /there is no BAR 7/],
  "an MSI-X table beyond its BAR": [
    identity({ msix: { vectors: 16, bar: 0, offset: 0xff8 } }),
    /the MSI-X table and pending bits of 16 vectors, which end at 0x1100, do not fit into BAR 0, of 4096 bytes/,
  ],
  "an MSI-X table between two entries": [
    identity({ msix: { vectors: 1, bar: 0, offset: 4 } }),
    /MSI-X table's offset 4/,
  ],
  "an MSI-X table over registers": [
    {
      ...identity({ msix: { vectors: 1, bar: 0, offset: 8 } }),
      registers: { 0: file(16, { A: { offset: 0, size: 4 }, B: { offset: 12, size: 4 } }) },
    },
    /BAR 0: the MSI-X table and pending bits, 0x8 to 0x20, lie over register B/,
  ],
  "3 MSI vectors": [identity({ capabilities: { msi: { vectors: 3 } } }), /3 MSI vectors/],
  "a capability that does not fit": [
    identity({ capabilities: { vendor: [{ size: 200, registers: {} }] } }),
    /no room for the capability "vendor/,
  ],
  "registers in a BAR that is not there": [{ ...identity(), registers: { 1: file(16) } }, /the device has no BAR 1/],
  "registers in config space": [
    { ...identity(), registers: { 7: file(16) } },
    /registers\[7\]: registers go into BARs/,
  ],
  "registers larger than their BAR": [
    { ...identity(), registers: { 0: file(0x2000) } },
    /BAR 0 of 4096 bytes is too small/,
  ],
  "registers that end within four bytes": [
    { ...identity(), registers: { 0: file(6) } },
    /BAR 0: its 6 bytes .* multiple of 4/,
  ],
  "a table in place of registers": [
    { ...identity(), registers: { 0: { A: { offset: 0 } } } },
    /registers\[0\] is no RegisterFile/,
  ],
  "registers in a shared part": [
    {
      ...identity({ bars: { 0: { size: 0x2000, shared: [{ offset: 0, size: 0x1000 }] } } }),
      registers: { 0: file(16) },
    },
    /BAR 0: its 16 bytes of registers reach into the shared part at 0x0/,
  ],
  "shared parts that are not in pages": [
    identity({ bars: { 0: { size: 0x1000, shared: [{ offset: 16, size: 16 }] } } }),
    /BAR 0: the shared part of 16 bytes at 16 is not in whole pages/,
  ],
  "shared parts that are no list": [
    identity({ bars: { 0: { size: 0x1000, shared: false } } }),
    /BAR 0: shared is true or/,
  ],
  "an ioeventfd of 3 bytes": [
    { ...identity({ bars: { 0: { size: 0x1000, ioeventfds: [{ offset: 0, size: 3 }] } } }), ioEvent: () => {} },
    /BAR 0: the ioeventfd of 3 bytes at 0/,
  ],
  "ioeventfds that nobody hears": [
    identity({ bars: { 0: { size: 0x1000, ioeventfds: [{ offset: 0, size: 4 }] } } }),
    /ioeventfds, and no ioEvent method/,
  ],
  "a method that is none": [{ ...identity(), readBar: 3 }, /the device's readBar is 3: it must be a function/],
  "a method of the migration": [
    { ...identity(), migration: { save: {} } },
    /the device's migration's save is an object: it must/,
  ],
  "regions that are no list": [{ ...identity(), regions: {} }, /the device's regions are an array/],
  "a name that is none in its identity": [
    identity({ subsystem: 3 }),
    /identity: nothing is called "subsystem" there; .*classCode/,
  ],
  "a name that is none in a BAR": [identity({ bars: { 0: { size: 4096, is64: true } } }), /BAR 0: .*"is64".*is64Bit/],
  "a name that is none in MSI-X": [
    identity({ msix: { vectors: 1, bar: 0, offset: 0, x: 1 } }),
    /identity\.msix: .*"x"/,
  ],
  "a name that is none in MSI": [identity({ capabilities: { msi: { count: 1 } } }), /capabilities\.msi: .*"count"/],
  "a capability that is none": [identity({ capabilities: { msix: {} } }), /identity\.capabilities: .*"msix"/],
  "a name that is none in a shared part": [
    identity({ bars: { 0: { size: 0x1000, shared: [{ offset: 0, length: 4096 }] } } }),
    /BAR 0, shared: .*"length".*size/,
  ],
  "a name that is none in a region": [{ ...identity(), regions: [{ type: 1, kind: 2 }] }, /regions\[0\]: .*"kind"/],
  "a method of small letters": [{ ...identity(), readbar: () => 0 }, /the device's readbar is never called: .*readBar/],
  "an interrupt pin of text": [identity({ intx: "yes" }), /identity\.intx is "yes": it must be true or false/],
  "a region without a size": [{ ...identity(), regions: [{ type: 1, subtype: 1 }] }, /region 9 of undefined bytes/],
};

for (const [name, [device, message]] of Object.entries(MISTAKES)) {
  test(`a device with ${name}`, (t) => {
    const error = t.throws(() => make(device), { message });
    t.regex(error?.name ?? "", /^(DeclarationError|RangeError)$/, error?.stack);
    t.false(error?.message.includes("\n"));
  });
}

const REGISTERS: Record<string, [() => unknown, RegExp]> = {
  "that is a number": [() => file(16, { DATA: 4 as unknown as Loose }), /register DATA is 4: it must be an object/],
  "with a name that is none": [register({ writeable: 1 }), /register DATA: nothing is called "writeable".*writable/],
  "of 8 bytes": [register({ size: 8 }), /register DATA is of 8 bytes: 1, 2 and 4 are possible, and pair\(\)/],
  "without a size": [register({ size: undefined }), /register DATA is of undefined bytes/],
  "at an odd offset": [register({ offset: 2 }), /register DATA of 4 bytes at 2: its offset must be a multiple/],
  "behind the end": [register({ offset: 16 }), /register DATA of 4 bytes at 16: .* within the 16 bytes/],
  "at no offset": [register({ offset: "0" }), /register DATA of 4 bytes at 0/],
  "with a value that is too large": [
    register({ size: 2, reset: 0x10000 }),
    /register DATA: reset is 0x10000, .* 2 bytes/,
  ],
  "with a mask of 33 bits": [register({ writable: 2 ** 32 }), /register DATA: writable is 4294967296/],
  "with a hook that is none": [register({ onWrite: "sum" }), /register DATA: onWrite is no function/],
  "over another": [
    () => file(16, { A: { offset: 4, size: 4 }, B: { offset: 6, size: 2 } }),
    /register B of 2 bytes at 0x6 overlaps register A/,
  ],
  "in a file of no size": [() => file(Number.NaN), /a register file of NaN bytes/],
};

for (const [name, [made, message]] of Object.entries(REGISTERS)) {
  test(`a register ${name}`, (t) => {
    t.throws(made, { instanceOf: RangeError, message });
  });
}

test("what is right is taken: masks as JavaScript computes them, a table that lies between registers", (t) => {
  const registers = file(0x40, {
    A: { offset: 0, size: 4, writable: ~0 },
    ...(pair("WIDE", 0x38, {}) as unknown as Record<string, Loose>),
  });
  t.notThrows(() => make({ ...identity({ msix: { vectors: 1, bar: 0, offset: 8 } }), registers: { 0: registers } }));
  t.notThrows(() => make(identity({ msix: { vectors: 0, bar: 0, offset: 0 } })));
});
