/** Pairs and slots of a session's state, and how they are changed: see layout.ts. All changes end with one store. */
import { LAYOUT, PAIR_HEAD, PAIRS, type PairName, SLOT, SLOT_HEAD, SLOTS, type SlotsName, slotSize } from "./layout.js";
import type { StateBytes } from "./state-bytes.js";

type RecordOf<Definition> = Definition extends { record: { encode(values: infer Fields): unknown } } ? Fields : never;
/** What is written of a pair or a slot; the rest is this file's. */
export type PairValues<Name extends PairName> = Omit<RecordOf<(typeof PAIRS)[Name]>, "sequence" | "check">;
export type SlotValues<Name extends SlotsName> = Omit<RecordOf<(typeof SLOTS)[Name]>, "serial" | "check">;

export class Pair<Name extends PairName> {
  readonly #bytes: StateBytes;
  readonly #name: Name;
  readonly #at: number;

  constructor(bytes: StateBytes, name: Name) {
    this.#bytes = bytes;
    this.#name = name;
    this.#at = LAYOUT.pairs[name];
  }

  /** Puts all of these values in the place of the last ones, at once; fields that are left out become 0. */
  write(values: PairValues<Name>): void {
    const { record, number } = PAIRS[this.#name];
    const old = this.#bytes.word(this.#at) ?? 0;
    const which = old === 1 ? 2 : 1;
    const at = copyAt(this.#at, which, record.size);
    const sequence = old === 0 ? 0 : this.#bytes.words[copyAt(this.#at, old, record.size) / 4];
    this.#bytes.writeRecord(record, at, { ...values, sequence: (sequence + 1) >>> 0 }, number, which);
    this.#bytes.setWord(this.#at, which);
  }
}

/** Of copy 1 or 2, which a pair's word names; 0 is a pair that was never written. */
export const copyAt = (pair: number, which: number, size: number) => pair + PAIR_HEAD + (which - 1) * size;

export class Slots<Name extends SlotsName> {
  readonly #bytes: StateBytes;
  readonly #name: Name;
  readonly #at: number;
  readonly #used: number;
  readonly #free: number[] = [];
  #serial = 0;

  constructor(bytes: StateBytes, name: Name) {
    this.#bytes = bytes;
    this.#name = name;
    this.#at = LAYOUT.slots[name];
    this.#used = LAYOUT.used[name];
    for (let slot = 0; slot < this.#count(); slot++) {
      const at = this.#slotAt(slot);
      if (bytes.words[at / 4] === SLOT.FREE) this.#free.push(slot);
      else this.#serial = Math.max(this.#serial, bytes.words[at / 4 + 1]);
    }
  }

  /**
   * Puts a record into a free slot and returns its number; undefined when there is none. "pending" is for what is not
   * complete yet: a file descriptor that is about to be stored, or to be removed.
   */
  add(values: SlotValues<Name>, state: "live" | "pending" = "live"): number | undefined {
    const { record, number, count } = SLOTS[this.#name];
    let slot = this.#free.pop();
    if (slot === undefined) {
      slot = this.#count();
      if (slot === count) return undefined;
      // The slot is free, being zeros, until its state is stored.
      this.#bytes.setWord(this.#used, slot + 1);
    }
    const at = this.#slotAt(slot);
    this.#bytes.writeRecord(record, at + SLOT_HEAD, { ...values, serial: ++this.#serial }, number, slot);
    this.#bytes.store(at, state === "live" ? SLOT.LIVE : SLOT.PENDING);
    return slot;
  }

  setState(slot: number, state: "live" | "pending"): void {
    this.#bytes.store(this.#slotAt(slot), state === "live" ? SLOT.LIVE : SLOT.PENDING);
  }

  /** Puts another record in the place of one; the old one stays where there is no room. Returns the new number. */
  replace(slot: number, values: SlotValues<Name>): number | undefined {
    const added = this.add(values);
    if (added !== undefined) this.remove(slot);
    return added;
  }

  remove(slot: number): void {
    this.#bytes.store(this.#slotAt(slot), SLOT.FREE);
    this.#free.push(slot);
  }

  #count(): number {
    return this.#bytes.word(this.#used) ?? 0;
  }

  #slotAt(slot: number): number {
    return this.#at + slot * slotSize(this.#name);
  }
}
