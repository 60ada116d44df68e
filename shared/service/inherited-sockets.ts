/**
 * Listening sockets that a process was started with: by number (--fd), or by name from a service manager, which is
 * socket activation (LISTEN_FDS, sd_listen_fds(3)). They stay open for as long as the process lives, so that a server
 * that ends can be followed by another on the same socket; `open` gives a descriptor of its own.
 */
import { fstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { resolve } from "node:path";
import { duplicate, isListener } from "../../native/index.js";
import { UserError } from "../errors.js";
import { type KeptFd, takeKeptFds } from "../notify/kept-fds.js";

/** What a service manager calls a socket (FileDescriptorName=). */
export const VFIO_USER_NAME = "vfio-user";
export const VHOST_USER_NAME = "vhost-user";

/** Names of what a process puts into the store itself. */
const KEPT_NAME = /^\d{1,6}\.(state|client|front-end|\d{1,10})$/;

/** A socket of a session: to be made at a path, or handed down. */
export type SocketSource = { readonly path: string } | { readonly fd: number };

/** @throws UserError with exit code 2 for what is no number of a descriptor */
export function parseFd(text: string, option: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new UserError(`${option} is the number of a file descriptor, not "${text}"`, 2);
}

/** What is the same for the same socket. */
export function keyOf(source: SocketSource): string {
  return "path" in source ? resolve(source.path) : `fd ${source.fd}`;
}

export class InheritedSockets {
  /** By number, their inode. */
  readonly #inodes = new Map<number, number>();
  readonly #env: NodeJS.ProcessEnv;
  #all: KeptFd[] | undefined;

  /** To be made before the process listens itself. */
  constructor(env: NodeJS.ProcessEnv = process.env) {
    this.#env = env;
    for (const name of readdirSync("/proc/self/fd")) {
      const fd = Number(name);
      if (isListener(fd)) this.#inodes.set(fd, fstatSync(fd).ino);
    }
  }

  /** Checks one; its inode. @throws UserError for what is no listening AF_UNIX stream socket, or was not handed down */
  check(fd: number): number {
    const inode = this.#inodes.get(fd);
    if (inode !== undefined && isListener(fd)) return inode;
    const what = isListener(fd) ? "it was not handed down to this process" : describe(fd);
    throw new UserError(
      `file descriptor ${fd} is no listening AF_UNIX stream socket: ${what}; open one and hand it down ` +
        "(systemd's first is 3)",
    );
  }

  /** Checks that several are as many sockets. @throws UserError */
  checkDistinct(fds: readonly number[]): void {
    const inodes = fds.map((fd) => this.check(fd));
    const second = inodes.findIndex((inode, i) => inodes.indexOf(inode) !== i);
    if (second === -1) return;
    const first = inodes.indexOf(inodes[second]);
    throw new UserError(`file descriptors ${fds[first]} and ${fds[second]} are one socket: each needs one of its own`);
  }

  /** Another descriptor of it. @throws UserError, or SystemError when the process may have no more */
  open(fd: number): number {
    this.check(fd);
    return duplicate(fd);
  }

  /**
   * The sockets of a service manager, by name, in its order; none when it hands down none. They are no longer in the
   * environment then. @throws UserError when what it says of them is wrong
   */
  activated(): KeptFd[] {
    return this.#handedDown().filter(({ name }) => !KEPT_NAME.test(name));
  }

  /** What the life of the process before put into the service manager's store. @throws UserError as `activated` does */
  kept(pid = process.pid): KeptFd[] {
    const { LISTEN_PID, LISTEN_FDNAMES = "" } = this.#env;
    const isOurs = LISTEN_PID === String(pid) && LISTEN_FDNAMES.split(":").some((name) => KEPT_NAME.test(name));
    if (this.#all === undefined && !isOurs) return [];
    return this.#handedDown().filter(({ name }) => KEPT_NAME.test(name));
  }

  #handedDown(): KeptFd[] {
    this.#all ??= this.#takeAll();
    return this.#all;
  }

  #takeAll(): KeptFd[] {
    const env = this.#env;
    if (env.LISTEN_FDS === undefined) return [];
    // sd_listen_fds_with_names(3) calls them so.
    const unnamed = /^\d{1,4}$/.test(env.LISTEN_FDS) ? Array(Number(env.LISTEN_FDS)).fill("unknown").join(":") : "";
    const taken = takeKeptFds({ ...env, LISTEN_FDNAMES: env.LISTEN_FDNAMES ?? unnamed });
    for (const name of Object.keys(env).filter((each) => each.startsWith("LISTEN_"))) delete env[name];
    return taken;
  }

  /** Whether a service manager hands down sockets to this process that have one of the names. */
  hasNamed(pid = process.pid): boolean {
    const isNamed = (name: string) => [VFIO_USER_NAME, VHOST_USER_NAME].includes(name);
    if (this.#all !== undefined) return this.#all.some(({ name }) => isNamed(name));
    const { LISTEN_PID, LISTEN_FDNAMES = "" } = this.#env;
    const names = LISTEN_FDNAMES.split(":");
    return LISTEN_PID === String(pid) && names.some(isNamed);
  }
}

const TYPES: Readonly<Record<number, string>> = { 2: "a datagram socket", 5: "a SOCK_SEQPACKET socket" };
/** SOCK_STREAM, and the flag of one that listens (__SO_ACCEPTCON). */
const STREAM = 1;
const LISTENING = 0x1_0000;

/** What a descriptor is that is no listening stream socket. */
function describe(fd: number): string {
  try {
    const status = fstatSync(fd);
    const target = readlinkSync(`/proc/self/fd/${fd}`);
    if (status.isFile()) return `it is the file ${target}`;
    // Those that Node opened in its place as it started.
    if (/^anon_inode:\[(eventpoll|eventfd|io_uring)\]$/.test(target)) return "none was handed down by that number";
    if (!status.isSocket()) return `it is ${target}`;
    const lines = readFileSync("/proc/self/net/unix", "utf8").split("\n");
    const fields = lines.map((line) => line.trim().split(/\s+/)).find((each) => each[6] === String(status.ino));
    if (fields === undefined) return "it is a socket of another family";
    const [, , , flags, type] = fields.map((field) => Number.parseInt(field, 16));
    if (type !== STREAM) return `it is ${TYPES[type] ?? "a socket of another type"}`;
    return (flags & LISTENING) === 0 ? "nobody has called listen() on it" : "it listens elsewhere";
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === "EBADF" || code === "ENOENT" ? "it is not open" : `it cannot be looked at (${code})`;
  }
}
