/**
 * Plain register accesses without a command around them, in C++ (native DeviceAccess): the message is checked there, as
 * checks.ts does it, and what is read from register memory, or written to a doorbell that is a word of memory, is
 * answered there. Anything else is one call of the device's `readWord` or `writeWord`. Both links have one: the local
 * link's stands behind its client's socket, the virtio link's behind its ring (guest/link/virtio/device-path.ts).
 */
import * as native from "../../native/index.js";
import type { Latencies } from "../histogram.js";
import { MAX_REGIONS } from "../limits.js";
import { setU64, struct } from "../struct/struct.js";
import type { RegisterMemory } from "./register-memory.js";

/**
 * Accesses of 1, 2 or 4 bytes at a multiple of their size, within their region, as messages of their own would be dealt
 * with. They never throw, and never wait.
 */
export interface WordAccesses {
  /** Bit n: region n is read, and written, so. */
  readonly readable: number;
  readonly writable: number;
  /** The value, unsigned; or minus an errno. */
  readWord(region: number, offset: number, size: number): number;
  /** 0, or minus an errno. */
  writeWord(region: number, offset: number, size: number, value: number): number;
}

/** Of a DeviceSummary. */
interface AccessedRegions {
  readonly regionSizes: readonly number[];
  readonly postedRegions: number;
}

/** See native/device_access.h. */
const DeviceState = struct({
  readable: "u32",
  writable: "u32",
  reads: "u32",
  readsFromMemory: "u32",
  writes: "u32",
  writesMulti: "u32",
  doorbells: "u32",
  reserved: 4,
  sizes: 8 * MAX_REGIONS,
  count: "u32",
  posted: "u32",
});
/** The same table as native/device_access.cc has it. */
const LAYOUT = Uint32Array.of(
  DeviceState.offsets.reads,
  DeviceState.offsets.sizes,
  DeviceState.offsets.count - DeviceState.offsets.sizes,
  DeviceState.offsets.posted - DeviceState.offsets.sizes,
  DeviceState.size,
);

export class DeviceAccess {
  readonly native: native.DeviceAccess;
  readonly #fields: ReturnType<typeof DeviceState.view>;

  /** `answersPosted`: a posted write succeeds whatever the device says, as its client was promised. */
  constructor(words: WordAccesses, { regionSizes, postedRegions }: AccessedRegions, answersPosted: boolean) {
    const state = new Uint8Array(DeviceState.size);
    const data = new DataView(state.buffer);
    this.#fields = DeviceState.view(data);
    this.#fields.readable = words.readable >>> 0;
    this.#fields.writable = words.writable >>> 0;
    this.#fields.count = regionSizes.length;
    this.#fields.posted = answersPosted ? postedRegions : 0;
    for (const [n, size] of regionSizes.entries()) setU64(data, DeviceState.offsets.sizes + 8 * n, size);
    this.native = new native.DeviceAccess(state, LAYOUT, words);
  }

  /** Where the device keeps the values of its registers. `counts`: writes that are done are counted there. */
  shareRegisters(registers: RegisterMemory | undefined, counts: boolean): void {
    this.native.registers(registers?.bytes, registers?.areas, counts);
  }

  /** Latencies are noted there from now on, or nowhere any more. */
  measure(latencies: Latencies | undefined): void {
    this.native.measure(latencies?.words);
  }

  /** Accesses since this was asked last. */
  takeCounts(): { reads: number; readsFromMemory: number; writes: number; writesMulti: number } {
    const { reads, readsFromMemory, writes, writesMulti } = this.#fields;
    Object.assign(this.#fields, { reads: 0, readsFromMemory: 0, writes: 0, writesMulti: 0 });
    return { reads, readsFromMemory, writes, writesMulti };
  }
}
