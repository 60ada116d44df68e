/**
 * A capability is a register table, and this places tables: one list from 0x40 on (PCI Local Bus 3.0, 6.7), the
 * extended one from 0x100 on (PCI Express Base 3.0, 7.9), each capability a multiple of four bytes behind the one
 * before.
 */
import { alignUp } from "../../shared/bits.js";
import { CONFIG_SIZE, EXTENDED_CONFIG_SIZE, HEADER_SIZE } from "../../shared/spec/pci.js";
import type { Register, RegisterTable } from "./registers.js";

export interface Capability {
  /** Unique in its function; the registers' names begin with it and a dot. */
  readonly name: string;
  readonly id: number;
  /** Of extended capabilities alone. */
  readonly version?: number;
  /** Bytes, the header included. */
  readonly size: number;
  /** Offsets count from the capability's start; the header (id and the next one's offset) is not among them. */
  readonly registers: RegisterTable;
}

/** Where a list of capabilities lies, and what is in front of each. */
interface Placement {
  readonly start: number;
  readonly end: number;
  readonly maxId: number;
  readonly headerSize: 2 | 4;
  header(capability: Capability, next: number): number;
}

const STANDARD: Placement = {
  start: HEADER_SIZE,
  end: CONFIG_SIZE,
  maxId: 0xff,
  headerSize: 2,
  header: ({ id }, next) => id | (next << 8),
};

const EXTENDED: Placement = {
  start: CONFIG_SIZE,
  end: EXTENDED_CONFIG_SIZE,
  maxId: 0xffff,
  headerSize: 4,
  header: ({ id, version = 1 }, next) => (id | (version << 16) | (next << 20)) >>> 0,
};

/**
 * Puts the list into `table`; returns its first capability's offset, or 0. @throws RangeError when it does not fit: an
 * author's bug
 */
export function placeCapabilities(table: Map<string, Register>, list: readonly Capability[]): number {
  return place(table, list, STANDARD);
}

/** The same in the extended space. */
export function placeExtendedCapabilities(table: Map<string, Register>, list: readonly Capability[]): number {
  return place(table, list, EXTENDED);
}

function place(table: Map<string, Register>, list: readonly Capability[], placement: Placement): number {
  let offset = placement.start;
  for (const [position, capability] of list.entries()) {
    check(capability, placement);
    const { name, size, registers } = capability;
    const following = offset + alignUp(size, 4);
    if (following > placement.end) throw new RangeError(`there is no room for the capability "${name}"`);
    const next = position + 1 < list.length ? following : 0;
    table.set(name, { offset, size: placement.headerSize, reset: placement.header(capability, next) });
    for (const [registerName, register] of Object.entries(registers)) {
      if (!(register.offset >= placement.headerSize && register.offset + register.size <= size)) {
        throw new RangeError(`register ${registerName} is outside of the capability "${name}"`);
      }
      table.set(`${name}.${registerName}`, { ...register, offset: offset + register.offset });
    }
    offset = following;
  }
  return list.length > 0 ? placement.start : 0;
}

function check({ name, id, version = 1, size }: Capability, { maxId, headerSize }: Placement): void {
  if (!Number.isInteger(id) || id <= 0 || id > maxId) throw new RangeError(`there is no capability id ${id}`);
  if (!Number.isInteger(version) || version < 0 || version > 0xf) throw new RangeError(`no version ${version}`);
  if (!Number.isInteger(size) || size < headerSize) throw new RangeError(`the capability "${name}" has no size`);
}
