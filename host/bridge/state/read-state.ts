/**
 * Reads the state of a session that another bridge left, and refuses it in one sentence when anything of it is not as a
 * bridge leaves it: truncated, damaged, of another version, or not fitting the file descriptors that came with it.
 * Whoever takes it then need not check an index, a number of a descriptor or a range again, but for what is in the
 * control state. check-slots.ts has what is asked of each table's records.
 */
import { PAGE_SIZE } from "../../../shared/limits.js";
import { checkSlots, type Saved, type SavedSlots } from "./check-slots.js";
import { controlCheck } from "./control-state.js";
import type { FdDescription } from "./fd-kinds.js";
import {
  ACCEPTED,
  Control,
  Header,
  Identity,
  LAYOUT,
  LAYOUT_NUMBER,
  MAGIC_HIGH,
  MAGIC_LOW,
  MAX_CONTROL_SIZE,
  PAIRS,
  type PairName,
  SLOT,
  SLOT_HEAD,
  SLOTS,
  type SlotsName,
  slotSize,
  VERSION,
} from "./layout.js";
import { type Checked, checkOf, hashText, type StateBytes, StateError } from "./state-bytes.js";
import { copyAt, type PairValues, type SlotValues } from "./tables.js";

/** What a session is that a state has to be of. */
export interface ExpectedIdentity {
  readonly sockets: readonly string[];
  readonly windowSize: number;
}

export interface SavedState {
  /** How many bridges in a row started with it and never served. */
  readonly attempts: number;
  readonly uuid: Uint8Array;
  /** The control state, as JSON has it; undefined: never written. */
  readonly control: unknown;
  /** Undefined: never written. */
  readonly windowRequests: PairValues<"windowRequests"> | undefined;
  readonly unmapped: Required<PairValues<"unmapped">> | undefined;
  /** Live and pending records, one for each key, in no order. */
  readonly slots: SavedSlots;
}

/**
 * @param bytes what there is of the memfd, which has `fileSize`
 * @param kept the descriptors that came with it, by what is behind the session's number in their names
 * @throws StateError
 */
export function readState(
  bytes: StateBytes,
  fileSize: number,
  number: number,
  identity: ExpectedIdentity,
  kept: ReadonlyMap<string, FdDescription>,
): SavedState {
  checkHeader(bytes, fileSize);
  const { uuid } = readIdentity(bytes, number, identity);
  const attempts = wordAt(bytes, LAYOUT.words.attempts, "the count of attempts");
  wordAt(bytes, LAYOUT.words.lastFd, "the last number of a descriptor");
  const unkept = wordAt(bytes, LAYOUT.words.unkept, "the count of descriptors");
  if (unkept > 0) throw new StateError(`${unkept} file descriptors could not be kept`);
  const slots = Object.fromEntries(
    (Object.keys(SLOTS) as SlotsName[]).map((table) => [table, readSlots(bytes, table)]),
  ) as unknown as SavedSlots;
  checkSlots(slots, identity.windowSize, kept);
  const known = new Set(["state", ...ACCEPTED, ...slots.fds.map(({ values }) => String(values.id))]);
  const stranger = [...kept.keys()].find((name) => !known.has(name));
  if (stranger !== undefined) throw new StateError(`it knows nothing of the file descriptor ${stranger} that came`);
  const windowRequests = readPair(bytes, "windowRequests");
  const unmapped = readPair(bytes, "unmapped");
  const control = readControl(bytes);
  return { attempts, uuid, control, windowRequests, unmapped, slots };
}

function checkHeader(bytes: StateBytes, fileSize: number): void {
  if (fileSize < PAGE_SIZE) throw new StateError(`it is truncated to ${fileSize} bytes`);
  const header = Header.view(bytes.data);
  if (header.magicLow !== MAGIC_LOW || header.magicHigh !== MAGIC_HIGH) throw new StateError("it has no magic number");
  if (header.version !== VERSION) throw new StateError(`it is of version ${header.version}, and not ${VERSION}`);
  if (header.check !== checkOf(bytes.words, 0, Header.offsets.check, 0, 0)) throw damaged("the header");
  if (header.layout !== LAYOUT_NUMBER) throw new StateError("it is of another build of the bridge");
  if (header.size !== LAYOUT.size) throw damaged("the header");
  if (fileSize !== header.size) throw new StateError(`it is truncated to ${fileSize} of ${header.size} bytes`);
}

function readIdentity(bytes: StateBytes, number: number, { sockets, windowSize }: ExpectedIdentity) {
  const at = LAYOUT.identity;
  const saved = Identity.view(bytes.data, at);
  const check = checkOf(bytes.words, at, Identity.offsets.check, 0, number);
  if (saved.check !== check || saved.number !== number) throw damaged("its identity");
  if (saved.sockets !== hashText(sockets.join("\0"))) throw new StateError("it is of other sockets");
  if (saved.windowSize !== windowSize) {
    throw new StateError(
      `it has a window of ${saved.windowSize} bytes, and the session is to have one of ${windowSize}`,
    );
  }
  return { uuid: bytes.bytes.slice(at + Identity.offsets.uuidA, at + Identity.offsets.uuidA + 16) };
}

function readControl(bytes: StateBytes): unknown {
  const which = wordAt(bytes, LAYOUT.control, "control");
  if (which === 0) return undefined;
  if (which > 2) throw damaged("control");
  const at = LAYOUT.controlCopies[which - 1];
  const { length, check } = Control.view(bytes.data, at);
  if (length > MAX_CONTROL_SIZE || check !== controlCheck(bytes, at, length, which)) throw damaged("control");
  try {
    return JSON.parse(Buffer.from(bytes.buffer, at + Control.size, length).toString());
  } catch {
    throw damaged("control");
  }
}

function readPair<Name extends PairName>(
  bytes: StateBytes,
  name: Name,
): (Required<PairValues<Name>> & { sequence: number }) | undefined {
  const what = name;
  const pair = LAYOUT.pairs[name];
  const which = wordAt(bytes, pair, what);
  if (which === 0) return undefined;
  if (which > 2) throw damaged(what);
  const { record, number } = PAIRS[name];
  const at = copyAt(pair, which, record.size);
  return recordAt(bytes, record, at, number, which, what) as Required<PairValues<Name>> & { sequence: number };
}

function readSlots<Name extends SlotsName>(bytes: StateBytes, name: Name): Saved<Name>[] {
  const { record, number, count } = SLOTS[name];
  const used = wordAt(bytes, LAYOUT.used[name], name);
  if (used > count) throw damaged(name);
  const found: Saved<Name>[] = [];
  for (let slot = 0; slot < used; slot++) {
    const what = `${name}, slot ${slot}`;
    const at = LAYOUT.slots[name] + slot * slotSize(name);
    const state = bytes.words[at / 4];
    if (state === SLOT.FREE) continue;
    if (state !== SLOT.PENDING && state !== SLOT.LIVE) throw damaged(what);
    const fields = recordAt(bytes, record, at + SLOT_HEAD, number, slot, what);
    const values = fields as unknown as Required<SlotValues<Name>> & { serial: number };
    found.push({ slot, isPending: state === SLOT.PENDING, serial: values.serial, values });
  }
  return found;
}

function wordAt(bytes: StateBytes, offset: number, what: string): number {
  const value = bytes.word(offset);
  if (value === undefined) throw damaged(what);
  return value;
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
