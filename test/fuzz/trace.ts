/**
 * What a fuzzed process did last, in memory that its parent shares: still there after a crash or a hang. Nothing is
 * written to any file system.
 */
import { mapFile, PROT_READ, PROT_WRITE } from "../../native/index.js";

const SLOTS = 24;
const SLOT_SIZE = 2048;
/** u32 each: the round, steps so far, rounds done, and the id of a process that the child started (0: none). */
const ROUND = 0;
const STEPS = 1;
const DONE = 2;
const PROCESS = 3;
const HEAD_SIZE = 64;
const MAX_HEX_BYTES = 384;

export const TRACE_SIZE = 64 * 1024;
/** The fd under which the child finds it. */
export const TRACE_FD = 3;

export class Trace {
  readonly #head: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #encoder = new TextEncoder();

  constructor(fd: number) {
    const buffer = mapFile(fd, 0, TRACE_SIZE, PROT_READ | PROT_WRITE);
    this.#head = new Uint32Array(buffer, 0, HEAD_SIZE / 4);
    this.#bytes = new Uint8Array(buffer);
  }

  get round(): number {
    return this.#head[ROUND];
  }

  get steps(): number {
    return this.#head[STEPS];
  }

  get rounds(): number {
    return this.#head[DONE];
  }

  get process(): number {
    return this.#head[PROCESS];
  }

  set process(pid: number) {
    this.#head[PROCESS] = pid;
  }

  begin(round: number): void {
    this.#head[ROUND] = round;
    this.note("round", round);
  }

  done(): void {
    this.#head[DONE]++;
  }

  /** Notes what is about to be done; bytes as hex. */
  note(what: string, ...details: (Uint8Array | number | string | readonly number[])[]): void {
    const slot = HEAD_SIZE + (this.#head[STEPS] % SLOTS) * SLOT_SIZE;
    const text = [what, ...details.map(show)].join(" ");
    const place = this.#bytes.subarray(slot + 2, slot + SLOT_SIZE);
    const { written } = this.#encoder.encodeInto(text, place);
    this.#bytes[slot] = written & 0xff;
    this.#bytes[slot + 1] = written >>> 8;
    this.#head[STEPS]++;
  }

  /** The last notes, oldest first. */
  lines(): string[] {
    const last = this.steps;
    const lines: string[] = [];
    for (let step = Math.max(0, last - SLOTS); step < last; step++) {
      const slot = HEAD_SIZE + (step % SLOTS) * SLOT_SIZE;
      const length = Math.min(this.#bytes[slot] | (this.#bytes[slot + 1] << 8), SLOT_SIZE - 2);
      lines.push(`step ${step}: ${Buffer.from(this.#bytes.subarray(slot + 2, slot + 2 + length)).toString()}`);
    }
    return lines;
  }
}

function show(detail: Uint8Array | number | string | readonly number[]): string {
  if (typeof detail === "string") return detail;
  if (typeof detail === "number") return String(detail);
  if (!(detail instanceof Uint8Array)) return detail.length > 0 ? `fds [${detail.join(", ")}]` : "";
  const hex = Buffer.from(detail.buffer, detail.byteOffset, Math.min(detail.length, MAX_HEX_BYTES)).toString("hex");
  return detail.length > MAX_HEX_BYTES ? `${hex}... (${detail.length} bytes)` : hex;
}
