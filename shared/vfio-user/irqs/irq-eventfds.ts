/**
 * Eventfds that mask or unmask an interrupt when they are signalled (SET_IRQS, DATA_EVENTFD with ACTION_MASK or
 * ACTION_UNMASK). KVM unmasks INTx in this way, without its VMM, when the driver VM has dealt with it.
 */
import { eventfdRead, POLL_READABLE, Poll } from "../../../native/index.js";
import { MAX_IRQ_VECTORS } from "../../limits.js";
import { closePeerFd } from "../../peer-fds.js";
import { IrqSetFlags } from "../../spec/vfio-user.js";
import type { IrqSetRequest } from "../backend.js";

/**
 * Signals of one client that are dealt with in one iteration of the event loop. A well-behaved one has one pending, of
 * INTx.
 */
const MOST_PER_TURN = 32;

interface Entry {
  readonly fd: number;
  readonly poll: Poll;
  readonly request: IrqSetRequest;
}

/** `request` has one vector, no data, and the action. Must not reject. */
export type IrqAction = (request: IrqSetRequest) => Promise<void>;

export class IrqEventfds {
  /** By action, index and vector: see `key`. */
  readonly #entries = new Map<number, Entry>();
  /** Signalled, and left to a later iteration. */
  readonly #waiting: Entry[] = [];
  #dealtWith = 0;
  readonly #act: IrqAction;

  constructor(act: IrqAction) {
    this.#act = act;
  }

  /**
   * Takes the eventfds of a request to mask or unmask over; each replaces the one before it, -1 takes it away.
   * @throws SystemError; those that were not set are closed
   */
  set({ flags, index, start, eventfds = [] }: IrqSetRequest): void {
    const action = flags & IrqSetFlags.ACTIONS_MASK;
    for (const [n, fd] of eventfds.entries()) {
      try {
        this.#setOne(action, index, start + n, fd);
      } catch (error) {
        for (const left of eventfds.slice(n)) if (left !== -1) closePeerFd(left);
        throw error;
      }
    }
  }

  #setOne(action: number, index: number, vector: number, fd: number): void {
    const where = key(action, index, vector);
    const request = { flags: IrqSetFlags.DATA_NONE | action, index, start: vector, count: 1 };
    let entry: Entry | undefined;
    if (fd !== -1) {
      const fresh: Entry = { fd, request, poll: new Poll(fd, () => this.#signalled(fresh), "eventfd") };
      entry = fresh;
    }
    const old = this.#entries.get(where);
    // What it was signalled for is still to be done: an INTx that stays masked is silent forever.
    if (old !== undefined && (this.#waiting.includes(old) || eventfdRead(old.fd) > 0)) void this.#act(request);
    this.#remove(where);
    if (entry === undefined) return;
    this.#entries.set(where, entry);
    entry.poll.start(POLL_READABLE);
  }

  /** All that are set: the action, the interrupt index, the vector, the eventfd. */
  get all(): (readonly [action: number, index: number, vector: number, fd: number])[] {
    return [...this.#entries.values()].map(({ fd, request: { flags, index, start } }) => {
      return [flags & IrqSetFlags.ACTIONS_MASK, index, start, fd] as const;
    });
  }

  /** The interrupt index is disabled. */
  clearIndex(index: number): void {
    for (const each of [...this.#entries.keys()]) if (indexOf(each) === index) this.#remove(each);
  }

  /** The client is gone. */
  clear(): void {
    for (const each of [...this.#entries.keys()]) this.#remove(each);
  }

  /** Signals that come while one is dealt with wait in the eventfd, so that a client cannot heap up work. */
  #signalled(entry: Entry): void {
    entry.poll.stop();
    if (this.#dealtWith++ === 0) setImmediate(this.#nextTurn);
    if (this.#dealtWith <= MOST_PER_TURN) this.#dealWith(entry);
    else this.#waiting.push(entry);
  }

  #dealWith(entry: Entry): void {
    if (!this.#isSet(entry)) return;
    void this.#act(entry.request).then(() => {
      if (this.#isSet(entry)) entry.poll.start(POLL_READABLE);
    });
  }

  readonly #nextTurn = (): void => {
    const waiting = this.#waiting.splice(0, MOST_PER_TURN);
    this.#dealtWith = waiting.length;
    if (waiting.length > 0) setImmediate(this.#nextTurn);
    for (const entry of waiting) this.#dealWith(entry);
  };

  #isSet(entry: Entry): boolean {
    const { flags, index, start } = entry.request;
    return this.#entries.get(key(flags & IrqSetFlags.ACTIONS_MASK, index, start)) === entry;
  }

  #remove(where: number): void {
    const entry = this.#entries.get(where);
    if (entry === undefined) return;
    this.#entries.delete(where);
    entry.poll.close();
    closePeerFd(entry.fd);
  }
}

function key(action: number, index: number, vector: number): number {
  return (index * MAX_IRQ_VECTORS + vector) * 2 + (action === IrqSetFlags.ACTION_UNMASK ? 1 : 0);
}

function indexOf(where: number): number {
  return Math.floor(where / 2 / MAX_IRQ_VECTORS);
}
