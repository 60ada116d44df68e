/**
 * What lanes know of a function (shared/lane-access.ts), kept as the function has it: the maps that lie in the window,
 * whether DMA may be done, the log of what was written; and how each interrupt vector is signalled, as long as nothing
 * stands between a trigger and its doorbell.
 */
import { LaneContext } from "../../native/lane.js";
import type { DirectTrigger, LaneAccess } from "../../shared/lane-access.js";
import { Irq } from "../../shared/spec/vfio-user.js";
import type { DmaMapping, Link, Window } from "../link/link.js";
import type { DirtyLog } from "./dirty-log.js";

export class LaneMemory {
  readonly #context: LaneContext;
  readonly #window: Window;
  #isPermitted = true;

  constructor(context: LaneContext, window: Window) {
    this.#context = context;
    this.#window = window;
  }

  /** A map is in the window as a whole, but perhaps in several pieces of it. */
  map({ address, size, windowOffset, readable, writable }: DmaMapping): void {
    const { pieceSize } = this.#window;
    for (let done = 0; done < size && windowOffset >= 0; ) {
      const index = Math.floor((windowOffset + done) / pieceSize);
      const offset = windowOffset + done - index * pieceSize;
      const length = Math.min(size - done, pieceSize - offset);
      this.#context.map(address + done, length, this.#window.piece(index), offset, readable, writable);
      done += length;
    }
  }

  unmap(maps: Iterable<DmaMapping>): void {
    for (const { address, size } of maps) this.#context.unmap(address, size);
  }

  unmapAll(): void {
    this.#context.unmapAll();
  }

  permit(isPermitted: boolean): void {
    if (this.#isPermitted === isPermitted) return;
    this.#isPermitted = isPermitted;
    this.#context.permit(isPermitted);
  }

  /** What is written is to be marked in `log`, by `collect`. */
  logInto(log: DirtyLog | undefined): void {
    if (log === undefined) this.#context.stopLog();
    else this.#context.startLog(Math.log2(log.pageSize));
  }

  /** Marks what lanes have written so far. */
  collect(log: DirtyLog): void {
    const runs = this.#context.takeLog();
    if (runs === undefined) log.markAll();
    else for (let n = 0; n < runs.length; n += 2) log.mark(runs[n], runs[n + 1]);
  }
}

/** A vector goes nowhere by itself. */
const NONE = -1;

export class LaneVectors {
  readonly #context: LaneContext;
  readonly #trigger: (index: number, vector: number) => DirectTrigger | undefined;
  /** Which binding each vector has, by a number that no other has. */
  readonly #bindings: Float64Array;

  constructor(
    context: LaneContext,
    vectors: number,
    trigger: (index: number, vector: number) => DirectTrigger | undefined,
  ) {
    this.#context = context;
    this.#trigger = trigger;
    this.#bindings = new Float64Array(vectors).fill(NONE);
  }

  get count(): number {
    return this.#bindings.length;
  }

  /** A vector is signalled by that of `index`, whose binding is the `binding`th; NONE: not directly. */
  set(vector: number, index: number, to: number, binding: number): void {
    if (this.#bindings[vector] === binding) return;
    const direct = binding === NONE ? undefined : this.#trigger(index, to);
    this.#bindings[vector] = direct === undefined ? NONE : binding;
    if (direct === undefined) this.#context.clearVector(vector);
    else if ("eventfd" in direct) this.#setEventfd(vector, direct.eventfd);
    else this.#context.setRegister(vector, direct.buffer, direct.offset, direct.value);
  }

  /** Without a descriptor to spare it goes by JavaScript. */
  #setEventfd(vector: number, eventfd: number): void {
    try {
      this.#context.setEventfd(vector, eventfd);
    } catch {
      this.#bindings[vector] = NONE;
      this.#context.clearVector(vector);
    }
  }
}

/** All of it, of one function. */
export class FunctionLanes {
  readonly memory: LaneMemory;
  readonly vectors: LaneVectors;
  readonly #context: LaneContext;

  constructor(link: Link, irqCounts: readonly number[]) {
    const vectors = Math.max(irqCounts[Irq.MSIX], irqCounts[Irq.MSI]);
    this.#context = new LaneContext(vectors);
    this.memory = new LaneMemory(this.#context, link.window);
    this.vectors = new LaneVectors(this.#context, vectors, (index, vector) => link.directTrigger?.(index, vector));
  }

  /** For the device. */
  access(interrupts: { count: number }): LaneAccess {
    const interrupted = (count: number) => {
      interrupts.count += count;
    };
    return { context: this.#context, interrupted };
  }
}
