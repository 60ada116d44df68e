/**
 * What outlives the bridge: for each session a memfd whose bytes are laid out by the tables below, so that the next
 * bridge goes on where this one was killed; and file descriptors. Sessions are apart: what is damaged of one costs that
 * one alone, and they are added and removed without the others.
 *
 * In this folder: this file says what is where; state-bytes.ts and tables.ts write it; state-memory.ts is all of a
 * session, control-state.ts the control state, which is one snapshot; fd-keeper.ts keeps descriptors, of the kinds in
 * fd-kinds.ts; read-state.ts reads what another bridge left, and refuses what is damaged; check-slots.ts has what is
 * asked of the records.
 *
 * A bridge may be killed between any two of its instructions, so what belongs together has to change at once. Four
 * forms of it do, each by the one store that comes last:
 *
 * - a *word*: 32 bits, and their complement in the upper half of the same 64. For what changes often.
 * - a *pair*: two copies of a record, and a word that says which of them holds. The other one is written, then the
 *   word.
 * - the *control state*: the same with two copies of a text.
 * - *slots*: a table of records, each with a word in front of it: free, pending or live. A record that is changed is
 *   put into another slot with a higher serial number, and then the old one is freed.
 *
 * Every record ends with a check over its words, its table and its place, so that what was damaged is refused. What is
 * on its way in and out of sockets has forms of its own (docs/decisions/023-exactly-once.md).
 */
import { MAX_DMA_MAPS, MAX_PENDING_COMMANDS, MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { struct } from "../../../shared/struct/struct.js";
import { PATH_STATE_SIZE } from "../../../shared/vfio-user/socket/access-path.js";
import { STREAM_SIZE } from "../../../shared/vfio-user/socket/stream-memory.js";
import { PENDING_IDS_SIZE } from "./pending-ids.js";
import { hashText } from "./state-bytes.js";
import { TRANSFERS_SIZE } from "./transfers.js";

/** "VVUSTATE". */
export const MAGIC_LOW = 0x53555656;
export const MAGIC_HIGH = 0x45544154;
export const VERSION = 2;

export const Header = struct({
  magicLow: "u32",
  magicHigh: "u32",
  version: "u32",
  /** A number that every change of a table changes: a bridge of another build is of another version. */
  layout: "u32",
  size: "u64",
  check: "u32",
  padding: 4,
});

/** Lone words. */
export const WORDS = [
  /** How many bridges in a row have started with this state and not come to serve. */
  "attempts",
  /** The last number of a file descriptor. */
  "lastFd",
  /** Descriptors that could not be kept, and that the next bridge would need. */
  "unkept",
] as const;
export type WordName = (typeof WORDS)[number];

/** What a session is, once and for all; its sockets as the command line has them, by a hash. */
export const Identity = struct({
  number: "u32",
  sockets: "u32",
  windowSize: "u64",
  uuidA: "u32",
  uuidB: "u32",
  uuidC: "u32",
  uuidD: "u32",
  reserved: 4,
  check: "u32",
});

/** States of a slot; none is another one with a byte changed. */
export const SLOT = { FREE: 0, PENDING: 0x50454e44, LIVE: 0x4c495645 } as const;

/** File descriptors by number; their names in the store are those of `fdName`. 0 stands for none elsewhere. */
const Fds = struct({
  serial: "u32",
  id: "u32",
  kind: "u32",
  reserved: 4,
  device: "u64",
  inode: "u64",
  pad: 4,
  check: "u32",
});
export const FD_KIND = { SOCKET: 1, LISTENER: 2, EVENTFD: 3, MEMORY: 4 } as const;

const DmaMaps = struct({
  serial: "u32",
  flags: "u32",
  address: "i64",
  size: "u64",
  fdOffset: "u64",
  windowOffset: "u64",
  /** What of it its file has, from its start. */
  backed: "u64",
  fd: "u32",
  /** Of the file's pages, which are mapped whole. */
  pageSize: "u32",
  /** Of the DMA_MAP in the client's stream. */
  position: "u32",
  /** Which life of the device process was told of it: see MAP_FLAG. */
  announcement: "u32",
  reserved: 4,
  check: "u32",
});
export const MAP_FLAG = {
  READ: 1,
  WRITE: 2,
  /** It may be mapped for a device. */
  SHAREABLE: 4,
  /** It has a place in the window; and it is mapped there. */
  IN_WINDOW: 8,
  MAPPED: 16,
  /** The device process was told of a part of it, at least; and it has all of it. */
  TOLD: 32,
  ANNOUNCED: 64,
  /** Its client has given it up, and it is still in the window, or known to the device process. */
  UNRELEASED: 128,
} as const;

/** Commands that went to the device process, and were not answered. */
const Commands = struct({
  serial: "u32",
  id: "u32",
  clientId: "u32",
  command: "u32",
  flags: "u32",
  region: "u32",
  offset: "u64",
  count: "u32",
  /** Of CLOCK_MONOTONIC, which goes on from process to process. */
  startedSeconds: "u32",
  reserved: 4,
  check: "u32",
});

/** Slots, each table with its number, which checks cover, and how many there are. */
export const SLOTS = {
  fds: { number: 1, record: Fds, count: 8192 },
  maps: { number: 2, record: DmaMaps, count: MAX_DMA_MAPS + 1 },
  commands: { number: 4, record: Commands, count: 2 * MAX_PENDING_COMMANDS },
} as const;
export type SlotsName = keyof typeof SLOTS;
/** A slot: its state, and the record. */
export const SLOT_HEAD = 4;
export const slotSize = (name: SlotsName) => SLOT_HEAD + SLOTS[name].record.size;

/** Requests for the window: the one that QEMU has not answered, and the one before it, which is not committed yet. */
const WindowRequests = struct({
  sequence: "u32",
  /** 0: none. */
  sent: "u32",
  sentOffset: "u64",
  sentSize: "u64",
  committing: "u32",
  /** What was to be sent on the channel before the request, and where the last reply is that was handled. */
  queued: "u32",
  committingOffset: "u64",
  committingSize: "u64",
  replied: "u32",
  check: "u32",
});

/** What the last DMA_UNMAP did: its place in the client's stream, and the bytes that it unmapped. */
const Unmapped = struct({ sequence: "u32", position: "u32", size: "u64", pad: 4, check: "u32" });

export const PAIRS = {
  windowRequests: { number: 16, record: WindowRequests },
  unmapped: { number: 17, record: Unmapped },
} as const;
export type PairName = keyof typeof PAIRS;
/** A pair: the word, and two copies. */
export const PAIR_HEAD = 8;

/**
 * The sockets of a session: the client's, its twin, the front-end's, and that for requests to the front-end (the
 * window's). What is where in each is StreamMemory's (shared/vfio-user/socket/stream-memory.ts).
 */
export const STREAMS = ["client", "twin", "frontEnd", "window"] as const;
export type StreamName = (typeof STREAMS)[number];

/** The control state: how long a text is, and its check; the text follows. */
export const Control = struct({ length: "u32", check: "u32" });
export const MAX_CONTROL_SIZE = 1 * MiB - Control.size;

interface SessionLayout {
  readonly words: Readonly<Record<WordName, number>>;
  readonly identity: number;
  /** A word for each table: no slot from that number on was ever used. */
  readonly used: Readonly<Record<SlotsName, number>>;
  readonly pairs: Readonly<Record<PairName, number>>;
  /** The word that says which text holds, and both texts. */
  readonly control: number;
  readonly controlCopies: readonly [number, number];
  readonly slots: Readonly<Record<SlotsName, number>>;
  /** The access path's, and the ids of commands that the device process has not answered. */
  readonly path: number;
  readonly pendingIds: number;
  /** DMA by messages that the device process waits for. */
  readonly transfers: number;
  readonly streams: Readonly<Record<StreamName, number>>;
  readonly size: number;
}

/** Where everything is, behind the header. What is large comes last; pages that nobody needs are not there. */
export const LAYOUT: SessionLayout = layOut();

function layOut(): SessionLayout {
  let end = Header.size;
  const take = (size: number, alignment = 8) => {
    const at = Math.ceil(end / alignment) * alignment;
    end = at + size;
    return at;
  };
  const map = <Name extends string, Value>(names: readonly Name[], value: (name: Name) => Value) =>
    Object.fromEntries(names.map((name) => [name, value(name)])) as Record<Name, Value>;
  const slots = Object.keys(SLOTS) as SlotsName[];
  const pairs = Object.keys(PAIRS) as PairName[];
  return {
    words: map(WORDS, () => take(8)),
    identity: take(Identity.size),
    used: map(slots, () => take(8)),
    pairs: map(pairs, (name) => take(PAIR_HEAD + 2 * PAIRS[name].record.size)),
    control: take(8),
    controlCopies: [take(Control.size + MAX_CONTROL_SIZE, PAGE_SIZE), take(Control.size + MAX_CONTROL_SIZE, PAGE_SIZE)],
    slots: map(slots, (name) => take(slotSize(name) * SLOTS[name].count, PAGE_SIZE)),
    path: take(PATH_STATE_SIZE, PAGE_SIZE),
    pendingIds: take(PENDING_IDS_SIZE),
    transfers: take(TRANSFERS_SIZE, PAGE_SIZE),
    streams: map(STREAMS, () => take(STREAM_SIZE, PAGE_SIZE)),
    size: take(0, PAGE_SIZE),
  };
}

/** Names in the store, of a session's state and of its descriptors. */
export const stateName = (session: number) => `${session}.state`;
export const fdName = (session: number, id: number) => `${session}.${id}`;
export const KEPT_NAME = /^(\d{1,6})\.(state|client|front-end|[1-9]\d{0,9})$/;
/** A connection that was accepted, and of which the state does not know yet. */
export const ACCEPTED = ["client", "front-end"] as const;
export type Accepted = (typeof ACCEPTED)[number];

/** The number for `Header.layout`. */
export const LAYOUT_NUMBER = hashText(
  JSON.stringify([
    LAYOUT,
    ...Object.values(SLOTS).map(({ record, count }) => [record.offsets, count]),
    ...Object.values(PAIRS).map(({ record }) => record.offsets),
    [Header.offsets, Identity.offsets, Control.offsets],
  ]),
);
