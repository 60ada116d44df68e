/**
 * The controller's namespaces: NSID 1 to n, all active, for as long as the controller lives. Their sizes are looked at
 * while a driver is there, so that a file that grows is noticed. Left out: namespace management and attachment.
 */
import type { Namespace, StatusDone } from "./namespace.js";
import { Status } from "./spec.js";

/** Identify and Get Log Page answer with lists of 4096 bytes: identifiers in ascending order, then zeros. */
const LIST_SIZE = 4096;

const SIZE_CHECK_MS = 1000;

export class Namespaces {
  /** Those whose size has changed since the driver last read the Changed Namespace List. */
  readonly changed = new Set<number>();
  /** Those whose file was removed, as far as that was told. */
  readonly #removed = new Set<number>();
  #timer: NodeJS.Timeout | undefined;

  constructor(
    /** In the order of their identifiers, which begin at 1. */
    readonly all: readonly Namespace[],
    readonly onChanged: (namespace: Namespace) => void,
    readonly onRemoved: (namespace: Namespace) => void,
  ) {}

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

  /** Tasks have ended. */
  purge(): void {
    for (const namespace of this.all) namespace.purge();
  }

  /** Whether the storages do nothing, or nothing that changes them. */
  areIdle(kind: "all" | "writes"): boolean {
    return this.all.every(({ io }) => io.isIdle(kind));
  }

  /** Resolves when what the storages do now, or what of it changes them, is done. */
  async settled(kind: "all" | "writes"): Promise<void> {
    await Promise.all(this.all.map(({ io }) => io.settled(kind)));
  }

  /** Looks how large a namespace is now. */
  refresh(namespace: Namespace, done: () => void): void {
    namespace.refresh((changed) => {
      if (changed) {
        this.changed.add(namespace.id);
        this.onChanged(namespace);
      }
      if (namespace.storage.isRemoved === true && !this.#removed.has(namespace.id)) {
        this.#removed.add(namespace.id);
        this.onRemoved(namespace);
      }
      done();
    });
  }

  /** A driver is there: sizes are looked at again and again. */
  watch(): void {
    this.#timer ??= setInterval(() => {
      for (const namespace of this.all) if (!namespace.isRefreshing) this.refresh(namespace, () => {});
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
