/**
 * File descriptors of a session that outlive the process: each is in the store of whoever started it, by a number that
 * is never used again, and so are those that peers hand over before anybody relies on them. Whoever refers to one in
 * the state has its number. It leaves the store when it is closed (shared/peer-fds.ts), which is done once nothing in
 * the state refers to it.
 *
 * Of a file of memory one descriptor is kept for all that open it alike: a driver VM's RAM has thousands.
 */
import { close, duplicate, memoryStatus } from "../../../native/index.js";
import type { FdStore } from "../../../shared/notify/fd-store.js";
import { closePeerFd, watchClose } from "../../../shared/peer-fds.js";
import type { Saved } from "./check-slots.js";
import { describeFd, kindName } from "./fd-kinds.js";
import { FD_KIND, fdName, LAYOUT } from "./layout.js";
import { type StateBytes, StateError } from "./state-bytes.js";
import type { Slots } from "./tables.js";

/** Where descriptors outlive this process. */
export type Store = Pick<FdStore, "store" | "remove">;

interface Entry {
  readonly id: number;
  readonly kind: number;
  /** Of its record; undefined for one that could not be kept. */
  readonly slot: number | undefined;
  /** Of a file of memory: what it has in common with others. */
  readonly file: string | undefined;
  /** Descriptors of this process that stand for it. */
  readonly fds: Set<number>;
}

const status = new Float64Array(6);

export class FdKeeper {
  readonly #bytes: StateBytes;
  readonly #slots: Slots<"fds">;
  readonly #session: number;
  readonly #store: Store | undefined;
  readonly #byFd = new Map<number, Entry>();
  readonly #byId = new Map<number, Entry>();
  readonly #byFile = new Map<string, Entry>();
  /** Closed here, and still in the store: what is written of the control state may name them. */
  readonly #ended: Entry[] = [];
  readonly #noteEnd: () => void;
  /** What came back, and nobody has taken yet. */
  readonly #untaken = new Map<number, number>();

  /** `noteEnd`: called when one was closed; `removeEnded` is to follow when the control state was written. */
  constructor(
    bytes: StateBytes,
    slots: Slots<"fds">,
    session: number,
    store: Store | undefined,
    noteEnd: () => void = () => this.removeEnded(),
  ) {
    this.#bytes = bytes;
    this.#slots = slots;
    this.#session = session;
    this.#store = store;
    this.#noteEnd = noteEnd;
  }

  /**
   * Keeps a descriptor, which stays the caller's, until it is closed; returns its number. It is in the store when this
   * returns. One that cannot be kept has a number all the same, and the next bridge does not go on with the session.
   */
  keep(fd: number): number {
    const known = this.#byFd.get(fd);
    if (known !== undefined) return known.id;
    const { kind, device, inode } = describeFd(fd);
    const file = kind === FD_KIND.MEMORY ? fileKey(fd) : undefined;
    const same = file === undefined ? undefined : this.#byFile.get(file);
    if (same !== undefined) {
      this.#refer(same, fd);
      return same.id;
    }
    const id = (this.#bytes.word(LAYOUT.words.lastFd) ?? 0) + 1;
    this.#bytes.setWord(LAYOUT.words.lastFd, id);
    const entry = { id, kind, slot: this.#put(id, fd, { kind, device, inode }), file, fds: new Set<number>() };
    if (entry.slot === undefined) this.#countUnkept(1);
    this.#byId.set(id, entry);
    if (file !== undefined) this.#byFile.set(file, entry);
    this.#refer(entry, fd);
    return id;
  }

  /** The number of a descriptor of this process; 0 when it is not kept. */
  idOf(fd: number): number {
    return this.#byFd.get(fd)?.id ?? 0;
  }

  /** A descriptor is about to be closed. */
  forget(fd: number): void {
    const entry = this.#byFd.get(fd);
    if (entry === undefined) return;
    watchClose(fd, undefined);
    this.#byFd.delete(fd);
    entry.fds.delete(fd);
    if (entry.fds.size > 0) return;
    this.#byId.delete(entry.id);
    if (entry.file !== undefined) this.#byFile.delete(entry.file);
    this.#ended.push(entry);
    this.#noteEnd();
  }

  /** Nothing that is written names those that were closed. */
  removeEnded(): void {
    for (const { id, slot } of this.#ended.splice(0)) this.#remove(id, slot);
  }

  /** Closes a descriptor that this process made. */
  close(fd: number): void {
    this.forget(fd);
    close(fd);
  }

  /**
   * After a take-over: a descriptor for a number, the caller's. Who asks again gets another one.
   * @throws StateError when none of that kind (FD_KIND) came back by that number, or SystemError when there is no room
   */
  take(id: number, kind: number): number {
    const entry = this.#byId.get(id);
    if (entry?.kind !== kind) throw new StateError(`the descriptor ${id} is not ${kindName(kind)}`);
    return this.#take(entry);
  }

  /** The same for one of any kind; -1 when none came back. @throws SystemError when there is no room */
  takeAny(id: number): number {
    const entry = this.#byId.get(id);
    return entry === undefined ? -1 : this.#take(entry);
  }

  #take(entry: Entry): number {
    const { id } = entry;
    const untaken = this.#untaken.get(id);
    this.#untaken.delete(id);
    const fd = untaken ?? duplicate([...entry.fds][0]);
    this.#refer(entry, fd);
    return fd;
  }

  /** Takes what came back for these records; `kept` has them by number. */
  adopt(records: readonly Saved<"fds">[], kept: ReadonlyMap<string, number>): void {
    for (const { slot, isPending, values } of records) {
      const { id, kind } = values;
      const fd = kept.get(String(id));
      if (fd === undefined || isPending) {
        // It was about to be stored, or to be removed.
        if (fd !== undefined) closePeerFd(fd);
        this.#remove(id, slot);
        continue;
      }
      const file = kind === FD_KIND.MEMORY ? fileKey(fd) : undefined;
      const entry = { id, kind, slot, file, fds: new Set<number>() };
      this.#byId.set(id, entry);
      if (file !== undefined && !this.#byFile.has(file)) this.#byFile.set(file, entry);
      this.#untaken.set(id, fd);
    }
  }

  /** All is taken that the state refers to: what is left is of something that was about to begin, or had ended. */
  sweep(): void {
    for (const [id, fd] of this.#untaken) {
      const entry = this.#byId.get(id);
      this.#byId.delete(id);
      if (entry?.file !== undefined && this.#byFile.get(entry.file) === entry) this.#byFile.delete(entry.file);
      this.#remove(id, entry?.slot);
      closePeerFd(fd);
    }
    this.#untaken.clear();
  }

  /** The session is over: nothing is kept any more, and what is still open is closed. */
  end(): void {
    this.sweep();
    for (const fd of [...this.#byFd.keys()]) closePeerFd(fd);
    this.removeEnded();
  }

  #refer(entry: Entry, fd: number): void {
    entry.fds.add(fd);
    this.#byFd.set(fd, entry);
    watchClose(fd, this);
  }

  /** Puts it into the store; the slot of its record, or undefined when that cannot be. */
  #put(id: number, fd: number, what: { kind: number; device: number; inode: number }): number | undefined {
    if (what.kind === 0) return undefined;
    const slot = this.#slots.add({ id, ...what }, "pending");
    if (slot === undefined) return undefined;
    if (this.#store?.store(fdName(this.#session, id), fd) === false) {
      this.#slots.remove(slot);
      return undefined;
    }
    this.#slots.setState(slot, "live");
    return slot;
  }

  #remove(id: number, slot: number | undefined): void {
    if (slot === undefined) {
      this.#countUnkept(-1);
      return;
    }
    this.#slots.setState(slot, "pending");
    this.#store?.remove(fdName(this.#session, id));
    this.#slots.remove(slot);
  }

  #countUnkept(change: number): void {
    this.#bytes.setWord(LAYOUT.words.unkept, (this.#bytes.word(LAYOUT.words.unkept) ?? 0) + change);
  }
}

/** What descriptors have in common that open the same file in the same way. */
function fileKey(fd: number): string {
  memoryStatus(fd, status);
  const [, isWritable, , , device, inode] = status;
  return `${device}:${inode}:${isWritable}`;
}
