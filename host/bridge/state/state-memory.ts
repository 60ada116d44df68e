/**
 * Writes the state as layout.ts lays it out. Nothing here is for every message: positions in rings, calls and the bytes
 * that they move are the data path's to store, at the places that `LAYOUT` has.
 *
 * It starts from zeros, or from what read-state.ts has accepted. All writes end with one store of a word.
 */
import { close, createMemory, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import {
  ATTEMPTS_AT,
  CALLS,
  Call,
  type CallName,
  checkOf,
  Header,
  hashText,
  Identity,
  LAYOUT,
  LAYOUT_NUMBER,
  MAGIC_HIGH,
  MAGIC_LOW,
  NO_RESULT,
  PAIR_HEAD,
  PAIRS,
  type PairName,
  SLOT,
  SLOT_HEAD,
  SLOTS,
  type SlotsName,
  STATE_NAME,
  STREAMS,
  type StreamName,
  sessionAt,
  slotSize,
  stateSize,
  VERSION,
} from "./layout.js";

export interface SessionIdentity {
  readonly socketPath: string;
  readonly vhostUserSocketPath: string;
  readonly windowSize: number;
  readonly uuid: Uint8Array;
}

/** Places of the state's bytes in this process: one mapping, seen in three ways. */
export class StateBytes {
  readonly data: DataView;
  readonly words: Uint32Array;
  readonly #pairs: BigUint64Array;

  constructor(readonly buffer: ArrayBuffer) {
    this.data = new DataView(buffer);
    this.words = new Uint32Array(buffer);
    this.#pairs = new BigUint64Array(buffer);
  }

  /** Stores a checked word at once. */
  setWord(offset: number, value: number): void {
    const low = BigInt(value >>> 0);
    Atomics.store(this.#pairs, offset / 8, low | ((~low & 0xffff_ffffn) << 32n));
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
  }
}

export class StateMemory {
  private constructor(
    /** The memfd, which is the owner's to put into the store (as STATE_NAME), and to keep open. */
    readonly fd: number,
    readonly bytes: StateBytes,
    readonly sessions: readonly SessionState[],
  ) {}

  /** A new one. @throws a SystemError when there is no room for it */
  static create(identities: readonly SessionIdentity[]): StateMemory {
    const fd = createMemory(STATE_NAME, stateSize(identities.length), false);
    try {
      const state = StateMemory.of(fd, identities.length);
      identities.forEach((identity, index) => {
        writeIdentity(state.bytes, index, identity);
        for (const stream of Object.keys(STREAMS) as StreamName[]) {
          for (const name of CALLS) state.bytes.store(callAt(index, stream, name) + Call.offsets.result, NO_RESULT);
        }
      });
      writeHeader(state.bytes, identities.length);
      return state;
    } catch (error) {
      close(fd);
      throw error;
    }
  }

  /** One that readState() has accepted. */
  static of(fd: number, sessions: number): StateMemory {
    const bytes = new StateBytes(mapFile(fd, 0, stateSize(sessions), PROT_READ | PROT_WRITE));
    const all = Array.from({ length: sessions }, (_, index) => new SessionState(bytes, index));
    return new StateMemory(fd, bytes, all);
  }

  /** To be called before anything is done with a state that was read. */
  countAttempt(): void {
    this.bytes.setWord(ATTEMPTS_AT, (this.bytes.word(ATTEMPTS_AT) ?? 0) + 1);
  }

  /** The bridge serves: the next one may try as often again. */
  serves(): void {
    this.bytes.setWord(ATTEMPTS_AT, 0);
  }
}

type Pairs = { readonly [Name in PairName]: Pair<Name> };
type AllSlots = { readonly [Name in SlotsName]: Slots<Name> };

export class SessionState {
  readonly #pairs: Pairs;
  readonly #slots: AllSlots;

  constructor(bytes: StateBytes, index: number) {
    const entries = <Name extends string, Value>(names: object, make: (name: Name) => Value) =>
      Object.fromEntries(Object.keys(names).map((name) => [name, make(name as Name)]));
    this.#pairs = entries(PAIRS, (name: PairName) => new Pair(bytes, index, name)) as unknown as Pairs;
    this.#slots = entries(SLOTS, (name: SlotsName) => new Slots(bytes, index, name)) as unknown as AllSlots;
  }

  pair<Name extends PairName>(name: Name): Pair<Name> {
    return this.#pairs[name];
  }

  slots<Name extends SlotsName>(name: Name): Slots<Name> {
    return this.#slots[name];
  }
}

type RecordOf<Definition> = Definition extends { record: { encode(values: infer Fields): unknown } } ? Fields : never;
/** What is written of a pair or a slot; the rest is this file's. */
export type PairValues<Name extends PairName> = Omit<RecordOf<(typeof PAIRS)[Name]>, "sequence" | "check">;
export type SlotValues<Name extends SlotsName> = Omit<RecordOf<(typeof SLOTS)[Name]>, "serial" | "check">;

class Pair<Name extends PairName> {
  readonly #bytes: StateBytes;
  readonly #name: Name;
  readonly #at: number;

  constructor(bytes: StateBytes, session: number, name: Name) {
    this.#bytes = bytes;
    this.#name = name;
    this.#at = sessionAt(session) + LAYOUT.pairs[name];
  }

  /** Puts all of these values in the place of the last ones, at once; fields that are left out become 0. */
  write(values: PairValues<Name>): void {
    const { record, number } = PAIRS[this.#name];
    const old = this.#bytes.word(this.#at) ?? 0;
    const which = old === 1 ? 2 : 1;
    const at = copyAt(this.#at, which, record.size);
    const sequence = old === 0 ? 0 : this.#bytes.words[copyAt(this.#at, old, record.size) / 4];
    writeRecord(this.#bytes, record, at, { ...values, sequence: (sequence + 1) >>> 0 }, number, which);
    this.#bytes.setWord(this.#at, which);
  }
}

/** Of copy 1 or 2, which a pair's word names; 0 is a pair that was never written. */
export const copyAt = (pair: number, which: number, size: number) => pair + PAIR_HEAD + (which - 1) * size;

class Slots<Name extends SlotsName> {
  readonly #bytes: StateBytes;
  readonly #name: Name;
  readonly #at: number;
  readonly #used: number;
  readonly #free: number[] = [];
  #serial = 0;

  constructor(bytes: StateBytes, session: number, name: Name) {
    this.#bytes = bytes;
    this.#name = name;
    this.#at = sessionAt(session) + LAYOUT.slots[name];
    this.#used = sessionAt(session) + LAYOUT.used[name];
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
    writeRecord(this.#bytes, record, at + SLOT_HEAD, { ...values, serial: ++this.#serial }, number, slot);
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

export const callAt = (session: number, stream: StreamName, name: CallName) =>
  sessionAt(session) + LAYOUT.calls[stream][name];

/** The identity's numbers of a session. */
export function identityValues(identity: SessionIdentity) {
  const { socketPath, vhostUserSocketPath, windowSize, uuid } = identity;
  const [uuidA, uuidB, uuidC, uuidD] = new Uint32Array(new Uint8Array(uuid).slice(0, 16).buffer);
  return { sockets: hashText(`${socketPath}\0${vhostUserSocketPath}`), windowSize, uuidA, uuidB, uuidC, uuidD };
}

function writeIdentity(bytes: StateBytes, index: number, identity: SessionIdentity): void {
  writeRecord(bytes, Identity, sessionAt(index) + LAYOUT.identity, { ...identityValues(identity), index }, 0, index);
}

function writeHeader(bytes: StateBytes, sessions: number): void {
  const values = {
    magicHigh: MAGIC_HIGH,
    version: VERSION,
    layout: LAYOUT_NUMBER,
    sessions,
    sessionSize: LAYOUT.size,
    size: stateSize(sessions),
  };
  writeRecord(bytes, Header, 0, values, 0, 0);
  // Last: what has no magic is no state yet. The check knows it.
  const words = new Uint32Array(Header.size / 4);
  words.set(bytes.words.subarray(0, words.length));
  words[0] = MAGIC_LOW;
  bytes.data.setUint32(Header.offsets.check, checkOf(words, 0, Header.offsets.check, 0, 0), true);
  bytes.store(0, MAGIC_LOW);
}

interface Checked {
  readonly offsets: Readonly<Record<string, number>>;
  readonly size: number;
  view(data?: DataView, offset?: number): object;
}

function writeRecord(bytes: StateBytes, record: Checked, at: number, values: object, table: number, place: number) {
  bytes.words.fill(0, at / 4, (at + record.size) / 4);
  Object.assign(record.view(bytes.data, at), values);
  const check = checkOf(bytes.words, at, record.offsets.check, table, place);
  bytes.data.setUint32(at + record.offsets.check, check, true);
}
