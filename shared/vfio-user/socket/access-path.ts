/**
 * The access path: register accesses on their way from a client's socket to the ring of a device VM, and back, in C++
 * (native AccessPath). It takes REGION_READ, REGION_WRITE and REGION_WRITE_MULTI that pass the checks, one at a time
 * and in order; anything else, and whatever cannot be done at once, comes up to TypeScript as if there were no path.
 *
 * All that the path knows is in one piece of memory, which this class owns: accesses that the device was asked for,
 * what is still to be sent, why it is stopped. So it can be stopped and started between any two messages, and what is
 * in flight then goes on by whoever looks after it: a reply that TypeScript takes from the ring is delivered here, and
 * an access that is not waited for any longer is taken, and answered.
 */
import * as native from "../../../native/index.js";
import { crashPoint } from "../../../native/supervision.js";
import { TICKS_PER_DEADLINE } from "../../deadline.js";
import type { Latencies } from "../../histogram.js";
import { MAX_REGIONS } from "../../limits.js";
import { RegionAccess } from "../../spec/vfio-user.js";
import { setU64, struct } from "../../struct/struct.js";
import { Share, TURN, type Turn } from "../../turn.js";
import { type DeviceQueue, RingState } from "../../virtqueue/device.js";

/** Accesses without a reply: one that the client waits for, and those that were abandoned. */
const MAX_ACCESSES = 16;
/** The path's ids on the link are those from here on. */
const FIRST_ID = 0x8000;

/** What accesses are checked against: sizes of regions, how many there are, and those whose writes are posted. */
const DeviceRegions = struct({ sizes: 8 * MAX_REGIONS, count: "u32", posted: "u32" });

/** None is another one with a byte changed. */
const AccessState = { FREE: 0, WAITS: 0x57414954, ABANDONED: 0x474f4e45 } as const;
/**
 * An access that the device was asked for; `access` is a RegionAccess, as it came. It is [position, end) of what the
 * client sent; `used` is the used index that gave it to the device.
 */
const PendingAccess = struct({
  state: "u32",
  clientId: "u32",
  command: "u32",
  flags: "u32",
  position: "u32",
  end: "u32",
  access: RegionAccess.size,
  used: "u32",
  check: "u32",
  /** In ticks. */
  startedAt: "u32",
  measuredAt: "u32",
});

/**
 * How far messages to the device process had come when a used index was stored. There are two, and the ring's index
 * says which of them holds: that with its `used`. `count` whole messages were sent so far, and `left` bytes of one
 * were not. `position` is that of the client's command that was passed on last.
 */
const SentRecord = struct({ used: "u32", count: "u32", left: "u32", position: "u32", check: "u32" });
const SENT_WORDS = SentRecord.size / 4;

/** See native/access_path.h. */
const PathState = struct({
  stopped: "u32",
  ticks: "u32",
  held: "u32",
  leastCost: "u32",
  lightCost: "u32",
  mostCost: "u32",
  mostNs: "u32",
  active: "u32",
  nextEntry: "u32",
  sentCount: "u32",
  turnCost: "u32",
  turnNs: "u32",
  reads: "u32",
  readsFromMemory: "u32",
  writes: "u32",
  postedWrites: "u32",
  sent: "u32",
  received: "u32",
  signals: "u32",
  reserved: 4,
  sentRecords: 2 * SentRecord.size,
  device: DeviceRegions.size,
  pending: MAX_ACCESSES * PendingAccess.size,
});
const SENT_AT = PathState.offsets.sentRecords / 4;
/** Bytes of memory that a path wants, a multiple of 8 from a multiple of 8 on. */
export const PATH_STATE_SIZE = PathState.size;

/** The same table as native/access_path.cc has it. */
const LAYOUT = Uint32Array.of(
  PathState.offsets.stopped,
  PathState.offsets.leastCost,
  PathState.offsets.active,
  PathState.offsets.sentCount,
  PathState.offsets.turnCost,
  PathState.offsets.reads,
  PathState.offsets.sentRecords,
  PathState.offsets.device,
  PathState.offsets.pending,
  PathState.size,
  DeviceRegions.offsets.count,
  DeviceRegions.offsets.posted,
  PendingAccess.offsets.position,
  PendingAccess.offsets.access,
  PendingAccess.offsets.used,
  PendingAccess.size,
  SentRecord.size,
  AccessState.WAITS,
  AccessState.ABANDONED,
  RingState.offsets.call,
  RingState.size,
  FIRST_ID,
);

/** Why the path is stopped, as bits. */
export const Stop = {
  /** The device is not there for the client, or not yet, or its VM is paused. */
  DEVICE: 1,
  /** Messages of TypeScript's wait for the ring, or one that came by it is not complete. */
  CHANNEL: 2,
  /** Register memory, in which writes are counted, is not here. */
  REGISTERS: 4,
} as const;

/** The check over words, as C++ has it. */
function checkWords(words: Uint32Array, from: number, count: number): number {
  let check = 0x811c9dc5;
  for (let n = from; n < from + count; n++) {
    check = Math.imul(check ^ words[n], 0x01000193);
    check ^= check >>> 15;
  }
  return check >>> 0;
}

/** What the client's connection has to do for the path. */
export interface PathClient {
  /** Where the first command begins that was not dealt with. */
  readonly handled: number;
  /** Sends what the socket did not take at once. */
  attend(): void;
  /** It waits for no access any more: its next command may be handed over. */
  resume(): void;
}

const NO_COUNTS = { reads: 0, readsFromMemory: 0, writes: 0, postedWrites: 0, sent: 0, received: 0, signals: 0 };
const COUNTS = Object.keys(NO_COUNTS) as (keyof typeof NO_COUNTS)[];
/** Accesses of clients', messages to the device process and from it, and interrupts of its VM. */
export type PathCounts = Record<keyof typeof NO_COUNTS, number>;

export class AccessPath {
  /** For a Stream and a Poll. */
  readonly native: native.AccessPath;
  readonly #data: DataView;
  readonly #words: Uint32Array;
  readonly #fields: ReturnType<typeof PathState.view>;
  readonly #entry = PendingAccess.view();
  /** Its state is as another process left it, until a client goes on with it. */
  #isRestored = false;
  /** Where that passed on a command last, -1 when it did not. */
  #sent = -1;
  readonly #counts = { ...NO_COUNTS };
  #client: PathClient | undefined;
  /** The rings run: replies to what the device was asked may come. */
  #mayReply = false;

  /** `state`: PATH_STATE_SIZE bytes, of zeros or as another process left them. */
  constructor(share: Share, state = new Uint8Array(PATH_STATE_SIZE)) {
    this.#data = new DataView(state.buffer, state.byteOffset, PATH_STATE_SIZE);
    this.#words = new Uint32Array(state.buffer, state.byteOffset, PATH_STATE_SIZE / 4);
    this.#fields = PathState.view(this.#data);
    const fields = this.#fields;
    fields.active = 0;
    fields.held = 0;
    fields.ticks = 0;
    for (const name of [...COUNTS, "turnCost"] as const) fields[name] = 0;
    fields.stopped = Stop.DEVICE;
    fields.leastCost = TURN.LEAST_COST;
    fields.lightCost = TURN.LIGHT;
    fields.mostCost = TURN.MOST;
    fields.mostNs = TURN.MOST_MS * 1e6;
    this.native = new native.AccessPath(state, LAYOUT, Share.lightTurns, share.words);
  }

  /** Whose accesses go by the path; undefined: nobody's. What was under way for the one before is nobody's any more. */
  set client(client: PathClient | undefined) {
    if (this.#isRestored && client) this.#goOnWith(client.handled);
    else this.abandon();
    this.#isRestored = false;
    this.#client = client;
  }

  get client(): PathClient | undefined {
    return this.#client;
  }

  /** What accesses are checked against. */
  setDevice(regionSizes: readonly number[], postedRegions: number): void {
    const at = PathState.offsets.device;
    for (const [n, size] of regionSizes.entries()) setU64(this.#data, at + 8 * n, size);
    this.#data.setUint32(at + DeviceRegions.offsets.count, regionSizes.length, true);
    this.#data.setUint32(at + DeviceRegions.offsets.posted, postedRegions, true);
  }

  /** The rings to the device and from it; the path is stopped where they do not run. */
  rings(to: DeviceQueue, from: DeviceQueue): void {
    this.#mayReply = to.running && from.running;
    if (!this.#mayReply) {
      this.native.rings();
      return;
    }
    this.native.rings([to.state, ...to.parts, to.eventIndex], [from.state, ...from.parts, from.eventIndex]);
  }

  /** Latencies are noted there from now on, or nowhere any more. */
  measure(latencies: Latencies | undefined): void {
    this.native.measure(latencies?.words);
  }

  /** Those that `rings` was given last ran. */
  get hasRings(): boolean {
    return this.#mayReply;
  }

  stop(reasons: number): void {
    this.#fields.stopped |= reasons;
  }

  start(reasons: number): void {
    this.#fields.stopped &= ~reasons;
  }

  /** The client waits for an access. */
  get isBusy(): boolean {
    return this.#fields.active !== 0;
  }

  /** A command waits until it does not; then the client's `resume` is called. */
  hold(): void {
    this.#fields.held = 1;
  }

  /** Does what the path left to be done, after POLL_PATH or `deliver`. */
  attend(): void {
    const fields = this.#fields;
    this.#client?.attend();
    if (fields.held === 0 || this.isBusy) return;
    fields.held = 0;
    this.#client?.resume();
  }

  /** Ends a turn of the path's that was not a light one. */
  endTurn(turn: Turn): void {
    const { turnCost, turnNs } = this.#fields;
    if (turnCost === 0) return;
    this.#fields.turnCost = 0;
    turn.endElsewhere(turnCost, turnNs / 1e6);
  }

  /** Whether an id of the link's is one of the path's. */
  has(id: number): boolean {
    return id >= FIRST_ID;
  }

  /** A message with such an id, bytes[offset, offset + length), that came otherwise. False when it answers nothing. */
  deliver(bytes: Uint8Array, offset: number, length: number): boolean {
    if (!this.native.deliver(bytes, offset, length)) return false;
    this.attend();
    return true;
  }

  /** Called TICKS_PER_DEADLINE times within the reply deadline. Whether an access has had no reply for all of it. */
  tick(): boolean {
    const fields = this.#fields;
    fields.ticks = (fields.ticks + 1) >>> 0;
    return this.isBusy && (fields.ticks - this.#active().startedAt) >>> 0 >= TICKS_PER_DEADLINE;
  }

  /** Where the access that the client waits for begins in what it sent, and where it ends. */
  get position(): number {
    return this.#active().position;
  }

  get end(): number {
    return this.#active().end;
  }

  /** Nobody waits for the access any more; its reply may come. */
  abandon(): void {
    if (!this.isBusy) return;
    this.#active().state = this.#mayReply ? AccessState.ABANDONED : AccessState.FREE;
    this.#fields.active = 0;
  }

  /** The device process answers nothing any more. The access that the client waits for is still to be taken. */
  reset(): void {
    this.#mayReply = false;
    for (let n = 0; n < MAX_ACCESSES; n++) {
      if (n !== this.#fields.active - 1) this.#entry.at(this.#data, this.#entryAt(n)).state = AccessState.FREE;
    }
    this.native.rings();
  }

  /** What the path did since this was asked last, if anything; all of it is in `counts`. */
  takeCounts(): Readonly<PathCounts> {
    const { sent, received, readsFromMemory } = this.#fields;
    if (sent === 0 && received === 0 && readsFromMemory === 0) return NO_COUNTS;
    const taken = { ...NO_COUNTS };
    for (const name of COUNTS) {
      taken[name] = this.#fields[name];
      this.#counts[name] += taken[name];
      this.#fields[name] = 0;
    }
    return taken;
  }

  get counts(): PathCounts {
    const counts = { ...this.#counts };
    for (const name of COUNTS) counts[name] += this.#fields[name];
    return counts;
  }

  /** The ring to the device process begins: nothing was given to it. */
  beginSending(): void {
    this.#words.fill(0, SENT_AT, SENT_AT + 2 * SENT_WORDS);
    this.#sent = -1;
  }

  /** Messages that the device process was given so far, modulo 2^32; it goes on from process to process. */
  get sentCount(): number {
    return this.#fields.sentCount;
  }

  /**
   * Before a used index is stored that gives the device process something of the channel's: `left` bytes of the message
   * are left then, and it is the client's command at `position`, -1 for others.
   */
  noteSent(used: number, left: number, position: number): void {
    const other = SENT_AT + ((used + 1) & 1) * SENT_WORDS;
    const at = SENT_AT + (used & 1) * SENT_WORDS;
    const words = this.#words;
    if (left === 0) this.#fields.sentCount = (this.#fields.sentCount + 1) >>> 0;
    words[at] = used;
    words[at + 1] = this.#fields.sentCount;
    words[at + 2] = left;
    words[at + 3] = left === 0 && position >= 0 ? position : words[other + 3];
    words[at + 4] = checkWords(words, at, SENT_WORDS - 1);
    crashPoint?.();
  }

  /**
   * Goes on with what another process left, the ring to the device process having this used index. Accesses that it was
   * asked for are the client's that comes by `client` next. False when that cannot be: a message was begun and not
   * sent, or the state is damaged.
   */
  restore(used: number): boolean {
    const at = SENT_AT + (used & 1) * SENT_WORDS;
    const [itsUsed, count, left, position, check] = this.#words.subarray(at, at + SENT_WORDS);
    const isNew = this.#words.subarray(SENT_AT, SENT_AT + 2 * SENT_WORDS).every((word) => word === 0);
    if (!isNew) {
      if (itsUsed !== used || check !== checkWords(this.#words, at, SENT_WORDS - 1) || left > 0) return false;
      this.#fields.sentCount = count;
      this.#sent = position;
    }
    for (let n = 0; n < MAX_ACCESSES; n++) {
      const entry = this.#entry.at(this.#data, this.#entryAt(n));
      if (entry.state === AccessState.FREE) continue;
      const words = (this.#entryAt(n) + PendingAccess.offsets.clientId) / 4;
      const length = (PendingAccess.offsets.check - PendingAccess.offsets.clientId) / 4;
      if (entry.check !== checkWords(this.#words, words, length)) return false;
      // Given to the ring is what the index says.
      if (entry.used === ((used + 1) & 0xffff)) entry.state = AccessState.FREE;
      else if (entry.state !== AccessState.WAITS && entry.state !== AccessState.ABANDONED) return false;
      entry.startedAt = 0;
    }
    this.#isRestored = true;
    return true;
  }

  /** Whether another process passed on the client's command at that position, or one behind it. */
  wasPassed(position: number): boolean {
    return this.#sent >= 0 && ((position - this.#sent) | 0) <= 0;
  }

  /** The access that the client's first command is, which another process passed on, is in flight. */
  #goOnWith(handled: number): void {
    for (let n = 0; n < MAX_ACCESSES; n++) {
      const entry = this.#entry.at(this.#data, this.#entryAt(n));
      if (entry.state !== AccessState.WAITS) continue;
      if (entry.position === handled) this.#fields.active = n + 1;
      else entry.state = AccessState.ABANDONED;
    }
  }

  #active() {
    return this.#entry.at(this.#data, this.#entryAt(this.#fields.active - 1));
  }

  #entryAt(number: number): number {
    return PathState.offsets.pending + number * PendingAccess.size;
  }
}
