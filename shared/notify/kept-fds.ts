/**
 * The file descriptors that a process was started with (sd_listen_fds(3)): those that its last life put into the store
 * of a service manager, and that came back by name.
 *
 * Stricter than the C library of systemd: whatever does not fit together is refused as a whole, since half of a state
 * is none, and nothing is done to a descriptor that may be another's.
 */
import fs from "node:fs";
import { UserError } from "../errors.js";

/** SD_LISTEN_FDS_START. */
const FIRST_FD = 3;
/** As many as the holder keeps (native/fd_store.h). */
const MAX_KEPT_FDS = 4096;

export interface KeptFd {
  readonly name: string;
  readonly fd: number;
}

/**
 * The descriptors, and they are the caller's from now on, and what is said of them is no longer in the environment;
 * none when nothing is said. They are close-on-exec, which Node makes all that it finds as it starts.
 * @throws UserError when what is said is wrong; nothing is taken then
 */
export function takeKeptFds(env: NodeJS.ProcessEnv = process.env, pid = process.pid): KeptFd[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env;
  if (LISTEN_FDS === undefined) return [];
  if (LISTEN_PID !== String(pid)) {
    throw refused(`LISTEN_PID is ${quote(LISTEN_PID)}, and this is process ${pid}: they are another process's`);
  }
  const count = /^\d{1,4}$/.test(LISTEN_FDS) ? Number(LISTEN_FDS) : Number.NaN;
  if (!(count <= MAX_KEPT_FDS)) {
    throw refused(`LISTEN_FDS is ${quote(LISTEN_FDS)}: it must be a number up to ${MAX_KEPT_FDS}`);
  }
  const names = count === 0 ? [] : (LISTEN_FDNAMES?.split(":") ?? []);
  if (names.length !== count) {
    throw refused(`LISTEN_FDS is ${count}, and LISTEN_FDNAMES has ${names.length} names`);
  }
  const fds = names.map((name, index) => ({ name, fd: FIRST_FD + index }));
  const own = watchedFds();
  for (const { name, fd } of fds) {
    const kind = own.has(fd) ? "this process's own" : kindOf(fd);
    if (kind !== undefined) throw refused(`number ${fd} (${quote(name)}) is ${kind}`);
  }
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]) delete env[name];
  return fds;
}

/** What a descriptor is that nobody can have kept for us; undefined for a socket, an eventfd, memory or a file. */
function kindOf(fd: number): string | undefined {
  try {
    const status = fs.fstatSync(fd);
    if (status.isSocket() || status.isFile()) return undefined;
    const target = fs.readlinkSync(`/proc/self/fd/${fd}`);
    return target === "anon_inode:[eventfd]" ? undefined : `no socket, eventfd, memory or file: ${target}`;
  } catch (error) {
    return `not open (${(error as NodeJS.ErrnoException).code})`;
  }
}

/** What this process waits for itself: Node's are where descriptors would be that were not handed over after all. */
function watchedFds(): Set<number> {
  const watched = new Set<number>();
  for (const fd of fs.readdirSync("/proc/self/fd")) {
    try {
      if (fs.readlinkSync(`/proc/self/fd/${fd}`) !== "anon_inode:[eventpoll]") continue;
      const info = fs.readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
      for (const [, target] of info.matchAll(/^tfd: *(\d+)/gm)) watched.add(Number(target));
    } catch {
      // That of the directory itself is closed by now.
    }
  }
  return watched;
}

function refused(reason: string): UserError {
  return new UserError(`the file descriptors of LISTEN_FDS are refused: ${reason}`);
}

const quote = (text: string | undefined) => (text === undefined ? "not set" : JSON.stringify(text));
