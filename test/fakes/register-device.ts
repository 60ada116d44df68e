/** A device whose BAR 0 is a register file of each kind of register, and which can be moved. */
import type { Device } from "../../guest/device.js";
import { RegisterFile } from "../../guest/pci/registers.js";

export const Offsets = {
  ID: 0x00,
  CONTROL: 0x04,
  STATUS: 0x08,
  COUNTER: 0x0c,
  BYTE: 0x10,
  WORD: 0x12,
  FREE: 0x14,
} as const;
export const FILE_SIZE = 0x40;
/** Where the MSI-X table is. */
export const TABLE = 0x800;
export const ID = 0x1234_5678;
/** What STATUS becomes by a write to CONTROL. */
export const statusOf = (control: number) => ~control >>> 0;

export class RegisterDevice implements Device {
  readonly migration = {};
  readonly identity = {
    vendorId: 0xfff4,
    deviceId: 0x0004,
    classCode: 0xff0000,
    bars: { 0: { size: 0x1000 } },
    msix: { vectors: 1, bar: 0, offset: TABLE },
  } as const;
  reads = 0;
  readonly file = new RegisterFile(FILE_SIZE, {
    ID: { offset: Offsets.ID, size: 4, reset: ID },
    CONTROL: {
      offset: Offsets.CONTROL,
      size: 4,
      writable: 0xffff_ffff,
      onWrite: (value) => this.file.set("STATUS", statusOf(value)),
    },
    STATUS: { offset: Offsets.STATUS, size: 4, writeOneToClear: 0xff },
    /** Counts its reads. */
    COUNTER: { offset: Offsets.COUNTER, size: 4, onRead: () => ++this.reads },
    BYTE: { offset: Offsets.BYTE, size: 1, writable: 0xf0, reset: 0x0f },
    WORD: { offset: Offsets.WORD, size: 2, writable: 0xffff },
    LAST: { offset: FILE_SIZE - 4, size: 4, writable: 0xffff_ffff },
  });
  readonly registers = { 0: this.file };

  readBar(): number {
    return 0x77;
  }
}
