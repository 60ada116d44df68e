/**
 * Commands whose data may have to wait for a disk: Read, Write, Compare, Verify and Copy, through buffers of our own.
 * Driver-VM memory is looked up and moved when the disk is done, if the command has not ended by then; so nothing of
 * before a reset lands in it, and memory that is unmapped waits for no disk.
 */

import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { Dma } from "../../device.js";
import { type DiskBuffer, PIECE_SIZE } from "./buffers.js";
import type { Command } from "./command.js";
import type { Pieces } from "./file-io.js";
import type { Namespace, StatusDone } from "./namespace.js";
import { Status } from "./spec.js";

/** A stretch of storage, in bytes. */
export interface Extent {
  readonly position: number;
  readonly length: number;
}

/** `done` is called once, with a status; for a command that has ended that tells nobody. */
export class Transfers {
  readonly #dma: Dma;

  constructor(dma: Dma) {
    this.#dma = dma;
  }

  read(command: Command, namespace: Namespace, done: StatusDone): void {
    const { length, position } = command;
    this.#withBuffer(length, command, namespace, done, (buffer, give) => {
      this.#fromDisk(buffer.pieces(length), position, command, namespace, (status) => {
        if (status !== Status.SUCCESS || command.ended) give(status);
        else this.#toDriver(command, buffer.bytes(length), give);
      });
    });
  }

  write(command: Command, namespace: Namespace, done: StatusDone): void {
    const { length, position } = command;
    this.#withBuffer(length, command, namespace, done, (buffer, give) => {
      this.#fromDriver(command, buffer.bytes(length), (status) => {
        if (status !== Status.SUCCESS || command.ended) give(status);
        else this.#toDisk(buffer.pieces(length), position, command, namespace, give);
      });
    });
  }

  /** One half of the buffer holds the disk's data, the other the driver's. */
  compare(command: Command, namespace: Namespace, done: StatusDone): void {
    const { length, position } = command;
    this.#withBuffer(2 * length, command, namespace, done, (buffer, give) => {
      this.#fromDisk(buffer.pieces(length), position, command, namespace, (status) => {
        if (status !== Status.SUCCESS || command.ended) {
          give(status);
          return;
        }
        const theirs = buffer.bytes(length, length);
        this.#fromDriver(command, theirs, (moved) => {
          const isEqual = moved !== Status.SUCCESS || Buffer.compare(buffer.bytes(length), theirs) === 0;
          give(isEqual ? moved : Status.COMPARE_FAILURE);
        });
      });
    });
  }

  /** Reads all of it, and keeps nothing. Others get the buffer in between. */
  verify(command: Command, namespace: Namespace, done: StatusDone): void {
    const { length, position } = command;
    const step = (at: number): void => {
      const size = Math.min(PIECE_SIZE, length - at);
      const next: StatusDone = (status) =>
        status !== Status.SUCCESS || command.ended || at + size === length ? done(status) : step(at + size);
      this.#withBuffer(size, command, namespace, next, (buffer, give) =>
        this.#fromDisk(buffer.pieces(size), position + at, command, namespace, give),
      );
    };
    step(0);
  }

  /** Reads all of `sources`, PIECE_SIZE at most, then writes it to `position`. */
  copy(sources: readonly Extent[], command: Command, namespace: Namespace, done: StatusDone): void {
    const { length, position } = command;
    this.#withBuffer(length, command, namespace, done, (buffer, give) => {
      const step = (n: number, at: number): void => {
        if (n === sources.length) {
          this.#toDisk(buffer.pieces(length), position, command, namespace, give);
          return;
        }
        const source = sources[n];
        this.#fromDisk(buffer.pieces(source.length, at), source.position, command, namespace, (status) =>
          status !== Status.SUCCESS || command.ended ? give(status) : step(n + 1, at + source.length),
        );
      };
      step(0, 0);
    });
  }

  /** `use` has the buffer until it calls `give`. */
  #withBuffer(
    length: number,
    command: Command,
    { buffers }: Namespace,
    done: StatusDone,
    use: (buffer: DiskBuffer, give: StatusDone) => void,
  ): void {
    buffers.take(length, this.#dma, command, (buffer) => {
      use(buffer, (status) => {
        buffers.give(buffer);
        done(status);
      });
    });
  }

  #fromDisk(pieces: Pieces, position: number, command: Command, disk: Namespace, done: StatusDone): void {
    disk.io.read(pieces, position, command, (error) => {
      done(error === null ? Status.SUCCESS : disk.failed(error, "read"));
    });
  }

  #toDisk(pieces: Pieces, position: number, command: Command, disk: Namespace, done: StatusDone): void {
    disk.io.write(pieces, position, command, (error) => {
      done(error === null ? Status.SUCCESS : disk.failed(error, "write"));
    });
  }

  /** At once where the memory is in the window. */
  #toDriver(command: Command, bytes: Uint8Array, done: StatusDone): void {
    const { ranges, segments } = command;
    if (!segments.locate(this.#dma, ranges, "write")) {
      end(this.#dma.writeList(ranges, bytes), done);
      return;
    }
    let at = 0;
    for (let n = 0; n < segments.count; n++) {
      const segment = segments.segments[n];
      copyBytes(bytes, at, segment.bytes, segment.offset, segment.length);
      at += segment.length;
    }
    this.#dma.account(0, at);
    done(segments.isLost() ? Status.DATA_TRANSFER_ERROR : Status.SUCCESS);
  }

  #fromDriver(command: Command, bytes: Uint8Array, done: StatusDone): void {
    const { ranges, segments } = command;
    if (!segments.locate(this.#dma, ranges, "read")) {
      end(this.#dma.readList(ranges, bytes), done);
      return;
    }
    let at = 0;
    for (let n = 0; n < segments.count; n++) {
      const segment = segments.segments[n];
      copyBytes(segment.bytes, segment.offset, bytes, at, segment.length);
      at += segment.length;
    }
    this.#dma.account(at, 0);
    done(segments.isLost() ? Status.DATA_TRANSFER_ERROR : Status.SUCCESS);
  }
}

function end(moved: Promise<void>, done: StatusDone): void {
  void moved.then(
    () => done(Status.SUCCESS),
    () => done(Status.DATA_TRANSFER_ERROR),
  );
}
