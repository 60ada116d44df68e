/** Who may connect to a socket, which is the mode and the group of its file. */
import { spawnSync } from "node:child_process";
import { chmodSync, chownSync, closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { UserError } from "../errors.js";

export interface SocketAccess {
  /** Permission bits; undefined: 0600. */
  readonly mode: number | undefined;
  /** A group's number; undefined: the process's. */
  readonly group: number | undefined;
}

/** Node has no name for it (fcntl.h). */
const O_PATH = 0o10000000;
const O_NOFOLLOW = 0o400000;
const MAX_GROUP = 2 ** 32 - 2;

/** @throws UserError with exit code 2 */
export function parseSocketMode(text: string, option = "--socket-mode"): number {
  if (/^[0-7]{3,4}$/.test(text) && Number.parseInt(text, 8) <= 0o777) return Number.parseInt(text, 8);
  throw new UserError(`${option} ${text}: it must be three octal digits, such as 660 or 0660`, 2);
}

/** By name or number. @throws UserError when there is no such group */
export function parseSocketGroup(text: string, option = "--socket-group"): number {
  if (/^\d{1,10}$/.test(text) && Number(text) <= MAX_GROUP) return Number(text);
  const isName = /^[A-Za-z_][\w.@\\-]{0,254}\$?$/.test(text);
  const number = isName ? (groupIn(readGroups(), text) ?? groupIn(askForGroup(text), text)) : undefined;
  if (number === undefined) throw new UserError(`${option} ${text}: there is no such group`, 1);
  return number;
}

function readGroups(): string {
  try {
    return readFileSync("/etc/group", "utf8");
  } catch {
    return "";
  }
}

/** Groups that are not in the file: of a directory service. */
function askForGroup(name: string): string {
  return spawnSync("getent", ["group", name], { encoding: "utf8", timeout: 10_000 }).stdout ?? "";
}

function groupIn(groups: string, name: string): number | undefined {
  const fields = groups
    .split("\n")
    .map((line) => line.split(":"))
    .find(([each]) => each === name);
  return fields !== undefined && /^\d+$/.test(fields[2] ?? "") ? Number(fields[2]) : undefined;
}

/**
 * Gives the socket that was made at the path its group, and then its mode: until then it is its owner's alone. A file
 * that took its place is not touched. @throws UserError when that may not be done
 */
export function setSocketAccess(path: string, { mode, group }: SocketAccess): void {
  if (mode === undefined && group === undefined) return;
  let fd = -1;
  try {
    fd = openSync(path, O_PATH | O_NOFOLLOW);
    if (!fstatSync(fd).isSocket()) throw new UserError(`${path} was replaced by something that is no socket`);
    const self = `/proc/self/fd/${fd}`;
    if (group !== undefined) chownSync(self, -1, group);
    if (mode !== undefined) chmodSync(self, mode);
  } catch (error) {
    if (error instanceof UserError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    const help =
      group === undefined ? message : "this user may not give files to that group: it must be one of its own";
    throw new UserError(`cannot set who may connect to ${path}: ${code === "EPERM" ? help : message}`);
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
