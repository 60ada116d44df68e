/**
 * One virtqueue of a device: whether it runs, and who is given its chains. A queue with a `handle` is served by a job
 * that the driver's notification starts and that ends when nothing waits; of any other the device takes chains itself.
 */
import { setImmediate } from "node:timers/promises";
import type { Dma } from "../device.js";
import type { Chain } from "./chain.js";
import { type RingLayout, SplitRing } from "./split-ring.js";

/** Chains that are dealt with before others have a turn of the event loop. */
const TURN_CHAINS = 64;

export interface QueueDeclaration {
  /** As the specification calls it, for diagnostics. */
  readonly name: string;
  /** The most entries that the driver may give it: a power of two, up to 32768; 256 when left out. */
  readonly size?: number;
  /**
   * Deals with one chain of buffers and returns how many bytes it wrote into it, from its beginning. What throws or
   * rejects breaks the device, which the driver then has to reset: DmaError and ProtocolError are the driver's
   * mistakes, anything else is the device's bug. Left out for a queue whose buffers wait for something: see `notified`,
   * and `Virtqueue.take`.
   */
  readonly handle?: (chain: Chain, queue: Virtqueue) => number | Promise<number>;
  /** How many chains may be with `handle` at a time, ended in any order: 1 when left out. */
  readonly parallel?: number;
  /** Called when the driver has put buffers into a queue without `handle`, and when such a queue starts. */
  readonly notified?: (queue: Virtqueue) => void;
}

export interface QueueOwner {
  readonly dma: Dma;
  run(job: (signal: AbortSignal) => Promise<void>): void;
  interrupt(queue: Virtqueue): void;
  /** The driver, or the device, did something that only a reset mends. */
  broken(queue: Virtqueue, error: unknown): void;
}

export class Virtqueue {
  readonly #declaration: QueueDeclaration;
  readonly #owner: QueueOwner;
  #ring: SplitRing | undefined;
  /** The job that serves it. */
  #serving: Promise<void> | undefined;
  /** A notification came while it was served. */
  #isNotified = false;
  /** Has the job look again. */
  #wake = () => {};

  constructor(
    readonly index: number,
    declaration: QueueDeclaration,
    owner: QueueOwner,
  ) {
    this.#declaration = declaration;
    this.#owner = owner;
  }

  get name(): string {
    return this.#declaration.name;
  }

  get isRunning(): boolean {
    return this.#ring !== undefined;
  }

  /** The next entries of the available and of the used ring, for a queue that is to go on elsewhere. */
  get positions(): readonly [number, number] {
    return this.#ring === undefined ? [0, 0] : [this.#ring.nextAvailable, this.#ring.nextUsed];
  }

  start(layout: RingLayout, nextAvailable = 0, nextUsed = 0): void {
    this.#ring = new SplitRing(this.#owner.dma, layout);
    this.#ring.begin(nextAvailable, nextUsed);
    // Some drivers fill a queue before they say DRIVER_OK, and notify of nothing then.
    this.notify();
  }

  /** Takes nothing more. Resolves when `handle` has ended with all that it was given. */
  async stop(): Promise<void> {
    this.#ring = undefined;
    await this.#serving;
  }

  /** The driver has put something there. */
  notify(): void {
    if (this.#ring === undefined) return;
    const { handle, notified } = this.#declaration;
    if (handle === undefined) {
      notified?.(this);
      return;
    }
    this.#isNotified = true;
    this.#wake();
    if (this.#serving !== undefined) return;
    this.#owner.run((signal) => {
      this.#serving ??= this.#serve(handle, signal).finally(() => {
        this.#serving = undefined;
        if (this.#isNotified) this.notify();
      });
      return this.#serving;
    });
  }

  /**
   * For a queue without `handle`: the next chain, undefined when there is none; the driver will then notify of one.
   * What is wrong with the ring breaks the device, and then there is none either.
   */
  take(): Chain | undefined | Promise<Chain | undefined> {
    const ring = this.#ring;
    if (ring === undefined) return undefined;
    try {
      const fetched = ring.refresh();
      if (fetched !== undefined) return this.#takeLater(ring, fetched);
      const chain = ring.next();
      if (chain !== undefined) return chain;
      return ring.arm() === true ? ring.next() : undefined;
    } catch (error) {
      this.#fail(error);
      return undefined;
    }
  }

  /** Gives a chain back that `take` gave, with so many bytes written, and interrupts the driver if it wants that. */
  complete(chain: Chain, written: number): void | Promise<void> {
    const ring = this.#ring;
    if (ring === undefined) return;
    try {
      const fetched = ring.refresh();
      if (fetched !== undefined) return this.#completeLater(ring, fetched, chain, written);
      ring.complete(chain.head, written);
      if (ring.shouldInterrupt()) this.#owner.interrupt(this);
    } catch (error) {
      this.#fail(error);
    }
  }

  async #takeLater(ring: SplitRing, fetched: Promise<void>): Promise<Chain | undefined> {
    try {
      await fetched;
      const chain = ring.next();
      if (chain !== undefined) return chain;
      if (!(await ring.arm())) return undefined;
      await ring.refresh();
      return ring.next();
    } catch (error) {
      this.#fail(error);
      return undefined;
    }
  }

  async #completeLater(ring: SplitRing, fetched: Promise<void>, chain: Chain, written: number): Promise<void> {
    try {
      await fetched;
      if (ring !== this.#ring) return;
      ring.complete(chain.head, written);
      await ring.flush();
      if (ring.shouldInterrupt()) this.#owner.interrupt(this);
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    if (this.#ring === undefined) return;
    this.#ring = undefined;
    this.#owner.broken(this, error);
  }

  /** Until nothing waits and nothing is in flight, or the queue is stopped and nothing is in flight. */
  async #serve(handle: Handle, signal: AbortSignal): Promise<void> {
    const ring = this.#ring;
    if (ring === undefined) return;
    const ended: Ended[] = [];
    let inFlight = 0;
    let count = 0;
    const begin = (chain: Chain) => {
      count++;
      const result = handle(chain, this);
      if (typeof result === "number") {
        ended.push({ chain, written: result });
        return;
      }
      inFlight++;
      const settled = result.then(
        (written) => ended.push({ chain, written }),
        (error) => this.#failOf(ring, error),
      );
      void settled.finally(() => {
        inFlight--;
        this.#wake();
      });
    };
    const most = this.#declaration.parallel ?? 1;
    while (ring === this.#ring || inFlight > 0) {
      // DMA fails from now on, and the queue's end comes with the reset.
      if (signal.aborted) this.#ring = undefined;
      try {
        this.#isNotified = false;
        const fetched = ring.refresh();
        if (fetched !== undefined) await fetched;
        this.#take(ring, () => inFlight < most && ended.length < TURN_CHAINS, begin);
        if (ended.length > 0) {
          await this.#give(ring, ended.splice(0));
          if (count < TURN_CHAINS) continue;
          count = 0;
          await setImmediate();
          continue;
        }
        if (ring === this.#ring && inFlight < most) {
          if (await ring.arm()) continue;
          if (inFlight === 0) break;
        }
      } catch (error) {
        this.#failOf(ring, error);
      }
      if (inFlight === 0 || ended.length > 0 || this.#isNotified) continue;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #take(ring: SplitRing, hasRoom: () => boolean, begin: (chain: Chain) => void): void {
    while (ring === this.#ring && hasRoom()) {
      const chain = ring.next();
      if (chain === undefined) return;
      begin(chain);
    }
  }

  async #give(ring: SplitRing, ended: readonly Ended[]): Promise<void> {
    if (ring !== this.#ring) return;
    for (const { chain, written } of ended) ring.complete(chain.head, written);
    const stored = ring.flush();
    if (stored !== undefined) await stored;
    if (ring === this.#ring && ring.shouldInterrupt()) this.#owner.interrupt(this);
  }

  #failOf(ring: SplitRing, error: unknown): void {
    if (ring === this.#ring) this.#fail(error);
  }
}

type Handle = NonNullable<QueueDeclaration["handle"]>;

interface Ended {
  readonly chain: Chain;
  readonly written: number;
}
