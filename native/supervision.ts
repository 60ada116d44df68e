/** The addon's exports for a process that somebody supervises; index.ts has the rest, and the conventions. */
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

/** The program that supervises where no service manager does (holder.cc). */
export const HOLDER = fileURLToPath(new URL("./vfio-user-holder", import.meta.url));

interface Supervision {
  /** A datagram socket, for `send`, that is connected to a path, or to an abstract name if it begins with "@". */
  connectDatagrams(path: string): number;
  /**
   * execv: the process becomes another program, and keeps its environment and its standard files. Returns only by
   * throwing.
   */
  execute(path: string, args: readonly string[]): never;
}

const addon = createRequire(import.meta.url)("./addon.node") as Supervision;

export const { connectDatagrams, execute } = addon;
