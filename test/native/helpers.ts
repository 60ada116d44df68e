/**
 * What the addon's tests share: temp folders, fds that close themselves, and a look at which fds the process has open.
 */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { ExecutionContext } from "ava";
import * as native from "../../native/index.js";

export const MiB = 1 << 20;
export const PAGE = 4096;

/** Closes the fd when the test ends. */
export function owned(t: ExecutionContext, fd: number): number {
  t.teardown(() => native.close(fd));
  return fd;
}

export function pair(t: ExecutionContext): [number, number] {
  const [a, b] = native.socketPair();
  return [owned(t, a), owned(t, b)];
}

export function folder(t: ExecutionContext): string {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), "native-"));
  t.teardown(() => fs.rmSync(made, { recursive: true }));
  return made;
}

/** Clears O_NONBLOCK, as a hostile peer can for the open file description that it shares with us. */
export function makeBlocking(fd: number): void {
  const FIONBIO = 0x5421;
  native.ioctl(fd, FIONBIO, new Uint8Array(4));
}

/**
 * How many fds of this process lead to the memfd of that name: other tests run in the same process at the same time.
 */
export function fdsOfMemory(name: string): number {
  let count = 0;
  for (const entry of fs.readdirSync("/proc/self/fd")) {
    try {
      if (fs.readlinkSync(`/proc/self/fd/${entry}`).startsWith(`/memfd:${name} `)) count++;
    } catch {
      // Closed meanwhile: another test's.
    }
  }
  return count;
}

/** The kernel's number of an eventfd. */
function eventfdId(fd: number | string): string | undefined {
  return /^eventfd-id:\s*(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1];
}

/** How many fds of this process lead to the same eventfd. */
export function fdsOfEventfd(fd: number): number {
  const id = eventfdId(fd);
  if (id === undefined) throw new Error("no eventfd");
  let count = 0;
  for (const entry of fs.readdirSync("/proc/self/fdinfo")) {
    try {
      if (eventfdId(entry) === id) count++;
    } catch {
      // Closed meanwhile: another test's.
    }
  }
  return count;
}

/** Resolves with the events when the fd reports some. */
export function ready(fd: number, events = native.POLL_READABLE): Promise<number> {
  return new Promise((resolve) => {
    const poll = new native.Poll(fd, (reported) => {
      poll.close();
      resolve(reported);
    });
    poll.start(events);
  });
}

/** What a SystemError must carry. */
export function failure(code: string, errno: number, syscall: string) {
  return { code, errno, syscall, message: new RegExp(`^${code}: .*, ${syscall}`) };
}

/** A shell's command line for Node.js with at most so many MiB of address space more than it has when it starts. */
export function withAddressSpace(moreMiB: number, ...args: readonly string[]): readonly string[] {
  const status = 'process.stdout.write(require("fs").readFileSync("/proc/self/status"))';
  const [, kiB] =
    /^VmSize:\s+(\d+) kB/m.exec(execFileSync(process.execPath, ["-e", status], { encoding: "utf8" })) ?? [];
  return ["-c", `ulimit -v ${Number(kiB) + moreMiB * 1024}; exec "$0" "$@"`, process.execPath, ...args];
}
