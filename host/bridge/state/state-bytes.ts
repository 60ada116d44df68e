/** The state's bytes in this process: one mapping, seen in three ways; and the checks that records end with. */
import { crashPoint } from "../../../native/supervision.js";

/** The state of another bridge cannot be taken; the message ends the sentence "the saved state is refused: ...". */
export class StateError extends Error {
  override readonly name = "StateError";
  constructor(reason: string) {
    super(`the saved state is refused: ${reason}`);
  }
}

export class StateBytes {
  readonly data: DataView;
  readonly words: Uint32Array;
  readonly bytes: Uint8Array;
  readonly #pairs: BigUint64Array;

  constructor(readonly buffer: ArrayBuffer) {
    this.data = new DataView(buffer);
    this.words = new Uint32Array(buffer);
    this.bytes = new Uint8Array(buffer);
    this.#pairs = new BigUint64Array(buffer);
  }

  /** Stores a checked word at once. */
  setWord(offset: number, value: number): void {
    const low = BigInt(value >>> 0);
    Atomics.store(this.#pairs, offset / 8, low | ((~low & 0xffff_ffffn) << 32n));
    crashPoint?.();
  }

  /** A checked word's value; undefined when it is damaged. One that was never stored is 0. */
  word(offset: number): number | undefined {
    const value = Atomics.load(this.#pairs, offset / 8);
    const low = value & 0xffff_ffffn;
    return value === 0n || value >> 32n === (~low & 0xffff_ffffn) ? Number(low) : undefined;
  }

  /** A lone word, stored at once. */
  store(offset: number, value: number): void {
    Atomics.store(this.words, offset / 4, value);
    crashPoint?.();
  }

  /** Writes a record and its check; what is left out becomes 0. Nobody may look at it before a word says so. */
  writeRecord(record: Checked, at: number, values: object, table: number, place: number): void {
    this.words.fill(0, at / 4, (at + record.size) / 4);
    Object.assign(record.view(this.data, at), values);
    const check = checkOf(this.words, at, record.offsets.check, table, place);
    this.data.setUint32(at + record.offsets.check, check, true);
  }
}

/** A structure whose last field is the check. */
export interface Checked {
  readonly offsets: Readonly<Record<string, number>> & { readonly check: number };
  readonly size: number;
  view(data?: DataView, offset?: number): object;
}

/**
 * The check over the words of bytes[offset, offset + size), both multiples of 4. Each step can be undone, so that no
 * change of one word is without effect.
 */
export function checkOf(words: Uint32Array, offset: number, size: number, table: number, place: number): number {
  let check = step(step(0x811c9dc5, table), place);
  for (let i = offset / 4; i < (offset + size) / 4; i++) check = step(check, words[i]);
  return check >>> 0;
}

export function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(text)) hash = step(hash, byte);
  return hash >>> 0;
}

function step(check: number, word: number): number {
  const next = Math.imul(check ^ word, 0x01000193);
  return next ^ (next >>> 15);
}
