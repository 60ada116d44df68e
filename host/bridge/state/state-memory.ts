/**
 * The state of one session, in its memfd. Nothing here is for every message: positions in rings, calls and the bytes
 * that they move are the data path's to store, at the places that `LAYOUT` has.
 *
 * It starts from zeros, or from what read-state.ts has accepted.
 */
import { close, createMemory, fileStatus, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import { PAGE_SIZE } from "../../../shared/limits.js";
import { PATH_STATE_SIZE } from "../../../shared/vfio-user/socket/access-path.js";
import { StreamMemory } from "../../../shared/vfio-user/socket/stream-memory.js";
import { ControlState } from "./control-state.js";
import { FdKeeper, type Store } from "./fd-keeper.js";
import { describeFd, type FdDescription } from "./fd-kinds.js";
import {
  ACCEPTED,
  type Accepted,
  Header,
  Identity,
  LAYOUT,
  LAYOUT_NUMBER,
  MAGIC_HIGH,
  MAGIC_LOW,
  PAIRS,
  type PairName,
  SLOTS,
  type SlotsName,
  type StreamName,
  stateName,
  VERSION,
  type WordName,
} from "./layout.js";
import { PENDING_IDS_SIZE, PendingIds } from "./pending-ids.js";
import { readState, type SavedState } from "./read-state.js";
import { checkOf, hashText, StateBytes } from "./state-bytes.js";
import { Pair, Slots } from "./tables.js";
import { TRANSFERS_SIZE, Transfers } from "./transfers.js";

/** What a session is. */
export interface SessionIdentity {
  /** Its sockets as the command line has them: paths, or numbers. */
  readonly sockets: readonly [vfioUser: string, vhostUser: string];
  readonly windowSize: number;
}

/** What came back of a session, by what is behind its number in the names; see KEPT_NAME. */
export type KeptFds = ReadonlyMap<string, number>;

type Pairs = { readonly [Name in PairName]: Pair<Name> };
type AllSlots = { readonly [Name in SlotsName]: Slots<Name> };

export class StateMemory {
  readonly bytes: StateBytes;
  readonly control: ControlState;
  readonly fds: FdKeeper;
  /** The session's number, which no other one of this process has. */
  readonly number: number;
  readonly #fd: number;
  readonly #pairs: Pairs;
  readonly #slots: AllSlots;
  readonly #store: Store | undefined;
  readonly #accepted = new Map<Accepted, number | undefined>();
  readonly #streams = new Map<StreamName, StreamMemory>();

  private constructor(fd: number, number: number, store: Store | undefined) {
    this.#fd = fd;
    this.number = number;
    this.#store = store;
    const bytes = new StateBytes(mapFile(fd, 0, LAYOUT.size, PROT_READ | PROT_WRITE));
    this.bytes = bytes;
    const entries = <Name extends string, Value>(names: object, make: (name: Name) => Value) =>
      Object.fromEntries(Object.keys(names).map((name) => [name, make(name as Name)]));
    this.#pairs = entries(PAIRS, (name: PairName) => new Pair(bytes, name)) as unknown as Pairs;
    this.#slots = entries(SLOTS, (name: SlotsName) => new Slots(bytes, name)) as unknown as AllSlots;
    this.control = new ControlState(bytes, () => this.fds.removeEnded());
    this.fds = new FdKeeper(bytes, this.slots("fds"), number, store, () => this.control.touch());
  }

  /** One that nobody goes on with: for what has no session. */
  static temporary(): StateMemory {
    return StateMemory.create(0, { sockets: ["", ""], windowSize: 0 }, new Uint8Array(16));
  }

  /** A new one, which the store has. @throws SystemError when there is no room for it */
  static create(number: number, identity: SessionIdentity, uuid: Uint8Array, store?: Store): StateMemory {
    const fd = createMemory("vfio-user-state", LAYOUT.size, false);
    try {
      const state = new StateMemory(fd, number, store);
      initialize(state.bytes, number, identity, uuid);
      store?.store(stateName(number), fd);
      return state;
    } catch (error) {
      close(fd);
      throw error;
    }
  }

  /**
   * That of another bridge, with the descriptors that came back of it, which are its own from now on. @throws
   * StateError; nothing has become of the descriptors then
   */
  static open(number: number, kept: KeptFds, identity: SessionIdentity, store?: Store) {
    const { fd, saved } = readKept(number, kept, identity);
    const state = new StateMemory(fd, number, store);
    state.fds.adopt(saved.slots.fds, kept);
    for (const which of ACCEPTED) state.#accepted.set(which, kept.get(which));
    return { state, saved };
  }

  /** Whether what came back is, or was, of that session. */
  static isOf(kept: KeptFds, { sockets }: SessionIdentity): boolean {
    const fd = kept.get("state") ?? -1;
    const { kind, size } = fd < 0 ? { kind: "none", size: 0 } : fileStatus(fd);
    if (kind !== "memory" || size < PAGE_SIZE) return false;
    const data = new DataView(mapFile(fd, 0, PAGE_SIZE, PROT_READ));
    return Identity.view(data, LAYOUT.identity).sockets === hashText(sockets.join("\0"));
  }

  pair<Name extends PairName>(name: Name): Pair<Name> {
    return this.#pairs[name];
  }

  slots<Name extends SlotsName>(name: Name): Slots<Name> {
    return this.#slots[name];
  }

  /** Where the bytes of a socket are. @throws SystemError when there is no room for it */
  stream(name: StreamName): StreamMemory {
    let stream = this.#streams.get(name);
    if (stream === undefined) {
      const { fds } = this;
      const keeper = { keep: (fd: number) => fds.keep(fd), take: (id: number) => fds.takeAny(id) };
      stream = new StreamMemory(this.#fd, LAYOUT.streams[name], keeper);
      this.#streams.set(name, stream);
    }
    return stream;
  }

  /** The access path's part. */
  get path(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.bytes.buffer, LAYOUT.path, PATH_STATE_SIZE);
  }

  /** Ids of commands that the device process has not answered. */
  get pendingIds(): PendingIds {
    return new PendingIds(new Uint8Array(this.bytes.buffer, LAYOUT.pendingIds, PENDING_IDS_SIZE));
  }

  /** DMA by messages that the device process waits for. */
  get transfers(): Transfers {
    return new Transfers(new Uint8Array(this.bytes.buffer, LAYOUT.transfers, TRANSFERS_SIZE));
  }

  word(name: WordName): number {
    return this.bytes.word(LAYOUT.words[name]) ?? 0;
  }

  /**
   * A connection was just accepted: it outlives the process from now on. `known` is to be called when the state knows
   * of it.
   */
  accepted(which: Accepted, fd: number): void {
    this.#store?.store(`${this.number}.${which}`, fd);
  }

  known(which: Accepted): void {
    this.control.touch();
    this.control.commit();
    this.#store?.remove(`${this.number}.${which}`);
  }

  /** A connection that another bridge accepted, unless it is the one that the state knows: `known`. */
  takeAccepted(which: Accepted, known: number): number | undefined {
    const fd = this.#accepted.get(which);
    this.#accepted.delete(which);
    if (fd === undefined) return undefined;
    if (known < 0 || fileStatus(fd).inode !== fileStatus(known).inode) return fd;
    this.#store?.remove(`${this.number}.${which}`);
    close(fd);
    return undefined;
  }

  /** Something of it found no room: the next bridge does not go on with it. */
  countLost(): void {
    this.bytes.setWord(LAYOUT.words.unkept, this.word("unkept") + 1);
  }

  /** To be called before anything is done with a state that was read. */
  countAttempt(): void {
    this.bytes.setWord(LAYOUT.words.attempts, this.word("attempts") + 1);
  }

  /** The bridge serves: the next one may try as often again. */
  serves(): void {
    this.bytes.setWord(LAYOUT.words.attempts, 0);
  }

  /** The session is over, and all of its descriptors are closed. */
  close(): void {
    this.control.end();
    this.fds.end();
    for (const [which, fd] of this.#accepted) {
      if (fd === undefined) continue;
      this.#store?.remove(`${this.number}.${which}`);
      close(fd);
    }
    this.#accepted.clear();
    this.#store?.remove(stateName(this.number));
    close(this.#fd);
  }
}

function readKept(number: number, kept: KeptFds, identity: SessionIdentity): { fd: number; saved: SavedState } {
  const fd = kept.get("state") ?? -1;
  const { kind, size } = fd < 0 ? { kind: "none", size: 0 } : fileStatus(fd);
  const whole = kind === "memory" ? Math.floor(Math.min(size, LAYOUT.size) / PAGE_SIZE) * PAGE_SIZE : 0;
  const bytes = new StateBytes(whole > 0 ? mapFile(fd, 0, whole, PROT_READ) : new ArrayBuffer(0));
  return { fd, saved: readState(bytes, size, number, identity, describeAll(kept)) };
}

function describeAll(kept: KeptFds): Map<string, FdDescription> {
  return new Map([...kept].map(([name, fd]) => [name, describeFd(fd)]));
}

function uuidValues(uuid: Uint8Array) {
  const [uuidA, uuidB, uuidC, uuidD] = new Uint32Array(new Uint8Array(uuid).slice(0, 16).buffer);
  return { uuidA, uuidB, uuidC, uuidD };
}

/** Makes a state of zeros. */
export function initialize(bytes: StateBytes, number: number, identity: SessionIdentity, uuid: Uint8Array): void {
  const { sockets, windowSize } = identity;
  const values = { sockets: hashText(sockets.join("\0")), windowSize, ...uuidValues(uuid), number };
  bytes.writeRecord(Identity, LAYOUT.identity, values, 0, number);
  writeHeader(bytes);
}

function writeHeader(bytes: StateBytes): void {
  const values = { magicHigh: MAGIC_HIGH, version: VERSION, layout: LAYOUT_NUMBER, size: LAYOUT.size };
  bytes.writeRecord(Header, 0, values, 0, 0);
  // Last: what has no magic is no state yet. The check knows it.
  const words = new Uint32Array(Header.size / 4);
  words.set(bytes.words.subarray(0, words.length));
  words[0] = MAGIC_LOW;
  bytes.data.setUint32(Header.offsets.check, checkOf(words, 0, Header.offsets.check, 0, 0), true);
  bytes.store(0, MAGIC_LOW);
}
