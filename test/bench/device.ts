/**
 * The device that accesses are measured with: those of BAR 0 cost next to nothing, so that what is measured is the way
 * there. It begins with a register that is a stored value, and goes on with what the device computes. SEQUENCE notes
 * each value that is not its predecessor plus one in VIOLATIONS.
 */
import type { Device } from "../../guest/device.js";
import { RegisterFile } from "../../guest/pci/registers.js";
import { getUint } from "../../shared/struct/struct.js";

const SEQUENCE = 0x40;
const VIOLATIONS = 0x44;
const BAR_SIZE = 0x1000;

export class RegisterDevice implements Device {
  readonly identity = {
    vendorId: 0xfff4,
    deviceId: 0x0003,
    classCode: 0xff0000,
    bars: { 0: { size: BAR_SIZE, is64Bit: true } },
    msix: { vectors: 4, bar: 2, offset: 0 },
  } as const;
  readonly registers = { 0: new RegisterFile(4, { STORED: { offset: 0, size: 4, writable: 0xffff_ffff } }) };
  readonly #data = new DataView(new ArrayBuffer(BAR_SIZE));

  start(): void {}

  readBar(bar: number, offset: number, size: number): number {
    return bar === 0 ? getUint(this.#data, offset, size) : 0;
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar !== 0 || size !== 4) return;
    if (offset === SEQUENCE) {
      const violations = value === 0 ? 0 : this.#data.getUint32(VIOLATIONS, true);
      const inOrder = value === 0 || value === this.#data.getUint32(SEQUENCE, true) + 1;
      this.#data.setUint32(VIOLATIONS, violations + (inOrder ? 0 : 1), true);
    }
    this.#data.setUint32(offset, value, true);
  }

  reset(): void {
    new Uint8Array(this.#data.buffer).fill(0);
  }

  quiesce(): void {}
  close(): void {}
}
