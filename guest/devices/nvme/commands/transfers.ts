/**
 * Data of commands that no lane does at once: Read, Write, Compare, Verify and Copy, which may have to
 * wait for a disk, through buffers of our own; and what is rare and small. Driver-VM memory is looked up and moved when
 * the disk is done, if the command has not ended by then; so nothing of before a reset lands in it, and memory that is
 * unmapped waits for no disk.
 */
import { copyBytes } from "../../../../shared/virtqueue/memory.js";
import type { Command } from "../queues/command.js";
import { Status } from "../spec.js";
import { type DiskBuffer, PIECE_SIZE } from "../storage/buffers.js";
import type { Namespace, StatusDone } from "../storage/namespace.js";
import type { Done, Pieces } from "../storage/storage.js";

/** A stretch of storage, in bytes. */
export interface Extent {
  readonly position: number;
  readonly length: number;
}

/**
 * Copies `bytes` to the memory that a command names (`write`) or from it (`read`). Resolves to a status; never rejects.
 */
export async function copyData(direction: "read" | "write", command: Command, bytes: Uint8Array): Promise<number> {
  command.length = bytes.length;
  const status = await command.resolve(bytes.length);
  if (status !== Status.SUCCESS) return status;
  if (command.ended) return Status.ABORT_REQUESTED;
  const { dma, ranges } = command;
  return asStatus(direction === "read" ? dma.readList(ranges, bytes) : dma.writeList(ranges, bytes));
}

function asStatus(moved: Promise<void>): Promise<number> {
  return moved.then(
    () => Status.SUCCESS,
    () => Status.DATA_TRANSFER_ERROR,
  );
}

/** The same from the memory that a command names: at once, where that is in the window. */
export function fetchData(command: Command, bytes: Uint8Array, done: StatusDone): void {
  command.length = bytes.length;
  const fetch = (status: number): void => {
    if (status !== Status.SUCCESS || command.ended) done(status);
    else move("read", command, bytes, done);
  };
  const resolved = command.resolve(bytes.length);
  if (typeof resolved === "number") fetch(resolved);
  else void resolved.then(fetch);
}

// In all that follow `done` is called once, with a status; for a command that has ended that has no effect.

export function read(command: Command, namespace: Namespace, done: StatusDone): void {
  const { length, position } = command;
  withBuffer(length, command, namespace, done, (buffer, give) => {
    fromDisk(buffer.pieces(length), position, command, namespace, (status) => {
      if (status !== Status.SUCCESS || command.ended) give(status);
      else move("write", command, buffer.bytes(length), give);
    });
  });
}

export function write(command: Command, namespace: Namespace, done: StatusDone): void {
  const { length, position } = command;
  withBuffer(length, command, namespace, done, (buffer, give) => {
    move("read", command, buffer.bytes(length), (status) => {
      if (status !== Status.SUCCESS || command.ended) give(status);
      else toDisk(buffer.pieces(length), position, command, namespace, give);
    });
  });
}

/** One half of the buffer holds the disk's data, the other the driver's. */
export function compare(command: Command, namespace: Namespace, done: StatusDone): void {
  const { length, position } = command;
  withBuffer(2 * length, command, namespace, done, (buffer, give) => {
    fromDisk(buffer.pieces(length), position, command, namespace, (status) => {
      if (status !== Status.SUCCESS || command.ended) {
        give(status);
        return;
      }
      const theirs = buffer.bytes(length, length);
      move("read", command, theirs, (moved) => {
        const isEqual = moved !== Status.SUCCESS || Buffer.compare(buffer.bytes(length), theirs) === 0;
        give(isEqual ? moved : Status.COMPARE_FAILURE);
      });
    });
  });
}

/**
 * Compare, and Write of the same blocks if it found them equal, nothing in between. `done` gets the status of both;
 * the second has none unless the first is SUCCESS.
 */
export function compareAndWrite(
  first: Command,
  second: Command,
  namespace: Namespace,
  done: (compared: number, written: number) => void,
): void {
  const { length, position } = first;
  const { SUCCESS, INTERNAL_ERROR } = Status;
  namespace.buffers.take(2 * length, first.dma, first, (buffer) => {
    let compared: number = INTERNAL_ERROR;
    let written: number = SUCCESS;
    const use = (release: Done): void => {
      const onDisk = buffer.pieces(length);
      namespace.storage.read(onDisk, position, (error) => {
        if (error !== null || first.ended) {
          if (error !== null) compared = namespace.failed(error, "read");
          release(null);
          return;
        }
        const theirs = buffer.bytes(length, length);
        move("read", first, theirs, (moved) => {
          const isEqual = Buffer.compare(buffer.bytes(length), theirs) === 0;
          compared = moved !== SUCCESS ? moved : isEqual ? SUCCESS : Status.COMPARE_FAILURE;
          if (compared !== SUCCESS || first.ended) {
            release(null);
            return;
          }
          move("read", second, buffer.bytes(length), (fetched) => {
            written = fetched;
            if (fetched !== SUCCESS || first.ended) {
              release(null);
              return;
            }
            namespace.storage.write(buffer.pieces(length), position, (failure) => {
              if (failure !== null) written = namespace.failed(failure, "write");
              release(null);
            });
          });
        });
      });
    };
    namespace.io.hold(position, length, first, use, () => {
      namespace.buffers.give(buffer);
      done(compared, written);
    });
  });
}

/** Reads all of it, and keeps nothing. Others get the buffer in between. */
export function verify(command: Command, namespace: Namespace, done: StatusDone): void {
  const { length, position } = command;
  const step = (at: number): void => {
    const size = Math.min(PIECE_SIZE, length - at);
    const next: StatusDone = (status) =>
      status !== Status.SUCCESS || command.ended || at + size === length ? done(status) : step(at + size);
    withBuffer(size, command, namespace, next, (buffer, give) =>
      fromDisk(buffer.pieces(size), position + at, command, namespace, give),
    );
  };
  step(0);
}

/** Reads all of `sources`, PIECE_SIZE at most, then writes it to `position`. */
export function copy(sources: readonly Extent[], command: Command, namespace: Namespace, done: StatusDone): void {
  const { length, position } = command;
  withBuffer(length, command, namespace, done, (buffer, give) => {
    const step = (n: number, at: number): void => {
      if (n === sources.length) {
        toDisk(buffer.pieces(length), position, command, namespace, give);
        return;
      }
      const source = sources[n];
      fromDisk(buffer.pieces(source.length, at), source.position, command, namespace, (status) =>
        status !== Status.SUCCESS || command.ended ? give(status) : step(n + 1, at + source.length),
      );
    };
    step(0, 0);
  });
}

/** `use` has the buffer until it calls `give`. */
function withBuffer(
  length: number,
  command: Command,
  { buffers }: Namespace,
  done: StatusDone,
  use: (buffer: DiskBuffer, give: StatusDone) => void,
): void {
  buffers.take(length, command.dma, command, (buffer) => {
    use(buffer, (status) => {
      buffers.give(buffer);
      done(status);
    });
  });
}

function fromDisk(pieces: Pieces, position: number, command: Command, disk: Namespace, done: StatusDone): void {
  disk.io.read(pieces, position, command, (error) => {
    done(error === null ? Status.SUCCESS : disk.failed(error, "read"));
  });
}

function toDisk(pieces: Pieces, position: number, command: Command, disk: Namespace, done: StatusDone): void {
  disk.io.write(pieces, position, command, (error) => {
    done(error === null ? Status.SUCCESS : disk.failed(error, "write"));
  });
}

/** Between `bytes` and the memory that a command names, which is known: at once where that is in the window. */
function move(access: "read" | "write", { dma, ranges, segments }: Command, bytes: Uint8Array, done: StatusDone): void {
  const isRead = access === "read";
  if (!segments.locate(dma, ranges, access)) {
    void asStatus(isRead ? dma.readList(ranges, bytes) : dma.writeList(ranges, bytes)).then(done);
    return;
  }
  let at = 0;
  for (let n = 0; n < segments.count; n++) {
    const { bytes: memory, offset, length } = segments.segments[n];
    if (isRead) copyBytes(memory, offset, bytes, at, length);
    else copyBytes(bytes, at, memory, offset, length);
    at += length;
  }
  dma.account(isRead ? at : 0, isRead ? 0 : at);
  done(segments.isLost() ? Status.DATA_TRANSFER_ERROR : Status.SUCCESS);
}
