/**
 * Register memory: the values of a device's registers, kept up to date by the device, from which a server answers
 * reads without asking it (docs/virtio-vfio-user.md, "Register memory"). Only registers that read as what is stored in
 * them are in there.
 *
 * A read must see what the writes ahead of it did. So the server's side counts the writes that it passes on to the
 * device, and the device those that it has dealt with; while the counts differ, reads go to the device, behind the
 * writes.
 */
import { inBounds } from "../bits.js";
import { RegisterMemoryHead } from "../spec/link.js";
import { Command } from "../spec/vfio-user.js";

/** Registers of one region: `size` bytes from `offset` on are in the memory from byte `place` on. */
export interface RegisterArea {
  readonly region: number;
  readonly offset: number;
  readonly size: number;
  readonly place: number;
}

const WORD = 4;
const WRITES_SENT = RegisterMemoryHead.offsets.writesSent / WORD;
const WRITES_DONE = RegisterMemoryHead.offsets.writesDone / WORD;
const VALID = RegisterMemoryHead.offsets.valid / WORD;

/** Whether a command is one of those that are counted. */
export function isWrite(command: number): boolean {
  return command === Command.REGION_WRITE || command === Command.REGION_WRITE_MULTI;
}

/** The server's side. */
export class RegisterMemory {
  /** Four numbers for each area, as native Stream and DeviceAccess take them. */
  readonly areas: Uint32Array;
  readonly #head: Int32Array;
  readonly #registers: readonly RegisterArea[];
  /** While the memory is not here: writes since then, or since a client came then. */
  #isHeld = false;
  #begins = false;
  #writes = 0;

  /** `bytes`: RegisterMemoryHead, and all areas. */
  constructor(
    readonly bytes: Uint8Array,
    areas: readonly RegisterArea[],
  ) {
    this.areas = Uint32Array.from(areas.flatMap(({ region, offset, size, place }) => [region, offset, size, place]));
    this.#head = new Int32Array(bytes.buffer, bytes.byteOffset, RegisterMemoryHead.size / WORD);
    this.#registers = areas;
  }

  /** Whether all registers lie within regions of these sizes. */
  fits(regionSizes: readonly number[]): boolean {
    return this.#registers.every(({ region, offset, size }) => offset + size <= (regionSizes[region] ?? 0));
  }

  get held(): boolean {
    return this.#isHeld;
  }

  /** The memory is not here for now: it is not touched, and has no values, until `release`. */
  hold(): void {
    this.#isHeld = true;
  }

  /** The memory is where it was, and has what it had and what the device did meanwhile. */
  release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    if (this.#begins) this.begin();
    Atomics.add(this.#head, WRITES_SENT, this.#writes);
    this.#begins = false;
    this.#writes = 0;
  }

  /** A client comes; the device has dealt with all that it was passed. */
  begin(): void {
    if (this.#isHeld) {
      this.#begins = true;
      this.#writes = 0;
    } else Atomics.store(this.#head, WRITES_SENT, Atomics.load(this.#head, WRITES_DONE));
  }

  /** A write is passed on to the device. */
  writeSent(): void {
    if (this.#isHeld) this.#writes++;
    else this.#head[WRITES_SENT]++;
  }

  /** A write that was counted is not passed on after all. */
  writeWithdrawn(): void {
    if (this.#isHeld) this.#writes--;
    else this.#head[WRITES_SENT]--;
  }

  /**
   * Where in `bytes` the `size` bytes at `offset` of a region are, as they are now, whatever writes are in flight; -1
   * where they are not, or are not valid.
   */
  find(region: number, offset: number, size: number): number {
    if (this.#isHeld || Atomics.load(this.#head, VALID) !== 1) return -1;
    const found = this.#registers.find(
      (area) => area.region === region && inBounds(offset - area.offset, size, area.size),
    );
    return found ? found.place + (offset - found.offset) : -1;
  }
}

/** The device's side of the counts. `memory` begins with RegisterMemoryHead. */
export class RegisterMemoryState {
  readonly #head: Int32Array;

  constructor(memory: Uint8Array<ArrayBuffer>) {
    this.#head = new Int32Array(memory.buffer, memory.byteOffset, RegisterMemoryHead.size / WORD);
  }

  /** Whether the values may be used; false at first. */
  set valid(valid: boolean) {
    Atomics.store(this.#head, VALID, valid ? 1 : 0);
  }

  /** A write was dealt with: what it did to registers is in the memory. */
  writeDone(): void {
    Atomics.add(this.#head, WRITES_DONE, 1);
  }
}
