/**
 * The controller's namespaces: NSID 1 to n, all active, for as long as the controller lives. Their sizes are asked for
 * while a driver is there, so that a file that grows is noticed. Left out: namespace management and attachment.
 */
import type { LaneContext } from "../../../../native/lane.js";
import { Faults } from "../faults.js";
import { Status } from "../spec.js";
import { LaneDisk } from "./lane-disk.js";
import type { Namespace, StatusDone } from "./namespace.js";

/** Identify and Get Log Page answer with lists of 4096 bytes: identifiers in ascending order, then zeros. */
const LIST_SIZE = 4096;

const SIZE_CHECK_MS = 1000;

export class Namespaces {
  /** In the order of their identifiers, which begin at 1. */
  readonly all: readonly Namespace[];
  /** Those whose size has changed since the driver last read the Changed Namespace List. */
  readonly changed = new Set<number>();
  /** That an operator has injected into commands to them. */
  readonly faults = new Faults();
  #timer: NodeJS.Timeout | undefined;

  constructor(all: readonly Namespace[]) {
    this.all = all;
  }

  /** Those with an identifier above `after`, as a list. */
  listActive(after: number): Uint8Array {
    return listOf(this.all.map(({ id }) => id).filter((id) => id > after));
  }

  listChanged(): Uint8Array {
    return listOf([...this.changed].sort((a, b) => a - b));
  }

  find(id: number): Namespace | undefined {
    return this.all[id - 1];
  }

  /** Flushes all. `done` gets the first failure. */
  sync(done: StatusDone): void {
    let left = this.all.length;
    let worst: number = Status.SUCCESS;
    for (const namespace of this.all) {
      namespace.sync((status) => {
        if (worst === Status.SUCCESS) worst = status;
        if (--left === 0) done(worst);
      });
    }
  }

  /** Lanes work on all of them as well, by their NSIDs, from now on. */
  giveTo(context: LaneContext): void {
    for (const namespace of this.all) namespace.giveTo(new LaneDisk(context, namespace.id, namespace.storage.direct));
  }

  takeBack(): void {
    for (const namespace of this.all) namespace.takeBack();
  }

  /** See Namespace.setCache. */
  setCache(isOn: boolean): void {
    for (const namespace of this.all) namespace.setCache(isOn);
  }

  /** Tasks have ended. */
  purge(): void {
    for (const namespace of this.all) namespace.purge();
  }

  /** Whether a storage does something that changes it. */
  get hasWrites(): boolean {
    return this.all.some(({ io }) => !io.isIdle("writes"));
  }

  /** Resolves when what the storages do now, or what of it changes them, is done. */
  async settled(kind: "all" | "writes"): Promise<void> {
    await Promise.all(this.all.map(({ io }) => io.settled(kind)));
  }

  /** A driver is there: sizes are asked for again and again. */
  watch(): void {
    this.#timer ??= setInterval(() => {
      for (const namespace of this.all) if (!namespace.isRefreshing) namespace.refresh(() => {});
    }, SIZE_CHECK_MS).unref();
  }

  unwatch(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

function listOf(ids: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(LIST_SIZE);
  const data = new DataView(bytes.buffer);
  for (const [n, id] of ids.entries()) data.setUint32(n * 4, id, true);
  return bytes;
}
