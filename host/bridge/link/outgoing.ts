/**
 * Messages that wait for the device process to offer space for them, back to back. Of each it is known which of the
 * client's commands it is, since that is noted when the device process is given its last byte.
 */
import { KiB, MiB } from "../../../shared/limits.js";
import { Header } from "../../../shared/spec/vfio-user.js";
import type { DeviceQueue } from "../../../shared/virtqueue/device.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";

/**
 * Waiting bytes that no well-behaved producer reaches: one largest message on top of the mark, and control messages.
 */
const BACKLOG_LIMIT = 4 * MiB;
const INITIAL_BACKLOG = 16 * KiB;

export class Outgoing {
  /** #bytes[#head, #tail). */
  #bytes = new Uint8Array(INITIAL_BACKLOG);
  #data = new DataView(this.#bytes.buffer);
  readonly #header = Header.view();
  #head = 0;
  #tail = 0;
  /** Bytes of the message at #head that have not been written yet; 0 at a message's start. */
  #left = 0;
  /** Of each message: where the client's command is in what it sent, -1 for others. */
  #positions: number[] = [];

  /** Bytes that wait. */
  get backlog(): number {
    return this.#tail - this.#head;
  }

  /** Messages that wait. */
  get count(): number {
    return this.#positions.length;
  }

  /** Puts a message behind the others, its body bytes[offset, offset + length). False when too much waits. */
  push(
    id: number,
    command: number,
    flags: number,
    errno: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    position: number,
  ): boolean {
    const size = Header.size + length;
    if (!this.#makeRoom(size)) return false;
    const header = this.#header.at(this.#data, this.#tail);
    header.id = id;
    header.command = command;
    header.size = size;
    header.flags = flags;
    header.errno = errno;
    copyBytes(bytes, offset, this.#bytes, this.#tail + Header.size, length);
    this.#tail += size;
    this.#positions.push(position);
    return true;
  }

  /**
   * Writes what fits of the first message into the current chain of `queue`; returns how many bytes. `note` is told the
   * used index that is going to be stored, what is left of the message then, and its position.
   */
  writeTo(queue: DeviceQueue, note: { noteSent(used: number, left: number, position: number): void }): number {
    if (this.#left === 0) this.#left = this.#header.at(this.#data, this.#head).size;
    const count = Math.min(this.#left, queue.writable);
    queue.write(0, this.#bytes, this.#head, count);
    this.#head += count;
    this.#left -= count;
    note.noteSent(queue.nextUsed, this.#left, this.#positions[0]);
    queue.complete(count);
    if (this.#left === 0) this.#positions.shift();
    if (this.#head === this.#tail) {
      this.#head = 0;
      this.#tail = 0;
    }
    return count;
  }

  /** Drops messages of which nothing was written, where `isWanted` does not say that they stay. */
  withdraw(isWanted: (id: number, command: number, flags: number) => boolean): void {
    let from = this.#head + this.#left;
    let to = from;
    const positions = this.#left > 0 ? [this.#positions[0]] : [];
    for (let n = positions.length; from < this.#tail; n++) {
      const { id, command, flags, size } = this.#header.at(this.#data, from);
      if (isWanted(id, command, flags)) {
        this.#bytes.copyWithin(to, from, from + size);
        to += size;
        positions.push(this.#positions[n]);
      }
      from += size;
    }
    this.#positions = positions;
    this.#tail = to;
  }

  clear(): void {
    this.#head = 0;
    this.#tail = 0;
    this.#left = 0;
    this.#positions = [];
  }

  /** Makes room for `size` more bytes behind #tail; false when that is too much. */
  #makeRoom(size: number): boolean {
    if (this.#tail + size <= this.#bytes.length) return true;
    const { backlog } = this;
    if (backlog + size > BACKLOG_LIMIT) return false;
    let length = this.#bytes.length;
    while (length < backlog + size) length *= 2;
    if (length > this.#bytes.length) {
      const larger = new Uint8Array(length);
      larger.set(this.#bytes.subarray(this.#head, this.#tail));
      this.#bytes = larger;
      this.#data = new DataView(larger.buffer);
    } else {
      this.#bytes.copyWithin(0, this.#head, this.#tail);
    }
    this.#head = 0;
    this.#tail = backlog;
    return true;
  }
}
