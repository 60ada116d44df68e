/**
 * NVM Express 1.4, sections 7.3, 7.6 and 7.12: enabling and disabling, shutdown, reset, the Keep Alive Timer, and the
 * end of a controller that fails.
 *
 * All state below CC.EN goes with it: disabling kills the queues and ends their commands at once, and CSTS.RDY falls
 * when no DMA is in flight any more. No disk is waited for: what its threads still read goes nowhere. What they still
 * write may overlap what the next driver does, and is ordered by AtomicIo; so that this is rare, enabling waits for it,
 * for a while.
 */
import { startDeadline } from "../../../shared/deadline.js";
import type { DeviceContext } from "../../device.js";
import type { RegisterFile } from "../../pci/registers.js";
import { adminQueuesOf } from "./commands/create-queues.js";
import type { AsyncEvents } from "./commands/events.js";
import type { Features } from "./commands/features.js";
import type { LogPages } from "./commands/log-pages.js";
import type { QueueEngine } from "./queues/engine.js";
import { Cc, Csts, type RegisterName } from "./registers.js";
import { Status } from "./spec.js";
import type { Namespaces } from "./storage/namespaces.js";

/** How long enabling waits for writes of before. A disk that takes longer hangs, and another one may be wanted. */
const OLD_WRITES_MS = 1000;

/** What a controller that was started is made of, with a state that a reset ends. */
export interface ControllerParts {
  readonly context: DeviceContext;
  readonly engine: QueueEngine;
  readonly events: AsyncEvents;
  readonly features: Features;
  readonly keepAlive: KeepAlive;
  readonly logPages: LogPages;
  /** Bytes of one command's data (MDTS). */
  readonly maxTransfer: number;
  readonly namespaces: Namespaces;
  readonly registers: RegisterFile<RegisterName>;
}

export class Lifecycle {
  readonly #parts: ControllerParts;
  /** Counts disables and resets, so that what was begun before one leaves the registers alone. */
  #generation = 0;
  /** A disable or reset waits for DMA: enabling waits too. */
  #stopping = false;
  /** Shutdowns that the driver asked for; and a sync for some of them is in flight. */
  #shutdowns = 0;
  #isSyncing = false;

  constructor(parts: ControllerParts) {
    this.#parts = parts;
  }

  /** CC was written. */
  configure(value: number, previous: number): void {
    const enabled = (value & Cc.EN) !== 0;
    if (enabled !== ((previous & Cc.EN) !== 0)) {
      if (enabled) void this.#enable();
      else this.#disable();
    }
    if (Cc.shnOf(value) !== 0 && Cc.shnOf(previous) === 0) this.#shutDown();
  }

  /** The function's reset. Resolves when no DMA is in flight. */
  async reset(): Promise<void> {
    const { logPages, registers } = this.#parts;
    const isShutDown = (registers.get("CSTS") & Csts.SHST_MASK) === Csts.SHST_COMPLETE;
    if ((registers.get("CC") & Cc.EN) !== 0 && !isShutDown) logPages.unsafeShutdowns++;
    // Not enabled any more: nothing is to begin again when all has stopped.
    registers.reset();
    await this.#stopAndSettle();
  }

  /** NSSR was written. 7.3.1: there is one controller in the subsystem. */
  resetSubsystem(): void {
    const { context, registers } = this.#parts;
    context.log.info("NVM subsystem reset by the driver");
    registers.reset();
    registers.set("CSTS", Csts.NSSRO);
    void this.#stopAndSettle();
  }

  /** 9.5 Controller Fatal Status: nothing goes on until the driver resets the controller. */
  fail(reason: string): void {
    const { context, registers } = this.#parts;
    context.log.warn({ reason }, "controller fatal status");
    this.#stop();
    registers.set("CSTS", registers.get("CSTS") | Csts.CFS);
  }

  /** 7.6.1: RDY when all is in order, CFS when the driver's set-up is not. */
  async #enable(): Promise<void> {
    if (this.#stopping) return;
    const { context, engine, namespaces, registers } = this.#parts;
    const generation = this.#generation;
    if (namespaces.hasWrites) await inTime(namespaces.settled("writes"));
    if (generation !== this.#generation) return;
    const queues = adminQueuesOf(registers);
    if (typeof queues === "string") {
      this.fail(queues);
      return;
    }
    engine.enable(queues, this.#parts.maxTransfer);
    this.#setStatus(Csts.RDY);
    namespaces.watch();
    context.log.info("enabled by the driver");
  }

  /** 7.3.2, Controller Reset: queues are gone at once, RDY falls when no DMA is in flight. */
  #disable(): void {
    this.#setStatus(this.#parts.registers.get("CSTS") & Csts.RDY);
    void this.#stopAndSettle();
  }

  /** Sets all of CSTS but NSSRO, which is the driver's to clear. */
  #setStatus(status: number): void {
    const { registers } = this.#parts;
    registers.set("CSTS", status | (registers.get("CSTS") & Csts.NSSRO));
  }

  /** Back to disabled. The admin queue's registers stay as they are. Resolves when no DMA is in flight. */
  async #stopAndSettle(): Promise<void> {
    const { context, engine, registers } = this.#parts;
    const generation = ++this.#generation;
    this.#stop();
    engine.setInterruptMask(0);
    if (!context.dma.isIdle()) {
      this.#stopping = true;
      await context.dma.settled();
      if (generation !== this.#generation) return;
    }
    this.#stopping = false;
    this.#setStatus(0);
    if ((registers.get("CC") & Cc.EN) !== 0) void this.#enable();
  }

  /** 7.6.2: what was written goes to stable storage, then SHST says so, or CFS that it could not. */
  #shutDown(): void {
    this.#setShutdownStatus(Csts.SHST_OCCURRING);
    this.#shutdowns++;
    if (!this.#isSyncing) void this.#syncForShutdown();
  }

  /**
   * One at a time, for all shutdowns that were asked for when it begins: a disk may hang, and a driver ask again and
   * again.
   */
  async #syncForShutdown(): Promise<void> {
    const { engine, namespaces } = this.#parts;
    const { inFlight } = engine.commands;
    this.#isSyncing = true;
    for (let done = 0; done !== this.#shutdowns; ) {
      done = this.#shutdowns;
      const generation = this.#generation;
      await inFlight.drained();
      const group = inFlight.begin();
      const status = await new Promise<number>((resolve) => namespaces.sync(resolve));
      inFlight.end(group);
      if (generation !== this.#generation || done !== this.#shutdowns) continue;
      if (status === Status.SUCCESS) this.#setShutdownStatus(Csts.SHST_COMPLETE);
      else this.fail("the shutdown is not complete: a disk could not be synced");
    }
    this.#isSyncing = false;
  }

  #setShutdownStatus(shst: number): void {
    const { registers } = this.#parts;
    registers.set("CSTS", (registers.get("CSTS") & ~Csts.SHST_MASK) | shst);
  }

  #stop(): void {
    const { engine, events, features, keepAlive, namespaces } = this.#parts;
    engine.stop();
    namespaces.purge();
    events.reset();
    keepAlive.set(0);
    namespaces.unwatch();
    namespaces.changed.clear();
    features.reset();
    namespaces.setCache(features.writeCache);
  }
}

async function inTime(work: Promise<void>): Promise<void> {
  await new Promise<void>((resolve) => {
    const stop = startDeadline(OLD_WRITES_MS, resolve);
    void work.then(() => {
      stop();
      resolve();
    });
  });
}

/** 7.12: without a Keep Alive command in time the controller fails. */
export class KeepAlive {
  readonly #onExpired: () => void;
  #stop = (): void => {};
  #timeoutMs = 0;

  constructor(onExpired: () => void) {
    this.#onExpired = onExpired;
  }

  /** Set Features; 0 for no timer. */
  set(timeoutMs: number): void {
    this.#timeoutMs = timeoutMs;
    this.restart();
  }

  /** A Keep Alive command came. */
  restart(): void {
    this.#stop();
    this.#stop = this.#timeoutMs === 0 ? () => {} : startDeadline(this.#timeoutMs, this.#onExpired);
  }
}
