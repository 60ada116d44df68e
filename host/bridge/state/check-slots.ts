/**
 * What is asked of the records of a session that was saved, beyond that each is whole: numbers within their bounds,
 * keys that occur once, ranges that do not overlap, and file descriptors that came and are of the kind that each needs.
 */
import {
  MAX_DATA_XFER_SIZE,
  MAX_IRQ_VECTORS,
  MAX_QUEUE_SIZE,
  MAX_QUEUES,
  MAX_REGIONS,
} from "../../../shared/limits.js";
import { type FdDescription, kindName } from "./fd-kinds.js";
import { FD_KIND, fdName, IRQ_FLAG, MAP_FLAG, SLOTS, type SlotsName, VRING_FLAG } from "./layout.js";
import type { SlotValues } from "./state-memory.js";

/** The state of another bridge cannot be taken; the message ends the sentence "the saved state is refused: ...". */
export class StateError extends Error {
  override readonly name = "StateError";
  constructor(reason: string) {
    super(`the saved state is refused: ${reason}`);
  }
}

/** A record in a slot. */
export interface Saved<Name extends SlotsName> {
  readonly slot: number;
  readonly isPending: boolean;
  readonly values: Required<SlotValues<Name>>;
  readonly serial: number;
}

export type SavedSlots = { readonly [Name in SlotsName]: readonly Saved<Name>[] };

/** VFIO_PCI_NUM_IRQS. */
const IRQ_INDEXES = 5;
const COMMAND_MAX = 0xffff;

/**
 * Checks all tables, and leaves in each one record for a key: where there are two, the later one, which was to take the
 * other's place. @throws StateError
 */
export function checkSlots(
  session: number,
  slots: { -readonly [Name in SlotsName]: readonly Saved<Name>[] },
  windowSize: number,
  kept: ReadonlyMap<string, FdDescription>,
): void {
  const check = new SlotCheck(session, windowSize, kept);
  slots.fds = check.unique("fds", slots.fds, ({ id }) => id);
  slots.maps = check.unique("maps", slots.maps, ({ address }) => address);
  slots.irqs = check.unique(
    "irqs",
    slots.irqs,
    ({ index, vector, flags }) => `${index} ${vector} ${flags & IRQ_FLAG.UNMASK}`,
  );
  slots.commands = check.unique("commands", slots.commands, ({ id }) => id);
  slots.vrings = check.unique("vrings", slots.vrings, ({ index }) => index);
  slots.memory = check.unique("memory", slots.memory, ({ guestAddress }) => guestAddress);
  check.fds(slots.fds);
  check.maps(slots.maps);
  check.irqs(slots.irqs);
  check.commands(slots.commands);
  check.vrings(slots.vrings);
  check.memory(slots.memory);
}

class SlotCheck {
  readonly #session: number;
  readonly #windowSize: number;
  readonly #kept: ReadonlyMap<string, FdDescription>;
  /** Kinds of the live ones, by number. */
  readonly #kinds = new Map<number, number>();

  constructor(session: number, windowSize: number, kept: ReadonlyMap<string, FdDescription>) {
    this.#session = session;
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
      const name = fdName(this.#session, id);
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
    const { READ, WRITE, IN_WINDOW } = MAP_FLAG;
    for (const record of records) {
      const { flags, address, size, fdOffset, windowOffset, fd } = record.values;
      this.#flags("maps", record, flags, READ | WRITE | IN_WINDOW);
      this.#range("maps", record, size, fdOffset);
      if (!(address + size > address) || address + size > 2 ** 63) this.#refuse("maps", record, "is no range");
      this.#fd("maps", record, fd, FD_KIND.MEMORY, true);
      if (!(flags & IN_WINDOW)) continue;
      if (windowOffset + size > this.#windowSize) this.#refuse("maps", record, "lies outside of the window");
    }
    this.#apart("maps", records, ({ address, size }) => [address, size]);
    const inWindow = records.filter(({ values }) => values.flags & IN_WINDOW);
    this.#apart("maps", inWindow, ({ windowOffset, size }) => [windowOffset, size]);
  }

  irqs(records: SavedSlots["irqs"]): void {
    for (const record of records) {
      const { index, vector, fd, flags } = record.values;
      this.#flags("irqs", record, flags, IRQ_FLAG.MASKED | IRQ_FLAG.UNMASK);
      if (index >= IRQ_INDEXES || vector >= MAX_IRQ_VECTORS) this.#refuse("irqs", record, "is no vector");
      this.#fd("irqs", record, fd, FD_KIND.EVENTFD, false);
    }
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

  vrings(records: SavedSlots["vrings"]): void {
    for (const record of records) {
      const { index, size, flags, kick, call, error } = record.values;
      this.#flags("vrings", record, flags, VRING_FLAG.ENABLED | VRING_FLAG.STARTED | VRING_FLAG.EVENT_INDEX);
      const isSize = size <= MAX_QUEUE_SIZE && (size & (size - 1)) === 0;
      if (index >= MAX_QUEUES || !isSize) this.#refuse("vrings", record, "is no queue");
      for (const fd of [kick, call, error]) this.#fd("vrings", record, fd, FD_KIND.EVENTFD, true);
    }
  }

  memory(records: SavedSlots["memory"]): void {
    for (const record of records) {
      const { size, fdOffset, fd } = record.values;
      this.#range("memory", record, size, fdOffset);
      this.#fd("memory", record, fd, FD_KIND.MEMORY, false);
    }
    this.#apart("memory", records, ({ guestAddress, size }) => [guestAddress, size]);
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
    throw new StateError(`session ${this.#session}: ${name}, slot ${slot} of ${SLOTS[name].count}, ${reason}`);
  }
}
