/**
 * The ids of commands that the device process was sent and has not answered, so that the next bridge takes none of them
 * for another command, and knows which of the client's each is. An entry for each id: a state, which is stored last,
 * the command, where the client's message is in what it sent, and a check.
 */
import { crashPoint } from "../../../native/supervision.js";

/** Ids at most. */
export const MAX_PENDING_IDS = 256;
const ENTRY_WORDS = 4;
export const PENDING_IDS_SIZE = MAX_PENDING_IDS * ENTRY_WORDS * 4;

/** None is another one with a byte changed. OTHER: nobody waits for the reply any more, or the bridge itself. */
const FREE = 0;
const CLIENT = 0x434c4e54;
const OTHER = 0x4f544852;

export interface PendingId {
  readonly id: number;
  readonly command: number;
  /** Of the client's command; undefined for others. */
  readonly position: number | undefined;
}

export class PendingIds {
  readonly #words: Uint32Array;

  /** `bytes`: PENDING_IDS_SIZE, of zeros or as another process left them. */
  constructor(bytes = new Uint8Array(PENDING_IDS_SIZE)) {
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, PENDING_IDS_SIZE / 4);
  }

  /** The client's command at `position` is going to be sent; -1: one of the bridge's own. */
  add(id: number, command: number, position: number): void {
    const at = id * ENTRY_WORDS;
    this.#words[at + 1] = command;
    this.#words[at + 2] = position;
    this.#words[at + 3] = checkOf(id, command, position >>> 0);
    this.#store(at, position < 0 ? OTHER : CLIENT);
  }

  free(id: number): void {
    this.#store(id * ENTRY_WORDS, FREE);
  }

  /** All of them; undefined when they are damaged. */
  load(): PendingId[] | undefined {
    const all: PendingId[] = [];
    for (let id = 0; id < MAX_PENDING_IDS; id++) {
      const at = id * ENTRY_WORDS;
      const [state, command, position, check] = this.#words.subarray(at, at + ENTRY_WORDS);
      if (state === FREE) continue;
      if ((state !== CLIENT && state !== OTHER) || check !== checkOf(id, command, position)) return undefined;
      all.push({ id, command, position: state === CLIENT ? position : undefined });
    }
    return all;
  }

  #store(at: number, state: number): void {
    Atomics.store(this.#words, at, state);
    crashPoint?.();
  }
}

function checkOf(id: number, command: number, position: number): number {
  const check = Math.imul((id << 16) ^ command ^ 0x811c9dc5, 0x01000193) ^ Math.imul(position, 0x85ebca6b);
  return (check ^ (check >>> 15)) >>> 0;
}
