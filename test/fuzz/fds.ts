/** File descriptors of all kinds, to be sent to those who expect a certain one. */
import { closeSync, constants, ftruncateSync, openSync, readlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  addSeals,
  createMemory,
  eventfd,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  listen,
  socketPair,
} from "../../native/index.js";
import { KiB, MiB } from "../../shared/limits.js";
import type { Choices } from "./choices.js";

const F_SEAL_WRITE = 0x8;

const O_PATH = 0o10000000;
const SIZES = [0, 1, 4096, 4097, 64 * KiB, 1 * MiB, 2 * MiB, 16 * MiB];

export class FdPool {
  readonly #kept: { fd: number; kind: string }[] = [];
  readonly #fresh: number[] = [];

  constructor() {
    const keep = (kind: string, fd: number) => this.#kept.push({ kind, fd });
    const memory = (size: number, seals: number) => {
      const fd = createMemory("fuzz", size, false);
      addSeals(fd, seals);
      return fd;
    };
    keep("memfd, sealed", memory(1 * MiB, F_SEAL_SHRINK));
    keep("memfd, sealed for everything", memory(1 * MiB, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
    const readOnly = memory(1 * MiB, F_SEAL_SHRINK);
    keep("memfd, read-only", openSync(`/proc/self/fd/${readOnly}`, constants.O_RDONLY));
    closeSync(readOnly);
    keep("memfd, huge and sparse", memory(2 ** 40, F_SEAL_SHRINK));
    keep("eventfd", eventfd(0));
    keep("eventfd, full", eventfd(0xffff_ffff));
    for (const end of socketPair()) keep("socket", end);
    keep("directory", openSync("/tmp", constants.O_RDONLY));
    keep("path only", openSync("/tmp", O_PATH));
    keep("device", openSync("/dev/null", constants.O_RDWR));
    keep("endless device", openSync("/dev/zero", constants.O_RDWR));
    const socket = join(tmpdir(), `fuzz-${process.pid}.sock`);
    keep("socket that listens", listen(socket, 1));
    // To fstat it is a socket; to everybody else it is nothing.
    keep("path only, of a socket", openSync(socket, O_PATH));
    unlinkSync(socket);
    const path = join(tmpdir(), `fuzz-${process.pid}`);
    writeFileSync(path, Buffer.alloc(64 * KiB));
    keep("file", openSync(path, constants.O_RDWR));
    keep("file, write-only", openSync(path, constants.O_WRONLY));
    unlinkSync(path);
    keep("proc file", openSync("/proc/self/status", constants.O_RDONLY));
  }

  /** Any of them, or a fresh memory. Stays the pool's. */
  any(random: Choices): number {
    if (random.chance(30)) return this.memory(random, random.pick(SIZES));
    return random.pick(this.#kept).fd;
  }

  /** Sealed memory of the round's own; now and then not sealed, and then it may shrink later. */
  memory(random: Choices, size: number): number {
    const fd = createMemory("fuzz", size, false);
    if (random.chance(80)) addSeals(fd, F_SEAL_SHRINK);
    this.#fresh.push(fd);
    return fd;
  }

  eventfd(): number {
    const fd = eventfd(0);
    this.#fresh.push(fd);
    return fd;
  }

  /** A socket pair of the round's own. */
  sockets(): [number, number] {
    const pair = socketPair();
    this.#fresh.push(...pair);
    return pair;
  }

  /** Truncates one of the round's memories under whoever mapped it. */
  shrink(random: Choices): void {
    if (this.#fresh.length === 0) return;
    const fd = random.pick(this.#fresh);
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`).startsWith("/memfd:")) ftruncateSync(fd, random.pick([0, 4096]));
    } catch {
      // Sealed.
    }
  }

  /** Closes what was made since. */
  endRound(): void {
    for (const fd of this.#fresh.splice(0)) closeSync(fd);
  }

  close(): void {
    this.endRound();
    for (const { fd } of this.#kept.splice(0)) closeSync(fd);
  }
}
