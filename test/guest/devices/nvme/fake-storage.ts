/** A storage in memory whose calls can be held back or failed. */
import type {
  DirectAccess,
  Done,
  Pieces,
  Storage,
  StorageError,
} from "../../../../guest/devices/nvme/storage/storage.js";

export type Operation = "read" | "write" | "sync" | "zero" | "deallocate" | "setBlockSize";

export class FakeStorage implements Storage {
  /** As it is; `size` is what was last seen. */
  bytes: Uint8Array;
  blockSize: number | undefined;
  smallestBlock = 512;
  preferredSize = 4096;
  readOnly = false;
  /** Calls by kind, in order. */
  readonly calls: Operation[] = [];
  /** The errno name of the next calls of a kind. */
  readonly errors: Partial<Record<Operation, string>> = {};
  direct: DirectAccess | undefined;
  #held: (() => void)[] | undefined;
  #onHeld: (() => void) | undefined;

  constructor(public size: number) {
    this.bytes = new Uint8Array(size);
  }

  get allocated(): number {
    return this.size;
  }

  /** Somebody makes it larger or smaller. */
  resize(size: number): void {
    const bytes = new Uint8Array(size);
    bytes.set(this.bytes.subarray(0, size));
    this.bytes = bytes;
  }

  /** From now on calls do not end until `release`. */
  hold(): void {
    this.#held = [];
  }

  /** Calls that wait for `release`. */
  get held(): number {
    return this.#held?.length ?? 0;
  }

  /** Resolves when `count` calls wait. */
  async whenHeld(count: number): Promise<void> {
    while (this.held < count) {
      await new Promise<void>((resolve) => {
        this.#onHeld = resolve;
      });
    }
  }

  release(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const end of held) end();
  }

  read(pieces: Pieces, position: number, done: Done): void {
    this.#move("read", pieces, position, done, (view, at) => view.set(this.bytes.subarray(at, at + view.length)));
  }

  write(pieces: Pieces, position: number, done: Done): void {
    this.#move("write", pieces, position, done, (view, at) => this.bytes.set(view, at));
  }

  sync(done: Done): void {
    this.#end("sync", () => done(this.#error("sync")));
  }

  zero(position: number, length: number, deallocate: boolean, done: Done): void {
    const operation = deallocate ? "deallocate" : "zero";
    this.#end(operation, () => {
      const error = this.#error(operation);
      if (error === null) this.bytes.fill(0, position, position + length);
      done(error);
    });
  }

  setBlockSize(bytes: number, done: Done): void {
    this.#end("setBlockSize", () => {
      const error = this.#error("setBlockSize");
      if (error === null) this.blockSize = bytes;
      done(error);
    });
  }

  /** Neither counted nor held back: the controller looks when it likes. */
  refresh(done: Done): void {
    setImmediate(() => {
      this.size = this.bytes.length;
      done(null);
    });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #move(
    operation: "read" | "write",
    { count, segments }: Pieces,
    position: number,
    done: Done,
    copy: (view: Uint8Array, at: number) => void,
  ): void {
    this.#end(operation, () => {
      const error = this.#error(operation);
      let at = position;
      for (let n = 0; n < count && error === null; n++) {
        const { bytes, offset, length } = segments[n];
        copy(bytes.subarray(offset, offset + length), at);
        at += length;
      }
      done(error);
    });
  }

  /** Ends a call in a later turn of the event loop, as threads do. */
  #end(operation: Operation, action: () => void): void {
    this.calls.push(operation);
    if (this.#held === undefined) {
      setImmediate(action);
      return;
    }
    this.#held.push(action);
    this.#onHeld?.();
  }

  #error(operation: Operation): StorageError | null {
    const code = this.errors[operation];
    return code === undefined ? null : Object.assign(new Error(code), { code });
  }
}
