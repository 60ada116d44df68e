/**
 * Records messages of vfio-user and of the link into a pcapng file, with times and directions, for Wireshark
 * (docs/protocol/README.md). It is bounded: of two halves the older one goes, and what the disk is too slow for is lost
 * and counted. Nobody waits for it. The file has driver-VM data, so that only its owner may read it.
 */
import { constants } from "node:fs";
import { type FileHandle, open, rename } from "node:fs/promises";
import { UserError } from "../errors.js";
import { KiB, MiB } from "../limits.js";
import type { Log } from "../log.js";
import { CAPTURE_VERSION, CaptureHead, LinkType } from "../spec/capture.js";
import { enhancedPacket, interfaceDescription, interfaceStatistics, sectionHeader } from "./pcapng.js";

/** Bytes of a message that are kept. */
const SNAP_LENGTH = 64 * KiB;
/** Bytes that may wait for the disk, and that are written at once. */
const MAX_WAITING = 16 * MiB;
const MAX_WRITE = MiB;
/** A half has room for its head and for any packet. */
const MIN_SIZE = MiB;
const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
const MODE = 0o600;

export interface CaptureOptions {
  readonly path: string;
  /** Bytes that both halves may have together; at least 1 MiB. */
  readonly size: number;
  readonly log: Log;
}

/** One direction pair of one session. */
export class CaptureInterface {
  dropped = 0;
  readonly #add: (owner: CaptureInterface, block: Buffer) => void;
  readonly #head = new Uint8Array(CaptureHead.size);
  readonly #view = CaptureHead.view(new DataView(this.#head.buffer));

  constructor(
    readonly index: number,
    readonly name: string,
    readonly linkType: number,
    add: (owner: CaptureInterface, block: Buffer) => void,
  ) {
    this.#add = add;
    this.#view.version = CAPTURE_VERSION;
  }

  /** Records bytes[offset, offset + length), which came or went with so many fds. */
  message(direction: number, bytes: Uint8Array, offset: number, length: number, fds: number): void {
    this.#view.direction = direction;
    this.#view.fds = fds;
    const kept = bytes.subarray(offset, offset + Math.min(length, SNAP_LENGTH));
    this.#add(this, enhancedPacket(this.index, now(), CaptureHead.size + length, this.#head, kept));
  }
}

export class Capture {
  readonly #options: CaptureOptions;
  readonly #interfaces: CaptureInterface[] = [];
  #file: FileHandle;
  /** Bytes in the file that is written. */
  #written = 0;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  /** What writes at the moment. */
  #writing: Promise<void> | undefined;
  #isClosed = false;

  private constructor(options: CaptureOptions, file: FileHandle) {
    this.#options = options;
    this.#file = file;
    this.#put(sectionHeader());
  }

  /** @throws UserError when the file cannot be had */
  static async open(options: CaptureOptions): Promise<Capture> {
    const size = Math.max(options.size, MIN_SIZE);
    return new Capture({ ...options, size }, await openFile(options.path));
  }

  /** What records a session's client, or its device process, from now on. */
  interface(name: string, protocol: keyof typeof LinkType): CaptureInterface {
    const index = this.#interfaces.length;
    const add = (owner: CaptureInterface, block: Buffer) => this.#add(owner, block);
    const made = new CaptureInterface(index, name, LinkType[protocol], add);
    this.#interfaces.push(made);
    this.#put(describe(made));
    return made;
  }

  /** Writes what waits, and closes the file. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    for (const { index, dropped } of this.#interfaces) this.#put(interfaceStatistics(index, now(), dropped));
    this.#isClosed = true;
    await this.#writing;
    await this.#file.close();
  }

  #add(owner: CaptureInterface, block: Buffer): void {
    if (this.#isClosed) return;
    if (this.#waitingBytes + block.length > MAX_WAITING) owner.dropped++;
    else this.#put(block);
  }

  #put(block: Buffer): void {
    this.#waiting.push(block);
    this.#waitingBytes += block.length;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  async #write(): Promise<void> {
    try {
      // What comes in this turn of the event loop goes in one call.
      await null;
      while (this.#waiting.length > 0) {
        const room = this.#options.size / 2 - this.#written;
        const { blocks, bytes } = takeUpTo(this.#waiting, Math.min(room, MAX_WRITE));
        if (blocks.length === 0) {
          await this.#turnOver();
          continue;
        }
        await this.#file.appendFile(Buffer.concat(blocks));
        this.#written += bytes;
        this.#waitingBytes -= bytes;
      }
    } catch (error) {
      this.#options.log.error({ err: error, path: this.#options.path }, "the capture ends: it cannot be written");
      this.#isClosed = true;
      this.#waiting = [];
    }
  }

  /** The half that is full takes the place of the one before. */
  async #turnOver(): Promise<void> {
    const { path } = this.#options;
    await this.#file.close();
    await rename(path, `${path}.1`);
    this.#file = await openFile(path);
    const head = [sectionHeader(), ...this.#interfaces.map(describe)];
    await this.#file.appendFile(Buffer.concat(head));
    this.#written = head.reduce((sum, { length }) => sum + length, 0);
  }
}

/** The first blocks that have no more bytes together; they are taken off. */
function takeUpTo(waiting: Buffer[], most: number): { blocks: Buffer[]; bytes: number } {
  let bytes = 0;
  let count = 0;
  while (count < waiting.length && bytes + waiting[count].length <= most) bytes += waiting[count++].length;
  return { blocks: waiting.splice(0, count), bytes };
}

const describe = ({ name, linkType }: CaptureInterface) =>
  interfaceDescription(name, linkType, CaptureHead.size + SNAP_LENGTH);

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, MODE);
  } catch (error) {
    throw new UserError(`cannot write the capture ${path}: ${(error as Error).message}`);
  }
}

/** In microseconds since 1970. */
const now = () => Math.round((performance.timeOrigin + performance.now()) * 1000);
