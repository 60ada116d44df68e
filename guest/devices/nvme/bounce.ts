/**
 * Data whose driver-VM memory is not in the window: it goes through a few buffers of our own, piece by piece. A command waits
 * for a buffer, so the memory for it is bounded whatever the driver asks for.
 */
import type { Dma } from "../../device.js";
import type { Command } from "./command.js";
import type { StorageError } from "./file-io.js";
import { statusOf } from "./namespace.js";
import { Status } from "./spec.js";
import type { Storage } from "./storage.js";

const BUFFERS = 16;
/** Bytes. */
export const BOUNCE_BUFFER_SIZE = 256 * 1024;

/** A stretch of storage, in bytes. */
export interface Extent {
  readonly position: number;
  readonly length: number;
}

type Transfers = Pick<Storage, "read" | "write">;
export type BounceOperation = "read" | "write" | "compare";

export class BouncePool {
  readonly #free: Uint8Array[] = [];
  #made = 0;
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];

  /** Does a Read, Write or Compare of `command.ranges` at `command.position`. Resolves to a status; never rejects. */
  async run(operation: BounceOperation, command: Command, dma: Dma, storage: Transfers): Promise<number> {
    const buffer = await this.#take(dma);
    try {
      // Two halves: one holds the driver's data, the other the storage's, which only Compare has at once.
      for (const piece of pieces(command, BOUNCE_BUFFER_SIZE / 2)) {
        const status = await move(operation, piece, buffer, dma, storage);
        if (status !== Status.SUCCESS) return status;
      }
      return Status.SUCCESS;
    } finally {
      this.#give(buffer);
    }
  }

  /** Verify: reads all of it, and keeps nothing. Resolves to a status; never rejects. */
  async verify({ position, length }: Command, dma: Dma, storage: Transfers): Promise<number> {
    const buffer = await this.#take(dma);
    try {
      for (let done = 0; done < length; done += buffer.length) {
        const count = Math.min(buffer.length, length - done);
        const status = await transfer(storage, "read", buffer, count, position + done);
        if (status !== Status.SUCCESS) return status;
      }
      return Status.SUCCESS;
    } finally {
      this.#give(buffer);
    }
  }

  /** Copy: reads all of `sources`, BOUNCE_BUFFER_SIZE at most, then writes it to `position`. Resolves to a status; never rejects. */
  async copy(sources: readonly Extent[], position: number, dma: Dma, storage: Transfers): Promise<number> {
    const buffer = await this.#take(dma);
    try {
      let at = 0;
      for (const source of sources) {
        const part = buffer.subarray(at, at + source.length);
        const status = await transfer(storage, "read", part, part.length, source.position);
        if (status !== Status.SUCCESS) return status;
        at += part.length;
      }
      return await transfer(storage, "write", buffer, at, position);
    } finally {
      this.#give(buffer);
    }
  }

  async #take(dma: Dma): Promise<Uint8Array> {
    const buffer = this.#free.pop();
    if (buffer !== undefined) return buffer;
    if (this.#made < BUFFERS) {
      this.#made++;
      return dma.allocate(BOUNCE_BUFFER_SIZE);
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #give(buffer: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(buffer);
    else next(buffer);
  }
}

/** A stretch of storage and the driver-VM memory that goes with it. */
interface Piece {
  readonly position: number;
  length: number;
  readonly parts: { readonly address: number; readonly length: number }[];
}

function pieces({ ranges, position }: Command, size: number): Piece[] {
  const result: Piece[] = [];
  let at = position;
  let piece: Piece | undefined;
  for (let n = 0; n < ranges.count; n++) {
    for (let done = 0; done < ranges.lengths[n]; ) {
      if (piece === undefined || piece.length === size) {
        piece = { position: at, length: 0, parts: [] };
        result.push(piece);
      }
      const length = Math.min(ranges.lengths[n] - done, size - piece.length);
      piece.parts.push({ address: ranges.addresses[n] + done, length });
      piece.length += length;
      done += length;
      at += length;
    }
  }
  return result;
}

async function move(
  operation: BounceOperation,
  piece: Piece,
  buffer: Uint8Array,
  dma: Dma,
  storage: Transfers,
): Promise<number> {
  const ours = buffer.subarray(0, piece.length);
  const theirs = buffer.subarray(buffer.length / 2, buffer.length / 2 + piece.length);
  if (operation !== "write") {
    const status = await transfer(storage, "read", buffer, piece.length, piece.position);
    if (status !== Status.SUCCESS) return status;
  }
  const memory = operation === "compare" ? theirs : ours;
  let at = 0;
  const moves = piece.parts.map(({ address, length }) => {
    const bytes = memory.subarray(at, at + length);
    at += length;
    return operation === "read" ? dma.write(address, bytes) : dma.read(address, bytes);
  });
  // All have to end before the buffer is used again, also when one of them fails.
  const results = await Promise.allSettled(moves);
  if (results.some(({ status }) => status === "rejected")) return Status.DATA_TRANSFER_ERROR;
  if (operation === "write") return transfer(storage, "write", buffer, piece.length, piece.position);
  if (operation === "compare" && Buffer.compare(ours, theirs) !== 0) return Status.COMPARE_FAILURE;
  return Status.SUCCESS;
}

/** Moves the first `length` bytes of `bytes`. Resolves to a status; never rejects. */
function transfer(
  storage: Transfers,
  direction: "read" | "write",
  bytes: Uint8Array,
  length: number,
  position: number,
): Promise<number> {
  return new Promise((resolve) =>
    storage[direction]({ count: 1, segments: [{ bytes, offset: 0, length }] }, position, (error: StorageError | null) =>
      resolve(error === null ? Status.SUCCESS : statusOf(error, direction)),
    ),
  );
}
