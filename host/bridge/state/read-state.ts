/**
 * Reads the state that another bridge left, and refuses it in one sentence when anything of it is not as a bridge
 * leaves it: truncated, damaged, of another version, or not fitting the file descriptors that came with it. Whoever
 * takes it then need not check an index, a number of a descriptor or a range again. check-slots.ts has what is asked of
 * each table's records.
 */
import { MAX_QUEUES } from "../../../shared/limits.js";
import { checkSlots, type Saved, type SavedSlots, StateError } from "./check-slots.js";
import type { FdDescription } from "./fd-kinds.js";
import {
  ATTEMPTS_AT,
  Call,
  type CallName,
  checkOf,
  fdName,
  Header,
  Identity,
  LAYOUT,
  LAYOUT_NUMBER,
  MAGIC_HIGH,
  MAGIC_LOW,
  NO_RESULT,
  PAIRS,
  type PairName,
  RING_POSITIONS_SIZE,
  SLOT,
  SLOT_HEAD,
  SLOTS,
  type SlotsName,
  STATE_NAME,
  STREAMS,
  type StreamName,
  sessionAt,
  slotSize,
  stateSize,
  VERSION,
} from "./layout.js";
import {
  callAt,
  copyAt,
  identityValues,
  type PairValues,
  type SessionIdentity,
  type SlotValues,
  type StateBytes,
} from "./state-memory.js";

export interface SavedSession {
  /** Undefined: never written. */
  readonly client: PairValues<"client"> | undefined;
  readonly device: PairValues<"device"> | undefined;
  /** Live and pending records, one for each key, in no order. */
  readonly slots: SavedSlots;
  readonly streams: Readonly<Record<StreamName, SavedStream>>;
  /** Of each queue. */
  readonly rings: readonly { available: number; used: number }[];
}

/** A socket's two directions, with what calls did that ended and were not noted. */
export interface SavedStream {
  /** What came and is not dealt with, and what is to be sent. */
  readonly received: Uint8Array;
  readonly unsent: Uint8Array;
  readonly positions: { received: number; handled: number; queued: number; sent: number };
  /**
   * The last receiving call took descriptors from the socket, and nobody noted it: those that are pending, and came
   * back, are not to be had from there once more.
   */
  readonly tookFds: boolean;
}

export interface SavedState {
  /** How many bridges in a row started with it and never served. */
  readonly attempts: number;
  readonly sessions: readonly SavedSession[];
}

/**
 * @param fileSize of the memfd, all of which `bytes` has
 * @param kept the descriptors that came with it, by name
 * @throws StateError
 */
export function readState(
  bytes: StateBytes,
  fileSize: number,
  identities: readonly SessionIdentity[],
  kept: ReadonlyMap<string, FdDescription>,
): SavedState {
  checkHeader(bytes, fileSize, identities.length);
  const attempts = wordAt(bytes, ATTEMPTS_AT, "the count of attempts");
  const sessions = identities.map((identity, index) => readSession(bytes, index, identity, kept));
  const known = new Set(
    sessions.flatMap(({ slots }, index) => slots.fds.map(({ values }) => fdName(index, values.id))),
  );
  const stranger = [...kept.keys()].find((name) => name !== STATE_NAME && !known.has(name));
  if (stranger !== undefined) throw new StateError(`it knows nothing of the file descriptor ${stranger} that came`);
  return { attempts, sessions };
}

function checkHeader(bytes: StateBytes, fileSize: number, sessions: number): void {
  if (fileSize < sessionAt(0)) throw new StateError(`it is truncated to ${fileSize} bytes`);
  const header = Header.view(bytes.data);
  if (header.magicLow !== MAGIC_LOW || header.magicHigh !== MAGIC_HIGH) throw new StateError("it has no magic number");
  if (header.version !== VERSION) throw new StateError(`it is of version ${header.version}, and not ${VERSION}`);
  if (header.check !== checkOf(bytes.words, 0, Header.offsets.check, 0, 0)) throw damaged("the header");
  if (header.layout !== LAYOUT_NUMBER) throw new StateError("it is of another build of the bridge");
  if (header.sessions !== sessions) {
    throw new StateError(`it is of ${header.sessions} sessions, and the command line has ${sessions}`);
  }
  if (header.size !== stateSize(sessions) || header.sessionSize !== LAYOUT.size) throw damaged("the header");
  if (fileSize !== header.size) throw new StateError(`it is truncated to ${fileSize} of ${header.size} bytes`);
}

function readSession(
  bytes: StateBytes,
  index: number,
  identity: SessionIdentity,
  kept: ReadonlyMap<string, FdDescription>,
): SavedSession {
  const name = `session ${index}`;
  const at = sessionAt(index) + LAYOUT.identity;
  const saved = Identity.view(bytes.data, at);
  if (saved.check !== checkOf(bytes.words, at, Identity.offsets.check, 0, index))
    throw damaged(`${name}: its identity`);
  const { sockets, windowSize } = identityValues(identity);
  if (saved.sockets !== sockets) throw new StateError(`${name} has other sockets than the command line says`);
  if (saved.windowSize !== windowSize) {
    throw new StateError(`${name} has a window of ${saved.windowSize} bytes, and the command line says ${windowSize}`);
  }
  const slots = Object.fromEntries(
    (Object.keys(SLOTS) as SlotsName[]).map((table) => [table, readSlots(bytes, index, table)]),
  ) as unknown as SavedSlots;
  checkSlots(index, slots, windowSize, kept);
  const client = readPair(bytes, index, "client");
  const device = readPair(bytes, index, "device");
  const fds = new Set(slots.fds.map(({ values }) => values.id));
  for (const socket of [client?.socket, client?.twinSocket, device?.socket]) {
    if (socket && !fds.has(socket)) throw new StateError(`${name}: a connection has the unknown descriptor ${socket}`);
  }
  const streams = Object.fromEntries(
    (Object.keys(STREAMS) as StreamName[]).map((stream) => [stream, readStream(bytes, index, stream)]),
  ) as Record<StreamName, SavedStream>;
  return { client, device, slots, streams, rings: readRings(bytes, index) };
}

function readPair<Name extends PairName>(
  bytes: StateBytes,
  session: number,
  name: Name,
): (Required<PairValues<Name>> & { sequence: number }) | undefined {
  const what = `session ${session}: ${name}`;
  const pair = sessionAt(session) + LAYOUT.pairs[name];
  const which = wordAt(bytes, pair, what);
  if (which === 0) return undefined;
  if (which > 2) throw damaged(what);
  const { record, number } = PAIRS[name];
  const at = copyAt(pair, which, record.size);
  return recordAt(bytes, record, at, number, which, what) as Required<PairValues<Name>> & { sequence: number };
}

function readSlots<Name extends SlotsName>(bytes: StateBytes, session: number, name: Name): Saved<Name>[] {
  const { record, number, count } = SLOTS[name];
  const used = wordAt(bytes, sessionAt(session) + LAYOUT.used[name], `session ${session}: ${name}`);
  if (used > count) throw damaged(`session ${session}: ${name}`);
  const found: Saved<Name>[] = [];
  for (let slot = 0; slot < used; slot++) {
    const what = `session ${session}: ${name}, slot ${slot}`;
    const at = sessionAt(session) + LAYOUT.slots[name] + slot * slotSize(name);
    const state = bytes.words[at / 4];
    if (state === SLOT.FREE) continue;
    if (state !== SLOT.PENDING && state !== SLOT.LIVE) throw damaged(what);
    const fields = recordAt(bytes, record, at + SLOT_HEAD, number, slot, what);
    const values = fields as unknown as Required<SlotValues<Name>> & { serial: number };
    found.push({ slot, isPending: state === SLOT.PENDING, serial: values.serial, values });
  }
  return found;
}

function readStream(bytes: StateBytes, session: number, name: StreamName): SavedStream {
  const sizes = STREAMS[name];
  const stream = readPair(bytes, session, sizes.pair);
  const { handled = 0, queued = 0, sequence = 0 } = stream ?? {};
  let { received = 0, sent = 0 } = stream ?? {};
  const waiting = (received - handled) >>> 0;
  const unsent = (queued - sent) >>> 0;
  if (waiting > sizes.received || unsent > sizes.unsent) throw damaged(`session ${session}: ${sizes.pair}`);
  const came = resultOf(bytes, session, name, "receive", sequence, sizes.received - waiting);
  received = (received + came) >>> 0;
  sent = (sent + resultOf(bytes, session, name, "send", sequence, unsent)) >>> 0;
  const receive = Call.view(bytes.data, callAt(session, name, "receive"));
  const at = sessionAt(session);
  return {
    positions: { received, handled, queued, sent },
    tookFds: came > 0 && receive.controlLength > 0,
    received: ringBytes(bytes, at + LAYOUT.received[name], sizes.received, handled, received),
    unsent: ringBytes(bytes, at + LAYOUT.unsent[name], sizes.unsent, sent, queued),
  };
}

/** What the call moved that was made when the stream's sequence was this; 0 when there was none, or it did nothing. */
function resultOf(
  bytes: StateBytes,
  session: number,
  stream: StreamName,
  name: CallName,
  sequence: number,
  most: number,
): number {
  const what = `session ${session}: ${stream} ${name}`;
  const at = callAt(session, stream, name);
  const madeAt = wordAt(bytes, at, what);
  const result = bytes.words[(at + Call.offsets.result) / 4];
  if (madeAt !== sequence || result === NO_RESULT) return 0;
  if (result > most) throw damaged(what);
  return result;
}

function ringBytes(bytes: StateBytes, ring: number, size: number, from: number, to: number): Uint8Array {
  const length = (to - from) >>> 0;
  const start = from % size;
  const first = Math.min(length, size - start);
  const copy = new Uint8Array(length);
  copy.set(new Uint8Array(bytes.buffer, ring + start, first));
  copy.set(new Uint8Array(bytes.buffer, ring, length - first), first);
  return copy;
}

function readRings(bytes: StateBytes, session: number) {
  return Array.from({ length: MAX_QUEUES }, (_, queue) => {
    const what = `session ${session}: queue ${queue}`;
    const at = sessionAt(session) + LAYOUT.rings + queue * RING_POSITIONS_SIZE;
    const [available, used] = [wordAt(bytes, at, what), wordAt(bytes, at + 8, what)];
    if (available > 0xffff || used > 0xffff) throw damaged(what);
    return { available, used };
  });
}

function wordAt(bytes: StateBytes, offset: number, what: string): number {
  const value = bytes.word(offset);
  if (value === undefined) throw damaged(what);
  return value;
}

interface Checked {
  readonly offsets: Readonly<Record<string, number>>;
  view(data?: DataView, offset?: number): object;
}

/** A record's numbers by name, once its check was found to be right. */
function recordAt(bytes: StateBytes, record: Checked, at: number, table: number, place: number, what: string): object {
  const check = bytes.words[(at + record.offsets.check) / 4];
  if (check !== checkOf(bytes.words, at, record.offsets.check, table, place)) throw damaged(what);
  const view = record.view(bytes.data, at) as Record<string, number>;
  const fields = Object.keys(record.offsets).filter((name) => name !== "check");
  return Object.fromEntries(fields.map((name) => [name, view[name]]).filter(([, value]) => value !== undefined));
}

const damaged = (what: string) => new StateError(`${what} is damaged`);
