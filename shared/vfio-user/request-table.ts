/**
 * Requests to one peer whose replies have not come: which ids are taken, for which command, who waits for the reply,
 * and since when. Both ends of the link and both sides of vfio-user have one. How a request is sent and what is made of
 * a reply is theirs.
 *
 * An id is used again only when its reply came, or never will (the request was not sent, or the connection is another
 * one): otherwise a late reply would be taken for another's. So the id of a request that nobody waits for any more
 * stays taken. Ids are reused in the order in which they became free, so that a reply that is sent twice does no harm
 * for as long as possible.
 */
import { TICKS_PER_DEADLINE } from "../deadline.js";

/** Room at first; it doubles when it is needed. A power of two. */
const INITIAL_SLOTS = 64;
/** In place of a command. */
const FREE = 0;

export class RequestTable<Waiter extends object> {
  /** Calls of `tick` so far: the clock of the deadlines. */
  now = 0;
  readonly #slots: number;
  readonly #reserve: number;
  /** By id; undefined where nobody waits. */
  readonly #waiters: (Waiter | undefined)[] = [];
  /** By id: the command that it is taken for, or FREE. */
  #commands = new Uint16Array(0);
  /** By id, in ticks. */
  #startedAt = new Uint32Array(0);
  /** Ids that are free, a ring: `#freeCount` from `#freeHead` on. */
  #free = new Uint16Array(0);
  #freeHead = 0;
  #freeCount = 0;
  #waiting = 0;

  /**
   * @param slots ids at most, a power of two up to 65536
   * @param reserve how many of them only urgent requests take
   */
  constructor(slots: number, reserve = 0) {
    this.#slots = slots;
    this.#reserve = reserve;
    this.#grow(Math.min(slots, INITIAL_SLOTS));
  }

  /** Ids that are taken. */
  get size(): number {
    return this.#commands.length - this.#freeCount;
  }

  /** How many of them somebody waits for. */
  get waiting(): number {
    return this.#waiting;
  }

  /**
   * Takes an id for a request of `command` (not 0) that began at `startedAt`, for `waiter`. -1 when none may be taken.
   */
  take(command: number, waiter: Waiter, isUrgent = false, startedAt = this.now): number {
    if (!isUrgent && this.size >= this.#slots - this.#reserve) return -1;
    if (this.#freeCount === 0) {
      if (this.#commands.length >= this.#slots) return -1;
      this.#grow(2 * this.#commands.length);
    }
    const id = this.#free[this.#freeHead];
    this.#freeHead = (this.#freeHead + 1) & (this.#free.length - 1);
    this.#freeCount--;
    this.#commands[id] = command;
    this.#startedAt[id] = startedAt;
    this.#waiters[id] = waiter;
    this.#waiting++;
    return id;
  }

  /** In a table that nothing was taken from yet: these ids are taken, for nobody, and are used again last. */
  restore(taken: readonly { readonly id: number; readonly command: number }[]): void {
    while (taken.some(({ id }) => id >= this.#commands.length)) this.#grow(2 * this.#commands.length);
    for (const { id, command } of taken) this.#commands[id] = command;
    const start = taken.length > 0 ? taken[taken.length - 1].id + 1 : 0;
    const ids = Array.from(this.#commands, (_, n) => (n + start) % this.#commands.length);
    const free = ids.filter((id) => this.#commands[id] === FREE);
    this.#free.set(free);
    this.#freeHead = 0;
    this.#freeCount = free.length;
  }

  /** Somebody waits for the reply to a request whose id is taken for nobody. */
  adopt(id: number, waiter: Waiter): void {
    this.#waiters[id] = waiter;
    this.#waiting++;
  }

  /**
   * Whether a reply to `command` with this `id`, any number, is one to a request. Whoever has dealt with it calls
   * `free`.
   */
  expects(id: number, command: number): boolean {
    return command !== FREE && this.#commands[id] === command;
  }

  isTaken(id: number): boolean {
    return (this.#commands[id] ?? FREE) !== FREE;
  }

  /** Who waits for the reply; undefined when nobody does any more. */
  waiterOf(id: number): Waiter | undefined {
    return this.#waiters[id];
  }

  /** The reply came, or none ever will. Nothing happens when the id, any number, is not taken. */
  free(id: number): void {
    if (!this.#commands[id]) return;
    this.#commands[id] = FREE;
    if (this.#waiters[id] !== undefined) this.#waiting--;
    this.#waiters[id] = undefined;
    this.#free[(this.#freeHead + this.#freeCount++) & (this.#free.length - 1)] = id;
  }

  /** Nobody waits any more for those that `concerns`; their ids stay taken. Returns who did. */
  abandon(concerns: (waiter: Waiter) => boolean = () => true): Waiter[] {
    return this.#abandon((waiter) => concerns(waiter));
  }

  /**
   * Called TICKS_PER_DEADLINE times within the deadline. Abandons what has had no reply for all of it, and returns who
   * waited.
   */
  tick(): Waiter[] {
    this.now++;
    if (this.#waiting === 0) return [];
    return this.#abandon((_, id) => this.now - this.#startedAt[id] >= TICKS_PER_DEADLINE);
  }

  /** No reply comes to any of the requests: all ids are free. Returns who waited. */
  dropAll(): Waiter[] {
    const waiters = this.abandon();
    for (let id = 0; id < this.#commands.length; id++) this.free(id);
    return waiters;
  }

  #abandon(concerns: (waiter: Waiter, id: number) => boolean): Waiter[] {
    const abandoned: Waiter[] = [];
    for (let id = 0; id < this.#waiters.length; id++) {
      const waiter = this.#waiters[id];
      if (waiter === undefined || !concerns(waiter, id)) continue;
      this.#waiters[id] = undefined;
      abandoned.push(waiter);
    }
    this.#waiting -= abandoned.length;
    return abandoned;
  }

  /** Makes room for `capacity` ids. None is free. */
  #grow(capacity: number): void {
    const from = this.#commands.length;
    const larger = new Uint16Array(capacity);
    larger.set(this.#commands);
    const startedAt = new Uint32Array(capacity);
    startedAt.set(this.#startedAt);
    this.#commands = larger;
    this.#startedAt = startedAt;
    this.#free = new Uint16Array(capacity);
    this.#freeHead = 0;
    this.#freeCount = capacity - from;
    for (let id = from; id < capacity; id++) {
      this.#free[id - from] = id;
      this.#waiters.push(undefined);
    }
  }
}
