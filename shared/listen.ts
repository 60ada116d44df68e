/** Sockets that people name: their paths, listening on one, with what can be wrong in words for people. */
import { accessSync, constants, lstatSync } from "node:fs";
import { isListener, listen } from "../native/index.js";
import { isSystemError, UserError } from "./errors.js";

/** sun_path, without its NUL. */
const MAX_PATH_BYTES = 107;

/** Why a socket cannot be made, by errno. */
const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such directory",
  ENOTDIR: "what should be its directory is none",
  EACCES: "this user may not write to its directory",
  EPERM: "its directory takes no sockets",
  EROFS: "its file system is read-only",
  ENOSPC: "its file system is full",
  ELOOP: "its symbolic links go round in circles",
  EMFILE: "this process may have no more file descriptors (LimitNOFILE=, ulimit -n)",
};

/** @throws UserError for a path that no socket can have */
export function checkSocketPath(path: string): void {
  if (path === "") throw new UserError("a socket path is empty", 2);
  if (path.includes("\0")) throw new UserError("a socket path has a byte of zero in it", 2);
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    throw new UserError(`${path} is longer than the ${MAX_PATH_BYTES} bytes that a socket's path may have`, 2);
  }
}

/** Returns the fd of a listening AF_UNIX socket. @throws UserError when the path cannot be had */
export function listenAt(path: string, backlog: number): number {
  checkSocketPath(path);
  try {
    return listen(path, backlog);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const { code, message } = error;
    if (code !== "EADDRINUSE") throw new UserError(`cannot listen on ${path}: ${REASONS[code] ?? message}`);
    throw new UserError(`${path} ${inTheWay(path)}, or choose another path`);
  }
}

/** What is at a path that cannot be had, and what to do. */
function inTheWay(path: string): string {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === false) return "is there and is no socket: remove it";
  try {
    accessSync(path, constants.W_OK);
  } catch {
    return "is another user's socket: remove it as that user";
  }
  return "is served already: stop the process that serves it";
}

/** @throws UserError for a file descriptor that is no listening AF_UNIX stream socket */
export function checkListener(fd: number): void {
  if (isListener(fd)) return;
  throw new UserError(
    `file descriptor ${fd} is no listening AF_UNIX stream socket: open one and hand it down (systemd's first is 3)`,
  );
}
