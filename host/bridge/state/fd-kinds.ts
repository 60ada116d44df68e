/** What a file descriptor is, as the state keeps it: enough to see that what came back is what was kept. */
import { fileStatus, isEventfd, isListener } from "../../../native/index.js";
import { FD_KIND } from "./layout.js";

export interface FdDescription {
  /** One of FD_KIND; 0 for what the bridge never keeps. */
  readonly kind: number;
  /** Of a socket or memory; all eventfds share one inode, and have 0 here. */
  readonly device: number;
  readonly inode: number;
}

/** @throws a SystemError for what is not open */
export function describeFd(fd: number): FdDescription {
  const { kind, device, inode } = fileStatus(fd);
  if (kind === "socket") return { kind: isListener(fd) ? FD_KIND.LISTENER : FD_KIND.SOCKET, device, inode };
  if (kind === "memory" || kind === "file") return { kind: FD_KIND.MEMORY, device, inode };
  return { kind: isEventfd(fd) ? FD_KIND.EVENTFD : 0, device: 0, inode: 0 };
}

const NAMES = { [FD_KIND.SOCKET]: "a socket", [FD_KIND.LISTENER]: "a listening socket" };
const MORE_NAMES = { [FD_KIND.EVENTFD]: "an eventfd", [FD_KIND.MEMORY]: "memory" };

export function kindName(kind: number): string {
  return ({ ...NAMES, ...MORE_NAMES } as Record<number, string>)[kind] ?? "something else";
}
