/**
 * DMA to driver-VM memory: looks addresses up in the table of the client's maps and reaches them through the window,
 * or, for maps that are not in it, by copies that the bridge makes, or by messages. PCI's bus master bit is honoured:
 * while it is clear nothing can be reached. What goes by copies and messages takes time: it is kept track of, so that
 * an unmap or a reset can wait for it.
 */
import { formatAddress } from "../../shared/address.js";
import { Errno, ProtocolError } from "../../shared/errors.js";
import { isLost } from "../../shared/lost-memory.js";
import { DmaTable } from "../../shared/vfio-user/dma/dma-table.js";
import { copyBytes } from "../../shared/virtqueue/memory.js";
import { type Dma, DmaError, type Segment } from "../device.js";
import type { DmaMapping, Link } from "../link/link.js";
import type { ScatterList } from "../scatter-list.js";
import type { DirtyLog } from "./dirty-log.js";
import type { LaneMemory } from "./lane-mirror.js";
import { ListCopies, MEMORY_GONE } from "./list-copies.js";
import { TransfersInFlight } from "./transfers-in-flight.js";

/** A driver VM may have many thousands. */
const MAX_MAPS_INSPECTED = 64;

type Access = "read" | "write";

const NO_BYTES = new Uint8Array(0);

export class WindowDma implements Dma {
  bytesRead = 0;
  bytesWritten = 0;
  /** Bytes moved by messages, either way. */
  bytesByMessage = 0;
  /** Bytes moved by copies, either way. */
  bytesByCopy = 0;
  /** The most bytes of one DMA message to the client. */
  maxMessageData = 0;
  #dirtyLog: DirtyLog | undefined;
  readonly #maps = new DmaTable<DmaMapping>();
  readonly #link: Link;
  readonly #busMaster: () => boolean;
  /** Has the same maps, as far as they are in the window. */
  readonly #lanes: LaneMemory | undefined;
  readonly #pieceSize: number;
  /** Views of each piece of the window that a map was in. */
  readonly #bytes: Uint8Array[] = [];
  readonly #data: DataView[] = [];
  readonly #lists = new ListCopies(this);
  readonly #transfers = new TransfersInFlight();
  /** Messages that the client has not answered, and how many it had when that was looked at. */
  #messages = 0;
  #answers = 0;
  #seenAnswers = -1;
  readonly #segment: Segment = { bytes: NO_BYTES, data: new DataView(NO_BYTES.buffer), offset: 0, length: 0 };

  /** `busMaster`: whether the function may do DMA now; asked before each part, and by `gateChanged` for `lanes`. */
  constructor(link: Link, busMaster: () => boolean, lanes?: LaneMemory) {
    this.#lanes = lanes;
    this.#link = link;
    this.#busMaster = busMaster;
    this.#pieceSize = link.window.pieceSize;
    this.gateChanged();
  }

  /** What is written is marked in it, while there is one. */
  get dirtyLog(): DirtyLog | undefined {
    return this.#dirtyLog;
  }

  set dirtyLog(log: DirtyLog | undefined) {
    this.#dirtyLog = log;
    this.#lanes?.logInto(log);
  }

  /** Marks what lanes have written so far. */
  collectWritten(): void {
    if (this.#dirtyLog !== undefined) this.#lanes?.collect(this.#dirtyLog);
  }

  gateChanged(): void {
    this.#lanes?.permit(this.#busMaster());
  }

  /** @throws ProtocolError EINVAL, EEXIST, ENOSPC */
  map(mapping: DmaMapping): void {
    this.#maps.insert(mapping);
    // Opening a piece costs a garbage collection: better now than at the first access.
    const { windowOffset, size } = mapping;
    if (windowOffset < 0) return;
    const last = Math.floor((windowOffset + size - 1) / this.#pieceSize);
    for (let index = Math.floor(windowOffset / this.#pieceSize); index <= last; index++) {
      if (this.#bytes[index] === undefined) this.#openPiece(index);
    }
    this.#lanes?.map(mapping);
  }

  /**
   * Takes away all maps in a range: nothing reaches them through this object afterwards; segments given out before are
   * the device's to end. Whether there was any. @throws ProtocolError EINVAL when one is only partly in the range
   */
  unmap(address: number, size: number): boolean {
    const maps = this.#maps.within(address, size);
    this.#maps.removeAll(maps);
    this.#lanes?.unmap(maps);
    return maps.length > 0;
  }

  unmapAll(): void {
    this.#maps.clear();
    this.#lanes?.unmapAll();
  }

  locate(address: number, length: number, access: Access, into: Segment): number {
    into.length = 0;
    const mapping = this.#find(address, access);
    if (mapping === undefined || mapping.windowOffset < 0) return 0;
    const inMap = address - this.#maps.start;
    const windowOffset = mapping.windowOffset + inMap;
    // Not `%`: on numbers beyond 32 bits it is a call of C's fmod, which takes longer than all the rest.
    const index = Math.floor(windowOffset / this.#pieceSize);
    const offset = windowOffset - index * this.#pieceSize;
    const bytes = this.#bytes[index];
    into.bytes = bytes;
    into.data = this.#data[index];
    into.offset = offset;
    into.length = Math.min(length, mapping.size - inMap, bytes.length - offset);
    if (this.#dirtyLog !== undefined && access === "write") this.#dirtyLog.mark(address, into.length);
    return into.length;
  }

  view(address: number, length: number, access: Access): Uint8Array | undefined {
    const segment = this.#segment;
    if (this.locate(address, length, access, segment) < length) return undefined;
    return segment.bytes.subarray(segment.offset, segment.offset + length);
  }

  async read(address: number, target: Uint8Array): Promise<void> {
    const copied = this.#copyFrom(address, target, 0);
    if (copied === target.length) return;
    await this.#transfers.track(address, target.length, this.#readParts(address, target, copied));
  }

  async write(address: number, source: Uint8Array): Promise<void> {
    const copied = this.#copyTo(address, source, 0);
    if (copied === source.length) return;
    await this.#transfers.track(address, source.length, this.#writeParts(address, source, copied));
  }

  /** Whether no transfer to or from the range is in flight. */
  isIdle(address?: number, length?: number): boolean {
    return this.#transfers.isIdle(address, length);
  }

  /** Resolves when the transfers to and from the range that are in flight now have ended. */
  settled(address?: number, length?: number): Promise<void> {
    return this.#transfers.settled(address, length);
  }

  /** Whether answers of the client's are waited for, and none has come since this was asked last. */
  clientIsSilent(): boolean {
    const isSilent = this.#messages > 0 && this.#answers === this.#seenAnswers;
    this.#seenAnswers = this.#answers;
    return isSilent;
  }

  /** Gives up the messages that concern the range, or all. */
  abandonMessages(address?: number, length?: number): void {
    this.#link.abandonMessages(address, length);
  }

  /** Waits for what the link moves. @throws DmaError */
  async #outside(
    { isCopied }: DmaMapping,
    moved: Promise<void>,
    address: number,
    length: number,
    access: Access,
  ): Promise<void> {
    if (!isCopied) return this.#answered(moved, address, length, access);
    try {
      await moved;
    } catch (error) {
      // The map is there, so it is the memory that is not.
      const isGone = error instanceof ProtocolError && error.errno === Errno.EFAULT;
      throw isGone ? gone(address, length, access) : error;
    }
  }

  /** @throws DmaError when it was given up, since the memory goes or the function is reset */
  async #answered(moved: Promise<void>, address: number, length: number, access: Access): Promise<void> {
    this.#messages++;
    try {
      await moved;
    } catch (error) {
      const isGivenUp = error instanceof ProtocolError && error.errno === Errno.ECANCELED;
      throw isGivenUp ? new DmaError(address, length, access) : error;
    } finally {
      this.#messages--;
      this.#answers++;
    }
  }

  async #readParts(address: number, target: Uint8Array, from: number): Promise<void> {
    for (let done = from; done < target.length; ) {
      const copied = this.#copyFrom(address + done, target, done);
      if (copied > 0) {
        done += copied;
        continue;
      }
      const { mapping, length } = this.#outsideWindow(address + done, target.length - done, "read");
      const moved = this.#link.readMemory(address + done, target.subarray(done, done + length), mapping.isCopied);
      await this.#outside(mapping, moved, address + done, length, "read");
      this.#accountFor(mapping, length);
      done += length;
    }
  }

  async #writeParts(address: number, source: Uint8Array, from: number): Promise<void> {
    for (let done = from; done < source.length; ) {
      const copied = this.#copyTo(address + done, source, done);
      if (copied > 0) {
        done += copied;
        continue;
      }
      const { mapping, length } = this.#outsideWindow(address + done, source.length - done, "write");
      // Marked before and after: a report in between has it once, and it may not have been written yet by then.
      this.#dirtyLog?.mark(address + done, length);
      const moved = this.#link.writeMemory(address + done, source.subarray(done, done + length), mapping.isCopied);
      await this.#outside(mapping, moved, address + done, length, "write");
      this.#dirtyLog?.mark(address + done, length);
      this.#accountFor(mapping, length);
      done += length;
    }
  }

  allocate(length: number): Uint8Array<ArrayBuffer> {
    return this.#link.allocate(length);
  }

  readSync(address: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const copied = this.#copyFrom(address + done, target, done);
      if (copied === 0) throw new DmaError(address + done, target.length - done, "read");
      done += copied;
    }
  }

  writeSync(address: number, source: Uint8Array): void {
    for (let done = 0; done < source.length; ) {
      const copied = this.#copyTo(address + done, source, done);
      if (copied === 0) throw new DmaError(address + done, source.length - done, "write");
      done += copied;
    }
  }

  readList(list: ScatterList, target: Uint8Array): Promise<void> {
    return this.#moveList(list, target, "read");
  }

  writeList(list: ScatterList, source: Uint8Array): Promise<void> {
    return this.#moveList(list, source, "write");
  }

  readListSync(list: ScatterList, target: Uint8Array): void {
    this.#moveListSync(list, target, "read");
  }

  writeListSync(list: ScatterList, source: Uint8Array): void {
    this.#moveListSync(list, source, "write");
  }

  account(read: number, written: number): void {
    this.bytesRead += read;
    this.bytesWritten += written;
  }

  /** For diagnostics; of many maps the first ones. */
  inspect() {
    const all = Array.from(this.#maps);
    const maps = all.slice(0, MAX_MAPS_INSPECTED).map((map) => ({ ...map, address: formatAddress(map.address) }));
    const { bytesRead, bytesWritten, bytesByCopy, bytesByMessage } = this;
    const mappedBytes = all.reduce((sum, { size }) => sum + size, 0);
    const mapsInWindow = all.filter(({ windowOffset }) => windowOffset >= 0).length;
    return {
      mapCount: all.length,
      mapsInWindow,
      mappedBytes,
      maps,
      busMaster: this.#busMaster(),
      bytesRead,
      bytesWritten,
      bytesByCopy,
      bytesByMessage,
    };
  }

  /**
   * Copies what is in the window. Returns how many bytes that was, from the list's beginning on. @throws DmaError when
   * some of it is gone
   */
  #copyList(list: ScatterList, bytes: Uint8Array, access: Access): number {
    const copied = this.#lists.run(list, bytes, access);
    if (copied === MEMORY_GONE) throw gone(list.addresses[0], list.length, access);
    if (access === "read") this.bytesRead += copied;
    else this.bytesWritten += copied;
    return copied;
  }

  async #moveList(list: ScatterList, bytes: Uint8Array, access: Access): Promise<void> {
    const copied = this.#copyList(list, bytes, access);
    if (copied === list.length) return;
    // The list may be used for something else meanwhile.
    const ranges = Array.from({ length: list.count }, (_, n) => [list.addresses[n], list.lengths[n]] as const);
    const moves: Promise<void>[] = [];
    let failure: unknown;
    let begin = 0;
    for (const [address, length] of ranges) {
      const done = Math.min(length, Math.max(0, copied - begin));
      const rest = bytes.subarray(begin + done, begin + length);
      begin += length;
      if (done === length) continue;
      const move = access === "read" ? this.read(address + done, rest) : this.write(address + done, rest);
      const ended = move.catch((error) => {
        failure ??= error;
      });
      moves.push(ended);
      // Copies wait in their queue, messages here: only so many can be in flight.
      if (this.#maps.at(address + done)?.isCopied !== true) await ended;
      if (failure !== undefined) break;
    }
    // The array is the device's again afterwards, also when one of them failed.
    await Promise.all(moves);
    if (failure !== undefined) throw failure;
  }

  #moveListSync(list: ScatterList, bytes: Uint8Array, access: Access): void {
    let left = this.#copyList(list, bytes, access);
    if (left === list.length) return;
    for (let n = 0; n < list.count; left -= list.lengths[n++]) {
      const length = list.lengths[n];
      if (left < length) throw new DmaError(list.addresses[n] + left, length - left, access);
    }
  }

  /**
   * Copies as much as one segment holds; 0 when the address is not in the window. @throws DmaError when the memory is
   * gone
   */
  #copyFrom(address: number, target: Uint8Array, at: number): number {
    const segment = this.#segment;
    const length = this.locate(address, target.length - at, "read", segment);
    copyBytes(segment.bytes, segment.offset, target, at, length);
    if (length > 0 && isLost(segment.bytes, segment.offset, length)) throw gone(address, length, "read");
    this.bytesRead += length;
    return length;
  }

  #copyTo(address: number, source: Uint8Array, at: number): number {
    const segment = this.#segment;
    const length = this.locate(address, source.length - at, "write", segment);
    copyBytes(source, at, segment.bytes, segment.offset, length);
    if (length > 0 && isLost(segment.bytes, segment.offset, length)) throw gone(address, length, "write");
    this.bytesWritten += length;
    return length;
  }

  /** The map of an address that is not in the window, and how much one access to it may move. @throws DmaError */
  #outsideWindow(address: number, length: number, access: Access): { mapping: DmaMapping; length: number } {
    const mapping = this.#find(address, access);
    if (mapping === undefined) throw new DmaError(address, length, access);
    const most = mapping.isCopied ? length : Math.min(length, this.maxMessageData);
    return { mapping, length: Math.min(most, mapping.address + mapping.size - address) };
  }

  #accountFor({ isCopied }: DmaMapping, length: number): void {
    if (isCopied) this.bytesByCopy += length;
    else this.bytesByMessage += length;
  }

  #find(address: number, access: Access): DmaMapping | undefined {
    if (!Number.isSafeInteger(address) || !this.#busMaster()) return undefined;
    const mapping = this.#maps.at(address);
    if (mapping === undefined) return undefined;
    return (access === "read" ? mapping.readable : mapping.writable) ? mapping : undefined;
  }

  #openPiece(index: number): void {
    const piece = this.#link.window.piece(index);
    this.#bytes[index] = new Uint8Array(piece);
    this.#data[index] = new DataView(piece);
  }
}

function gone(address: number, length: number, access: Access): DmaError {
  return new DmaError(address, length, access, "its memory, or some of it, is gone: its file was made smaller");
}
