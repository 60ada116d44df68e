/**
 * What is asked of the records of a session that was saved, beyond that each is whole: numbers within their bounds,
 * keys that occur once, ranges that do not overlap, and file descriptors that came and are of the kind that each needs.
 */
import { MAX_DATA_XFER_SIZE, MAX_REGIONS } from "../../../shared/limits.js";
import { type FdDescription, kindName } from "./fd-kinds.js";
import { FD_KIND, MAP_FLAG, SLOTS, type SlotsName } from "./layout.js";
import { StateError } from "./state-bytes.js";
import type { SlotValues } from "./tables.js";

/** A record in a slot. */
export interface Saved<Name extends SlotsName> {
  readonly slot: number;
  readonly isPending: boolean;
  readonly values: Required<SlotValues<Name>>;
  readonly serial: number;
}

export type SavedSlots = { readonly [Name in SlotsName]: readonly Saved<Name>[] };

const COMMAND_MAX = 0xffff;
const ALL_MAP_FLAGS = Object.values(MAP_FLAG).reduce((all, flag) => all | flag, 0);

/**
 * Checks all tables, and leaves in each one record for a key: where there are two, the later one, which was to take the
 * other's place. @throws StateError
 */
export function checkSlots(
  slots: { -readonly [Name in SlotsName]: readonly Saved<Name>[] },
  windowSize: number,
  kept: ReadonlyMap<string, FdDescription>,
): void {
  const check = new SlotCheck(windowSize, kept);
  slots.fds = check.unique("fds", slots.fds, ({ id }) => id);
  // One that its client gave up may be followed by another at the same address.
  slots.maps = check.unique(
    "maps",
    slots.maps,
    ({ address, flags, windowOffset, position }) =>
      `${address} ${flags & MAP_FLAG.UNRELEASED ? `${windowOffset} ${position}` : ""}`,
  );
  slots.commands = check.unique("commands", slots.commands, ({ id }) => id);
  check.fds(slots.fds);
  check.maps(slots.maps);
  check.commands(slots.commands);
}

class SlotCheck {
  readonly #windowSize: number;
  readonly #kept: ReadonlyMap<string, FdDescription>;
  /** Kinds of the live ones, by number. */
  readonly #kinds = new Map<number, number>();

  constructor(windowSize: number, kept: ReadonlyMap<string, FdDescription>) {
    this.#windowSize = windowSize;
    this.#kept = kept;
  }

  unique<Name extends SlotsName>(
    name: Name,
    records: readonly Saved<Name>[],
    key: (values: Saved<Name>["values"]) => unknown,
  ): Saved<Name>[] {
    const found = new Map<unknown, Saved<Name>>();
    const twice = new Set<unknown>();
    for (const record of records) {
      const its = key(record.values);
      const other = found.get(its);
      if (other && (twice.has(its) || other.serial === record.serial)) this.#refuse(name, record, "is there twice");
      if (other) twice.add(its);
      if (!other || other.serial < record.serial) found.set(its, record);
    }
    return [...found.values()];
  }

  fds(records: SavedSlots["fds"]): void {
    for (const { values, isPending } of records) {
      const { id, kind, device, inode } = values;
      const name = String(id);
      const came = this.#kept.get(name);
      if (!came) {
        // Between the record and the message to the store, or between that and the record's end.
        if (isPending) continue;
        throw new StateError(`it needs the file descriptor ${name} (${kindName(kind)}), which did not come`);
      }
      if (came.kind !== kind) {
        throw new StateError(`the file descriptor ${name} should be ${kindName(kind)}, and is ${kindName(came.kind)}`);
      }
      if (came.device !== device || came.inode !== inode) {
        throw new StateError(`the file descriptor ${name} is ${kindName(kind)}, but not the one that was kept`);
      }
      if (!isPending) this.#kinds.set(id, kind);
    }
  }

  maps(records: SavedSlots["maps"]): void {
    const { IN_WINDOW } = MAP_FLAG;
    for (const record of records) {
      const { flags, address, size, fdOffset, windowOffset, backed, fd } = record.values;
      this.#flags("maps", record, flags, ALL_MAP_FLAGS);
      this.#range("maps", record, size, fdOffset);
      if (backed > size) this.#refuse("maps", record, "has more in its file than there is of it");
      if (!(address + size > address) || address + size > 2 ** 63) this.#refuse("maps", record, "is no range");
      this.#fd("maps", record, fd, FD_KIND.MEMORY, true);
      if (!(flags & IN_WINDOW)) continue;
      if (windowOffset + size > this.#windowSize) this.#refuse("maps", record, "lies outside of the window");
    }
    const there = records.filter(({ values }) => !(values.flags & MAP_FLAG.UNRELEASED));
    this.#apart("maps", there, ({ address, size }) => [address, size]);
    const inWindow = records.filter(({ values }) => values.flags & IN_WINDOW);
    this.#apart("maps", inWindow, ({ windowOffset, size }) => [windowOffset, size]);
  }

  commands(records: SavedSlots["commands"]): void {
    for (const record of records) {
      const { command, region, count, clientId, offset } = record.values;
      const isWhole = command <= COMMAND_MAX && clientId <= 0xffff && region < MAX_REGIONS;
      if (!isWhole || count > MAX_DATA_XFER_SIZE || !Number.isSafeInteger(offset)) {
        this.#refuse("commands", record, "is no command");
      }
    }
  }

  #flags<Name extends SlotsName>(name: Name, record: Saved<Name>, flags: number, known: number): void {
    if ((flags & ~known) !== 0) this.#refuse(name, record, "has unknown flags");
  }

  #range<Name extends SlotsName>(name: Name, record: Saved<Name>, size: number, offset: number): void {
    if (size === 0 || !Number.isSafeInteger(offset + size)) this.#refuse(name, record, "is no range");
  }

  /** A live descriptor of that kind; 0 is none, where there may be none. */
  #fd<Name extends SlotsName>(name: Name, record: Saved<Name>, fd: number, kind: number, optional: boolean): void {
    if (fd === 0 ? !optional : this.#kinds.get(fd) !== kind) {
      this.#refuse(name, record, `has the descriptor ${fd}, which is not ${kindName(kind)}`);
    }
  }

  #apart<Name extends SlotsName>(
    name: Name,
    records: readonly Saved<Name>[],
    range: (values: Saved<Name>["values"]) => readonly [start: number, size: number],
  ): void {
    const ranges = records.map((record) => ({ record, range: range(record.values) }));
    ranges.sort((a, b) => a.range[0] - b.range[0]);
    let end = Number.NEGATIVE_INFINITY;
    for (const {
      record,
      range: [start, size],
    } of ranges) {
      if (start < end) this.#refuse(name, record, "overlaps another");
      end = start + size;
    }
  }

  #refuse<Name extends SlotsName>(name: Name, { slot }: Saved<Name>, reason: string): never {
    throw new StateError(`${name}, slot ${slot} of ${SLOTS[name].count}, ${reason}`);
  }
}
