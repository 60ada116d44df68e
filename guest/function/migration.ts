/**
 * Migration of one function: its state as VFIO's migration version 2 has it, what each step between two states does,
 * and the data that comes and goes (vfio-user, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "VFIO_USER_MIG_DATA_READ"). The
 * caller sees to it that nothing here, and no reset, runs beside another.
 *
 * While the function is stopped, config space and the MSI-X table answer, maps and interrupt bindings change; the
 * device's BARs, its DMA and its interrupts stand still.
 *
 * Left out: the two states for peer-to-peer DMA, as in vfio-user.
 */
import { Errno, ProtocolError } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { MigrationState } from "../../shared/spec/vfio-user.js";
import type { Migration } from "../device.js";
import type { ConfigSpace } from "../pci/config-space.js";
import type { MsixTable } from "../pci/msix.js";
import type { RegisterMirror } from "../pci/register-mirror.js";
import type { InterruptController } from "./interrupts.js";
import {
  encodeHeader,
  encodePiece,
  encodeState,
  type FunctionState,
  parseStream,
  StreamBuffer,
} from "./migration-stream.js";
import type { RunState } from "./region-access.js";
import type { Regions } from "./regions.js";
import type { Sharing } from "./sharing.js";

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;

/**
 * By state, those that one step leads to. None leads from or to ERROR. (vfio-user, "Direct State Transitions" and
 * "Complex State Transitions"; <linux/vfio.h>, enum vfio_device_mig_state.)
 */
const ARCS: Readonly<Record<number, readonly number[]>> = {
  [STOP]: [RUNNING, STOP_COPY, RESUMING],
  [RUNNING]: [STOP, PRE_COPY],
  [STOP_COPY]: [STOP],
  [RESUMING]: [STOP],
  [PRE_COPY]: [RUNNING, STOP_COPY],
};

function isSaving(state: number): boolean {
  return state === PRE_COPY || state === STOP_COPY;
}

/**
 * The states to go through from `from` to `to`, which is the last of them: the shortest way on which no saving state
 * lies in between. Empty when they are the same; undefined when there is no way, or the way is forbidden.
 */
export function migrationPath(from: number, to: number): readonly number[] | undefined {
  if (ARCS[from] === undefined || ARCS[to] === undefined) return undefined;
  // What was read before would be read again, and the stream make no sense.
  if (from === STOP_COPY && to === PRE_COPY) return undefined;
  const ways: number[][] = [[]];
  for (let way = ways.shift(); way !== undefined; way = ways.shift()) {
    const at = way.at(-1) ?? from;
    if (at === to) return way;
    if (at !== from && isSaving(at)) continue;
    for (const next of ARCS[at]) if (next !== from && !way.includes(next)) ways.push([...way, next]);
  }
  return undefined;
}

/** The parts of the function whose state moves. */
export interface FunctionParts {
  readonly config: ConfigSpace;
  readonly msix: MsixTable | undefined;
  readonly regions: Regions;
  readonly sharing: Sharing;
  readonly interrupts: InterruptController;
  readonly mirror: RegisterMirror;
  /** Where it says whether the function stands still: no access to its BARs, no DMA, no interrupts. */
  readonly state: RunState;
  readonly log: Log;
  /** After a change of it. */
  stateChanged(): void;
  /** The device's pause and resumption; false when it failed. */
  pause(): Promise<boolean>;
  resume(): Promise<boolean>;
  /** Whether jobs wait for the resumption. */
  jobsWait(): boolean;
}

export class FunctionMigration {
  /** MigrationState. */
  state: number = RUNNING;
  readonly #parts: FunctionParts;
  readonly #migration: Migration;
  /** Saving: what has not been read yet. Resuming: what has come. */
  readonly #stream = new StreamBuffer();
  /** PRE_COPY: the device was not asked for a piece yet. */
  #isFirstPiece = false;

  constructor(parts: FunctionParts, migration: Migration) {
    this.#parts = parts;
    this.#migration = migration;
  }

  /**
   * Goes to `target`, through all states in between. @throws ProtocolError; the state is then one on the way, or ERROR
   */
  async setState(target: number): Promise<void> {
    const path = migrationPath(this.state, target);
    if (path === undefined) throw new ProtocolError(`no way from migration state ${this.state} to ${target}`);
    for (const next of path) {
      await this.#step(this.state, next);
      this.#parts.log.info({ from: this.state, to: next }, "migration state");
      this.state = next;
    }
  }

  /** At most `size` bytes of the stream; fewer when there are no more at the moment. @throws ProtocolError */
  async read(size: number): Promise<Uint8Array> {
    if (!isSaving(this.state)) throw new ProtocolError(`no migration data to read in state ${this.state}`);
    while (this.state === PRE_COPY && this.#stream.length < size && (await this.#preCopy()));
    return this.#stream.take(size);
  }

  /**
   * Takes more of the stream; the bytes are copied. @throws ProtocolError EINVAL in another state, E2BIG when it is too
   * long
   */
  write(bytes: Uint8Array): void {
    if (this.state !== RESUMING) throw new ProtocolError(`no migration data to write in state ${this.state}`);
    try {
      this.#stream.push(bytes);
    } catch (error) {
      throw new ProtocolError(error instanceof RangeError ? error.message : String(error), Errno.E2BIG);
    }
  }

  /** The device was reset: it runs, whatever state it was in. */
  reset(): void {
    this.#stream.clear();
    this.state = RUNNING;
    this.#go();
  }

  async #step(from: number, to: number): Promise<void> {
    if (to === RUNNING && from === STOP) await this.#resume();
    else if (to === RUNNING) this.#stream.clear();
    else if (to === STOP && from === RUNNING) await this.#pause();
    else if (to === STOP && from === RESUMING) await this.#load();
    else if (to === STOP || to === RESUMING) this.#stream.clear();
    else if (to === PRE_COPY) this.#beginStream();
    else if (to === STOP_COPY) await this.#save(from);
  }

  async #pause(): Promise<void> {
    const isPaused = await this.#parts.pause();
    this.#stop();
    if (!isPaused) this.#fail("the device did not pause", Errno.EIO);
  }

  async #resume(): Promise<void> {
    this.#go();
    if (!(await this.#parts.resume())) this.#fail("the device did not resume", Errno.EIO);
  }

  #stop(): void {
    this.#parts.state.isStopped = true;
    this.#parts.stateChanged();
    this.#parts.mirror.hold();
    this.#parts.interrupts.hold();
    this.#parts.sharing.hold();
  }

  #go(): void {
    this.#parts.state.isStopped = false;
    this.#parts.stateChanged();
    this.#parts.mirror.release();
    this.#parts.interrupts.release();
    this.#parts.sharing.release();
  }

  async #save(from: number): Promise<void> {
    if (from === PRE_COPY) await this.#pause();
    else this.#beginStream();
    try {
      for (const part of encodeState(await this.#functionState())) this.#stream.push(part);
    } catch (error) {
      // It stands still, and nothing is wrong with it: it can go on, or be asked again.
      this.#stream.clear();
      this.state = STOP;
      this.#parts.log.error({ err: error }, "the device's state was not saved");
      throw new ProtocolError("the device's state was not saved", Errno.EIO);
    }
  }

  async #functionState(): Promise<FunctionState> {
    const { config, msix, interrupts, regions, sharing, jobsWait } = this.#parts;
    if (jobsWait()) throw new Error("jobs of the device's wait, and they cannot be moved");
    return {
      config: config.save(),
      msix: msix?.save(),
      interrupts: interrupts.savePending(),
      registers: regions.saveRegisters(),
      shared: sharing.save(),
      device: (await this.#migration.save?.()) ?? new Uint8Array(0),
    };
  }

  /** Makes what came the function's state. */
  async #load(): Promise<void> {
    const { config, msix, interrupts, regions, sharing, log } = this.#parts;
    const stream = this.#stream.take(this.#stream.length);
    this.#stream.clear();
    try {
      const state = parseStream(stream);
      const { device, pieces } = state;
      if ((state.msix === undefined) !== (msix === undefined)) throw new RangeError("another function's MSI-X");
      if (device.length > 0 && !this.#migration.load) throw new RangeError("a state of a device that has none");
      config.load(state.config);
      if (state.msix !== undefined) msix?.load(state.msix);
      interrupts.loadPending(state.interrupts);
      regions.loadRegisters(state.registers);
      sharing.load(state.shared);
      await this.#migration.load?.(device, pieces);
    } catch (error) {
      log.warn({ err: error }, "a migration stream is refused");
      this.#fail("the migration stream is none of the device's", Errno.EINVAL);
    }
  }

  /** Asks the device for a piece. False when there is none now. */
  async #preCopy(): Promise<boolean> {
    const first = this.#isFirstPiece;
    this.#isFirstPiece = false;
    try {
      const piece = await this.#migration.preCopy?.(first);
      if (piece === undefined) return false;
      for (const part of encodePiece(piece)) this.#stream.push(part);
      return true;
    } catch (error) {
      this.#parts.log.error({ err: error }, "the device's pre-copy failed");
      throw new ProtocolError("the device's pre-copy failed", Errno.EIO);
    }
  }

  /** Nothing but a reset helps now. */
  #fail(what: string, errno: number): never {
    this.#stream.clear();
    this.#stop();
    this.state = ERROR;
    throw new ProtocolError(what, errno);
  }

  #beginStream(): void {
    this.#stream.clear();
    this.#isFirstPiece = true;
    this.#stream.push(encodeHeader());
  }

  inspect(): unknown {
    return { state: this.state, stopped: this.#parts.state.isStopped, bytes: this.#stream.length };
  }
}
