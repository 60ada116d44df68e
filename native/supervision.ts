/** The addon's exports for a process that somebody supervises; index.ts has the rest, and the conventions. */
import { loadAddon, platformFile } from "./platform.js";

/** The program that supervises where no service manager does (holder.cc). */
export const HOLDER = platformFile("vfio-user-holder");

interface Supervision {
  /** A datagram socket, for `send`, that is connected to a path, or to an abstract name if it begins with "@". */
  connectDatagrams(path: string): number;
  /**
   * Sends a datagram over such a socket, with a descriptor unless it is -1, and waits so long for room. False when
   * there was none.
   */
  sendDatagram(socket: number, bytes: Uint8Array, fd: number, milliseconds: number): boolean;
  /**
   * execv: the process becomes another program, and keeps its environment and its standard files. Returns only by
   * throwing.
   */
  execute(path: string, args: readonly string[]): never;
  /** A place at which a test has the process die (crash_point.h); undefined when nobody tests. */
  readonly crashPoint: (() => void) | undefined;
}

const addon = loadAddon() as Supervision;

export const { connectDatagrams, crashPoint, execute, sendDatagram } = addon;
