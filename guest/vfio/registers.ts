/** Registers of a VFIO device: mapped into this process, or by read and write where they cannot be (config space). */
import { readSync, writeSync } from "node:fs";
import { load8, load16, load32, store8, store16, store32 } from "../../native/index.js";
import type { Registers } from "./pci-function.js";

export class MappedRegisters implements Registers {
  constructor(readonly buffer: ArrayBuffer) {}

  read8(offset: number): number {
    return load8(this.buffer, offset);
  }

  read16(offset: number): number {
    return load16(this.buffer, offset);
  }

  read32(offset: number): number {
    return load32(this.buffer, offset);
  }

  write8(offset: number, value: number): void {
    store8(this.buffer, offset, value);
  }

  write16(offset: number, value: number): void {
    store16(this.buffer, offset, value);
  }

  write32(offset: number, value: number): void {
    store32(this.buffer, offset, value);
  }
}

export class FileRegisters implements Registers {
  readonly #bytes = Buffer.alloc(4);

  /** A region that begins at `start` of the file. */
  constructor(
    readonly fd: number,
    readonly start: number,
  ) {}

  read8(offset: number): number {
    return this.#read(offset, 1).readUInt8();
  }

  read16(offset: number): number {
    return this.#read(offset, 2).readUInt16LE();
  }

  read32(offset: number): number {
    return this.#read(offset, 4).readUInt32LE();
  }

  write8(offset: number, value: number): void {
    this.#bytes.writeUInt8(value);
    writeSync(this.fd, this.#bytes, 0, 1, this.start + offset);
  }

  write16(offset: number, value: number): void {
    this.#bytes.writeUInt16LE(value);
    writeSync(this.fd, this.#bytes, 0, 2, this.start + offset);
  }

  write32(offset: number, value: number): void {
    this.#bytes.writeUInt32LE(value);
    writeSync(this.fd, this.#bytes, 0, 4, this.start + offset);
  }

  /** What cannot be read is all ones, as from a device that is not there. */
  #read(offset: number, size: number): Buffer {
    if (readSync(this.fd, this.#bytes, 0, size, this.start + offset) !== size) this.#bytes.fill(0xff);
    return this.#bytes;
  }
}
