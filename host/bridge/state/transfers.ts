/**
 * DMA by messages that the device process asked for and was not answered, so that the next bridge does it: a record for
 * each, whose state is stored last, and the bytes of a write. A write that was sent to the client is not sent again. Of
 * the reply it is known which of the messages to the device process it is.
 */
import { crashPoint } from "../../../native/supervision.js";
import { MAX_DATA_XFER_SIZE, PAGE_SIZE } from "../../../shared/limits.js";

/** In flight; each holds at most one largest transfer in memory. */
export const MAX_TRANSFERS = 16;
const RECORD_WORDS = 16;
export const TRANSFERS_SIZE = PAGE_SIZE + MAX_TRANSFERS * MAX_DATA_XFER_SIZE;

/** None is another one with a byte changed. */
const FREE = 0;
const LIVE = 0x4c495645;
const SENT = 0x53454e54;
const ANSWERED = 0x52504c59;

/** Words of a record; from SERIAL on to CHECK it is checked. */
const STATE = 0;
const SERIAL = 1;
const CHECK = 8;
const WRITE_STATE = 9;
const REPLY_STATE = 10;
const REPLY = 11;

export interface Transfer {
  readonly slot: number;
  readonly serial: number;
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly address: number;
  readonly count: number;
  /** The client was sent the write. */
  readonly isSent: boolean;
  /** How many messages the device process was sent with the reply; undefined: there was none yet. */
  readonly reply: number | undefined;
}

export class Transfers {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #words: Uint32Array;
  readonly #isTaken = new Array<boolean>(MAX_TRANSFERS).fill(false);
  #serial = 0;
  #taken = 0;

  /** `bytes`: TRANSFERS_SIZE, of zeros or as another process left them. */
  constructor(bytes = new Uint8Array(TRANSFERS_SIZE)) {
    this.#bytes = bytes;
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, MAX_TRANSFERS * RECORD_WORDS);
  }

  get areFull(): boolean {
    return this.#taken === MAX_TRANSFERS;
  }

  /** Takes a slot, when they are not full; `data`: of a write. */
  begin(id: number, command: number, flags: number, address: number, count: number, data?: Uint8Array): number {
    const slot = this.#isTaken.indexOf(false);
    const at = slot * RECORD_WORDS;
    const words = this.#words;
    this.#take(slot);
    if (data) this.bytes(slot, count).set(data);
    words.set([++this.#serial, id, command, flags, address >>> 0, Math.floor(address / 2 ** 32), count], at + SERIAL);
    words[at + CHECK] = this.#check(slot);
    words[at + WRITE_STATE] = FREE;
    words[at + REPLY_STATE] = FREE;
    this.#store(at + STATE, LIVE);
    return slot;
  }

  /** Bytes of a slot. */
  bytes(slot: number, count: number): Uint8Array<ArrayBuffer> {
    const at = this.#bytes.byteOffset + PAGE_SIZE + slot * MAX_DATA_XFER_SIZE;
    return new Uint8Array(this.#bytes.buffer, at, count);
  }

  /** The client was sent the write. */
  sent(slot: number): void {
    this.#store(slot * RECORD_WORDS + WRITE_STATE, SENT);
  }

  /** The device process is going to be sent the reply, as that message of all. */
  answering(slot: number, message: number): void {
    this.#words[slot * RECORD_WORDS + REPLY] = message;
    this.#store(slot * RECORD_WORDS + REPLY_STATE, ANSWERED);
  }

  /** Nobody waits for it any more; its bytes may still be in use. */
  forget(slot: number): void {
    if (this.#words[slot * RECORD_WORDS] !== FREE) this.#store(slot * RECORD_WORDS, FREE);
  }

  /** The slot may be used again. */
  release(slot: number): void {
    this.forget(slot);
    if (this.#isTaken[slot]) this.#taken--;
    this.#isTaken[slot] = false;
  }

  /** What another bridge left, in order, whose slots are taken; undefined when it is damaged. */
  load(): Transfer[] | undefined {
    const all: Transfer[] = [];
    for (let slot = 0; slot < MAX_TRANSFERS; slot++) {
      const at = slot * RECORD_WORDS;
      const words = this.#words.subarray(at, at + RECORD_WORDS);
      if (words[STATE] === FREE) continue;
      const [serial, id, command, flags, low, high, count] = words.subarray(SERIAL);
      if (words[STATE] !== LIVE || words[CHECK] !== this.#check(slot) || count > MAX_DATA_XFER_SIZE) return undefined;
      const reply = words[REPLY_STATE] === ANSWERED ? words[REPLY] : undefined;
      const isSent = words[WRITE_STATE] === SENT;
      all.push({ slot, serial, id, command, flags, address: high * 2 ** 32 + low, count, isSent, reply });
      this.#take(slot);
    }
    all.sort((a, b) => (a.serial - b.serial) | 0);
    this.#serial = all.at(-1)?.serial ?? 0;
    return all;
  }

  #take(slot: number): void {
    this.#isTaken[slot] = true;
    this.#taken++;
  }

  #check(slot: number): number {
    let check = 0x811c9dc5 ^ slot;
    for (let n = SERIAL; n < CHECK; n++) {
      check = Math.imul(check ^ this.#words[slot * RECORD_WORDS + n], 0x01000193);
      check ^= check >>> 15;
    }
    return check >>> 0;
  }

  #store(at: number, value: number): void {
    Atomics.store(this.#words, at, value);
    crashPoint?.();
  }
}
