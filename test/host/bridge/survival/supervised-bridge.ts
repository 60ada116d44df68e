/**
 * The bridge with its supervisor, as `--supervised` starts both, in one file as it is in the package, and what a test
 * needs to have it die at a chosen place: words of memory that all lives of the bridge count in (native/crash_point.h).
 */
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import * as native from "../../../../native/index.js";
import { BRIDGE_MAIN, bundle } from "../../../../scripts/package/bundle.js";
import { PAGE_SIZE } from "../../../../shared/limits.js";
import { BridgeProcess, type BridgeProcessOptions } from "../../../fakes/front-end-bridge.js";

/** Where in the words: points until this life dies, until the next one does, and all that were passed. */
const THIS_LIFE = 0;
const NEXT_LIFE = 1;
const PASSED = 2;
/** What is said of each death. */
const DEATH = /was killed by signal 9/;

export class SupervisedBridge {
  /** What goes with it. */
  readonly #paths: readonly string[];
  readonly #words: Uint32Array;
  readonly bridge: BridgeProcess;

  private constructor(paths: readonly string[], words: Uint32Array, bridge: BridgeProcess) {
    this.#paths = paths;
    this.#words = words;
    this.bridge = bridge;
  }

  /** Starts both, and waits until the bridge serves. */
  static async start(options: BridgeProcessOptions = {}): Promise<SupervisedBridge> {
    const folder = mkdtempSync(join(tmpdir(), "survival-"));
    const file = join(folder, "words");
    const main = BRIDGE_MAIN.replace(/main\.js$/, `${basename(folder)}.mjs`);
    const fd = openSync(file, "w+");
    ftruncateSync(fd, PAGE_SIZE);
    const words = new Uint32Array(native.mapFile(fd, 0, PAGE_SIZE, native.PROT_READ | native.PROT_WRITE));
    closeSync(fd);
    const env = { RUNTIME_DIRECTORY: folder, VFIO_USER_CRASH_AT: file, VFIO_USER_STARTS: "1000000", ...options.env };
    const args = ["--supervised", ...(options.args ?? [])];
    try {
      await bundle(BRIDGE_MAIN, main);
      return new SupervisedBridge([folder, main], words, await BridgeProcess.start({ ...options, main, args, env }));
    } catch (error) {
      for (const path of [folder, main]) rmSync(path, { recursive: true, force: true });
      throw error;
    }
  }

  /** The bridge dies at the `point`-th place from now on, and the next one at its `next`-th. 0 is never. */
  arm(point: number, next = 0): void {
    this.#words[NEXT_LIFE] = next;
    this.#words[THIS_LIFE] = point;
  }

  /** Whether a place to die at was not reached yet. */
  get isArmed(): boolean {
    return this.#words[THIS_LIFE] !== 0 || this.#words[NEXT_LIFE] !== 0;
  }

  /** Places that were passed so far, by all lives. */
  get passed(): number {
    return this.#words[PASSED];
  }

  /** How often the bridge died. */
  get deaths(): number {
    return this.bridge.log.match(new RegExp(DEATH, "g"))?.length ?? 0;
  }

  /** The process id of this life; undefined between two. */
  get pid(): number | undefined {
    const holder = this.bridge.process.pid;
    const [child] = readFileSync(`/proc/${holder}/task/${holder}/children`, "utf8").split(" ");
    return child === "" ? undefined : Number(child);
  }

  /** The program's one file, which the next life is started from. */
  get program(): string {
    return this.#paths[1];
  }

  /** Ends this life. */
  kill(): void {
    const { pid } = this;
    if (pid !== undefined) process.kill(pid, "SIGKILL");
  }

  /** What this life and the supervisor have open; undefined while there is no bridge. */
  openFiles(): { readonly bridge: OpenFiles; readonly kept: OpenFiles } | undefined {
    const { pid } = this;
    const bridge = pid === undefined ? undefined : filesOf(pid);
    const kept = filesOf(this.bridge.process.pid);
    return bridge && kept && { bridge, kept };
  }

  async stop(): Promise<number | null> {
    const { pid } = this;
    try {
      return await this.bridge.stop();
    } finally {
      // A supervisor that was killed leaves the bridge alone.
      if (pid !== undefined && this.bridge.process.signalCode !== null) tryKill(pid);
      for (const path of this.#paths) rmSync(path, { recursive: true, force: true });
    }
  }
}

export interface OpenFiles {
  sockets: number;
  eventfds: number;
  memfds: number;
}

/** Undefined for a process that has ended. */
function filesOf(pid: number | undefined): OpenFiles | undefined {
  const folder = `/proc/${pid}/fd`;
  const counts = { sockets: 0, eventfds: 0, memfds: 0 };
  try {
    for (const name of readdirSync(folder)) {
      const target = readlinkSync(join(folder, name));
      if (target.startsWith("socket:")) counts.sockets++;
      else if (target === "anon_inode:[eventfd]") counts.eventfds++;
      else if (target.startsWith("/memfd:")) counts.memfds++;
    }
  } catch {
    return undefined;
  }
  return counts;
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}
