/** Listening on a socket's path, with what can be wrong in words for people. */
import { lstatSync } from "node:fs";
import { listen } from "../native/index.js";
import { isSystemError, UserError } from "./errors.js";

/** Returns the fd of a listening AF_UNIX socket. @throws UserError when the path cannot be had */
export function listenAt(path: string, backlog: number): number {
  try {
    return listen(path, backlog);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    if (error.code !== "EADDRINUSE") throw new UserError(`cannot listen on ${path}: ${error.message}`);
    const isSocket = lstatSync(path, { throwIfNoEntry: false })?.isSocket() ?? true;
    const what = isSocket
      ? "is served already: stop the process that serves it"
      : "is there and is no socket: remove it";
    throw new UserError(`${path} ${what}, or choose another path`);
  }
}
