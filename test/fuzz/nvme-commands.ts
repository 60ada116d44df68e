/** NVMe submission entries as a driver writes them: mostly sensible, with PRPs into (or next to) mapped memory. */

import { Cns } from "../../guest/devices/nvme/commands/identify.js";
import {
  AdminOpcode,
  Command,
  Feature,
  LogPage,
  NSID_ALL,
  NvmOpcode,
  SglType,
  SUBMISSION_ENTRY_SIZE,
} from "../../guest/devices/nvme/spec.js";
import { type CommandFields, writeCommand } from "../../scripts/drivers/nvme-queue.js";
import type { Choices } from "./choices.js";
import { oddNumber, oddValue, spoil } from "./mutate.js";

/** A range of addresses that commands may name. */
export interface Range {
  readonly address: number;
  readonly size: number;
}

const PAGE = 4096;

/** A PRP entry: mostly a page of one of the ranges. */
export function prp(random: Choices, ranges: readonly Range[]): bigint {
  const { address, size } = random.pick(ranges);
  const page = address + PAGE * random.below(size / PAGE);
  return random.weighted<() => bigint>([
    [12, () => BigInt(page)],
    [2, () => BigInt(page + 4 * random.below(PAGE / 4))],
    [1, () => BigInt(address + size - random.pick([0, 4, 8, PAGE]))],
    [1, () => 0n],
    [1, () => oddValue(random, 8, BigInt(page))],
  ])();
}

/** Identifiers and sizes stay small enough that most queues that are named exist. */
const queueId = (random: Choices) => (random.chance(92) ? random.between(0, 3) : oddNumber(random, 2));
const queueSize = (random: Choices) => (random.chance(92) ? random.between(1, 15) : oddNumber(random, 2));

function admin(random: Choices): Partial<CommandFields> {
  const id = queueId(random);
  switch (random.below(11)) {
    case 0:
    case 1:
      return {
        opcode: AdminOpcode.CREATE_IO_CQ,
        dwords: [(queueSize(random) << 16) | id, (queueId(random) << 16) | 3],
      };
    case 2:
    case 3:
      return {
        opcode: AdminOpcode.CREATE_IO_SQ,
        dwords: [(queueSize(random) << 16) | id, (queueId(random) << 16) | 1],
      };
    case 4: {
      const opcode = random.pick([AdminOpcode.DELETE_IO_SQ, AdminOpcode.DELETE_IO_CQ]);
      return { opcode, dwords: [id] };
    }
    case 5:
      return { opcode: AdminOpcode.IDENTIFY, dwords: [random.pick([...Object.values(Cns), 0x10])] };
    case 6: {
      const dwords = random.below(0x1000);
      const page = random.pick(Object.values(LogPage));
      const offset = random.chance(70) ? 0 : oddNumber(random, 4);
      return { opcode: AdminOpcode.GET_LOG_PAGE, dwords: [page | (dwords << 16), 0, offset] };
    }
    case 7: {
      const opcode = random.pick([AdminOpcode.GET_FEATURES, AdminOpcode.SET_FEATURES]);
      return { opcode, dwords: [random.pick(Object.values(Feature)), oddNumber(random, 4)] };
    }
    case 8:
      return {
        opcode: AdminOpcode.FORMAT_NVM,
        dwords: [random.chance(90) ? random.below(3) | 0x200 : oddNumber(random, 4)],
      };
    case 9:
      return { opcode: AdminOpcode.DOORBELL_BUFFER_CONFIG };
    default:
      return {
        opcode: random.pick([AdminOpcode.ABORT, AdminOpcode.ASYNC_EVENT_REQUEST, AdminOpcode.KEEP_ALIVE]),
        dwords: [random.below(0x100000)],
      };
  }
}

function io(random: Choices, blocks: number): Partial<CommandFields> {
  const opcode = random.chance(95) ? random.pick(Object.values(NvmOpcode)) : random.below(256);
  const block = random.chance(85) ? random.below(blocks) : oddNumber(random, random.pick([4, 8]));
  const count = random.weighted([
    [8, random.below(32)],
    [4, random.below(0x900)],
    [1, oddNumber(random, 2)],
  ]);
  const flags = random.chance(10) ? 1 << 30 : 0;
  const sgl = random.chance(15) ? sglPointer(random, count) : {};
  return { ...sgl, opcode, dwords: [block >>> 0, Math.floor(block / 2 ** 32) >>> 0, (count | flags) >>> 0] };
}

/** A data block descriptor of the right length, mostly; else a segment, whose descriptors are whatever lies there. */
function sglPointer(random: Choices, blocks: number): Partial<CommandFields> {
  const type = random.chance(60) ? SglType.DATA_BLOCK : random.pick([SglType.SEGMENT, SglType.LAST_SEGMENT, 0x10]);
  const length = type === SglType.DATA_BLOCK ? ((blocks & 0xffff) + 1) * 512 : random.between(1, 300) * 16;
  const wrong = random.chance(10) ? oddNumber(random, 4) : length;
  return { flags: random.pick([0x40, 0x80]), prp2: (BigInt(type) << 56n) | BigInt(wrong) };
}

/** Writes an entry at `at`, right in all but a few cases. */
export function writeEntry(
  random: Choices,
  data: DataView,
  at: number,
  isAdmin: boolean,
  ranges: readonly Range[],
  blocks: number,
): Uint8Array {
  const fields = isAdmin ? admin(random) : io(random, blocks);
  const namespaceId = random.chance(85) ? random.pick([1, 2]) : random.pick([0, 3, NSID_ALL]);
  const prps = { prp1: prp(random, ranges), prp2: prp(random, ranges) };
  writeCommand(data, at, random.below(0x10000), { opcode: 0, namespaceId, ...prps, ...fields });
  const entry = new Uint8Array(data.buffer, data.byteOffset + at, SUBMISSION_ENTRY_SIZE);
  if (random.chance(12)) spoil(random, entry, Command, 0, random.between(1, 2));
  return entry;
}
