/** What a server counts, over all of its clients. */
import type { Latencies } from "../histogram.js";
import { Command } from "../spec/vfio-user.js";

/** Command numbers that are counted each by itself. */
const COMMANDS = 32;

export class SessionStats {
  clients = 0;
  commands = 0;
  reads = 0;
  /** How many of these the device knows nothing of. */
  readsFromMemory = 0;
  writes = 0;
  errors = 0;
  timeouts = 0;
  /** By vfio-user's command number. */
  readonly byCommand = new Float64Array(COMMANDS);
  /** From a command's arrival to its reply; undefined where nobody looks, and then no clock is read. */
  latencies: Latencies | undefined;

  count(command: number): void {
    this.commands++;
    if (command < COMMANDS) this.byCommand[command]++;
  }

  /** Register accesses that C++ dealt with. */
  countAccesses(reads: number, readsFromMemory: number, writes: number, writesMulti: number): void {
    this.commands += reads + readsFromMemory + writes + writesMulti;
    this.reads += reads + readsFromMemory;
    this.readsFromMemory += readsFromMemory;
    this.writes += writes;
    this.byCommand[Command.REGION_READ] += reads + readsFromMemory;
    this.byCommand[Command.REGION_WRITE] += writes;
    this.byCommand[Command.REGION_WRITE_MULTI] += writesMulti;
  }
}
