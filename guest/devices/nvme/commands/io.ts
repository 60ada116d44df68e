/**
 * NVM Express 1.4, section 6: the NVM command set: Read, Write, Flush, Compare, Write Zeroes, Dataset Management,
 * Verify; and Copy (NVM command set 1.0, 3.2.2), of blocks of one namespace to others of the same, without the driver
 * VM's memory; and of the fused operations the one that there is, Compare and Write.
 *
 * Here is what lanes leave to us (native/lane_nvme_commands.cc): errors of every kind, data that is not in the window,
 * and what may have to wait for a disk; that data goes through buffers (transfers.ts). Left out: Write Uncorrectable,
 * reservations, protection information.
 */
import type { Command } from "../queues/command.js";
import {
  CopyDword12,
  CopyRange,
  DSM_DEALLOCATE,
  NSID_ALL,
  NvmOpcode,
  RW_FUA,
  RW_NLB_MASK,
  Status,
  WRITE_ZEROES_DEAC,
} from "../spec.js";
import { PIECE_SIZE } from "../storage/buffers.js";
import type { Namespace, StatusDone } from "../storage/namespace.js";
import type { Namespaces } from "../storage/namespaces.js";
import { DatasetRanges, rangesSize } from "./dataset-ranges.js";
import type { Features } from "./features.js";
import type { Counters } from "./log-pages.js";
import { compare, compareAndWrite, copy, copyData, type Extent, fetchData, read, verify, write } from "./transfers.js";

/** Bytes of one Copy, and of one of its ranges: what one buffer holds. */
export const MAX_COPY_LENGTH = PIECE_SIZE;
/** Ranges of one Copy. */
export const MAX_COPY_RANGES = 128;

const READING: ReadonlySet<number> = new Set([NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY]);
const OPCODES: ReadonlySet<number> = new Set(Object.values(NvmOpcode));

export class IoCommands {
  readonly #namespaces: Namespaces;
  readonly #features: Features;
  readonly #counters: Counters;
  readonly #maxTransfer: number;

  /** maxTransfer: bytes of one command's data (MDTS). */
  constructor(namespaces: Namespaces, features: Features, counters: Counters, maxTransfer: number) {
    this.#namespaces = namespaces;
    this.#features = features;
    this.#counters = counters;
    this.#maxTransfer = maxTransfer;
  }

  execute(command: Command): void {
    const { opcode, namespaceId } = command;
    const namespace = this.#namespaces.find(namespaceId);
    if (!OPCODES.has(opcode)) command.complete(Status.INVALID_OPCODE);
    else if (opcode === NvmOpcode.FLUSH && namespaceId === NSID_ALL) this.#namespaces.sync(command.complete);
    else if (namespace === undefined) command.complete(Status.INVALID_NAMESPACE_OR_FORMAT);
    else if (namespace.storage.readOnly && isWrite(command)) command.complete(Status.NAMESPACE_WRITE_PROTECTED);
    else if (namespace.formatting) command.complete(Status.FORMAT_IN_PROGRESS);
    else this.#begin(command, namespace);
  }

  /** A fused pair, of which there is one: Compare and Write of the same blocks. */
  executePair(first: Command, second: Command): void {
    const namespace = this.#namespaces.find(first.namespaceId);
    const end = (status: number, other: number = Status.ABORTED_FAILED_FUSED): void => {
      first.complete(status);
      second.complete(other);
    };
    if (first.hasInvalidFlags || first.opcode !== NvmOpcode.COMPARE) end(Status.INVALID_FIELD);
    else if (second.hasInvalidFlags || second.opcode !== NvmOpcode.WRITE || !areSameBlocks(first, second)) {
      end(Status.INVALID_FIELD, Status.INVALID_FIELD);
    } else if (namespace === undefined) end(Status.INVALID_NAMESPACE_OR_FORMAT);
    else if (namespace.storage.readOnly) end(Status.ABORTED_FAILED_FUSED, Status.NAMESPACE_WRITE_PROTECTED);
    else if (namespace.formatting) end(Status.FORMAT_IN_PROGRESS);
    else {
      for (const command of [first, second]) {
        command.namespace = namespace;
        namespace.begin();
      }
      void this.#compareAndWrite(first, second, namespace);
    }
  }

  /** Never rejects. The Compare that went well is told so whatever became of the Write. */
  async #compareAndWrite(first: Command, second: Command, namespace: Namespace): Promise<void> {
    const fail = (status: number, other: number): void => {
      if (first.ended) return;
      first.complete(status);
      second.complete(other);
    };
    const statusOfFirst = await this.#resolveHalf(first, namespace);
    if (statusOfFirst !== Status.SUCCESS) {
      fail(statusOfFirst, Status.ABORTED_FAILED_FUSED);
      return;
    }
    const statusOfSecond = await this.#resolveHalf(second, namespace);
    if (statusOfSecond !== Status.SUCCESS) {
      fail(Status.ABORTED_FAILED_FUSED, statusOfSecond);
      return;
    }
    if (first.ended) return;
    compareAndWrite(first, second, namespace, (compared, written) => {
      if (first.ended) return;
      if (compared === Status.UNRECOVERED_READ_ERROR) this.#counters.mediaErrors++;
      if (compared !== Status.SUCCESS) {
        fail(compared, Status.ABORTED_FAILED_FUSED);
        return;
      }
      this.#counters.reads++;
      this.#counters.bytesRead += first.length;
      first.complete(Status.SUCCESS);
      this.#finish(second, namespace, written);
    });
  }

  async #resolveHalf(command: Command, namespace: Namespace): Promise<number> {
    const checked = command.setRange(namespace, this.#maxTransfer);
    if (checked !== Status.SUCCESS) return checked;
    if ((command.cdw12 & RW_FUA) === 0 || command.opcode !== NvmOpcode.COMPARE) return command.resolve(command.length);
    const synced = await new Promise<number>((done) => namespace.sync(done));
    return synced === Status.SUCCESS && !command.ended ? command.resolve(command.length) : synced;
  }

  #begin(command: Command, namespace: Namespace): void {
    command.namespace = namespace;
    namespace.begin();
    const forceUnitAccess = (command.cdw12 & RW_FUA) !== 0;
    if (forceUnitAccess && READING.has(command.opcode)) {
      // What was written before is on stable storage before it is read.
      namespace.sync((status) =>
        status === Status.SUCCESS && !command.ended ? this.#start(command, namespace) : command.complete(status),
      );
    } else this.#start(command, namespace);
  }

  #start(command: Command, namespace: Namespace): void {
    switch (command.opcode) {
      case NvmOpcode.FLUSH:
        namespace.sync(command.complete);
        return;
      case NvmOpcode.DATASET_MANAGEMENT:
        this.#manageDataset(command, namespace);
        return;
      case NvmOpcode.COPY:
        void this.#copy(command, namespace);
        return;
      case NvmOpcode.VERIFY:
      case NvmOpcode.WRITE_ZEROES:
        this.#startWithoutData(command, namespace);
        return;
      default:
        this.#startTransfer(command, namespace);
    }
  }

  /** Read, Write, Compare. */
  #startTransfer(command: Command, namespace: Namespace): void {
    const checked = command.setRange(namespace, this.#maxTransfer);
    const resolved = checked === Status.SUCCESS ? command.resolve(command.length) : checked;
    if (typeof resolved === "number") this.#move(command, namespace, resolved);
    else void resolved.then((status) => this.#move(command, namespace, status));
  }

  /** `resolved`: whether it is known where the data is, as a status. */
  #move(command: Command, namespace: Namespace, resolved: number): void {
    if (resolved !== Status.SUCCESS) {
      command.complete(resolved);
      return;
    }
    if (command.ended) return;
    const finish = (status: number): void => this.#finish(command, namespace, status);
    if (command.opcode === NvmOpcode.READ) read(command, namespace, finish);
    else if (command.opcode === NvmOpcode.WRITE) write(command, namespace, finish);
    else compare(command, namespace, finish);
  }

  /** Write Zeroes and Verify: MDTS is no limit to what moves no data. */
  #startWithoutData(command: Command, namespace: Namespace): void {
    const checked = command.setRange(namespace, Number.POSITIVE_INFINITY);
    const finish = (status: number): void => this.#finish(command, namespace, status);
    if (checked !== Status.SUCCESS) {
      command.complete(checked);
    } else if (command.opcode === NvmOpcode.VERIFY) {
      verify(command, namespace, finish);
    } else {
      const deallocate = (command.cdw12 & WRITE_ZEROES_DEAC) !== 0;
      namespace.writeZeroes(command.position, command.length, deallocate, command, finish);
    }
  }

  async #copy(command: Command, namespace: Namespace): Promise<void> {
    const status = await copyBlocks(command, namespace);
    this.#finish(command, namespace, status);
  }

  /** With the write cache off, what was deallocated stays so. */
  #manageDataset(command: Command, namespace: Namespace): void {
    manageDataset(command, namespace, (status) => {
      if (status !== Status.SUCCESS || command.ended || this.#features.writeCache) command.complete(status);
      else namespace.sync(command.complete);
    });
  }

  /** Counts, and makes a write stable where that was asked for. */
  #finish(command: Command, namespace: Namespace, status: number): void {
    if (command.ended) return;
    const counters = this.#counters;
    if (status === Status.UNRECOVERED_READ_ERROR || status === Status.WRITE_FAULT) counters.mediaErrors++;
    if (status !== Status.SUCCESS) {
      command.complete(status);
      return;
    }
    switch (command.opcode) {
      case NvmOpcode.READ:
      case NvmOpcode.COMPARE:
      case NvmOpcode.VERIFY:
        counters.reads++;
        counters.bytesRead += command.length;
        command.complete(Status.SUCCESS);
        return;
      case NvmOpcode.WRITE:
      case NvmOpcode.COPY:
        counters.bytesWritten += command.length;
    }
    counters.writes++;
    if (this.#features.writeCache && (command.cdw12 & RW_FUA) === 0) command.complete(Status.SUCCESS);
    else namespace.sync(command.complete);
  }
}

function areSameBlocks(a: Command, b: Command): boolean {
  const isSameLength = ((a.cdw12 ^ b.cdw12) & RW_NLB_MASK) === 0;
  return a.namespaceId === b.namespaceId && a.cdw10 === b.cdw10 && a.cdw11 === b.cdw11 && isSameLength;
}

/** Whether a command may change what is on the disk. */
function isWrite({ opcode, cdw11 }: Command): boolean {
  switch (opcode) {
    case NvmOpcode.WRITE:
    case NvmOpcode.WRITE_ZEROES:
    case NvmOpcode.COPY:
      return true;
    default:
      return opcode === NvmOpcode.DATASET_MANAGEMENT && (cdw11 & DSM_DEALLOCATE) !== 0;
  }
}

/**
 * 6.7: Deallocate gives space back to the storage; the other attributes are hints that nothing here could follow. All
 * ranges are checked before the first takes effect. `done` gets a status.
 */
function manageDataset(command: Command, namespace: Namespace, done: StatusDone): void {
  const bytes = new Uint8Array(rangesSize(command.cdw10));
  fetchData(command, bytes, (fetched) => {
    if (fetched !== Status.SUCCESS || command.ended) {
      done(fetched);
      return;
    }
    const ranges = new DatasetRanges();
    const status = ranges.take(new DataView(bytes.buffer), bytes.length, namespace);
    const deallocates = (command.cdw11 & DSM_DEALLOCATE) !== 0;
    const step = (n: number): void => {
      if (n === ranges.count) done(Status.SUCCESS);
      else {
        namespace.deallocate(ranges.positions[n], ranges.lengths[n], command, (result) =>
          result !== Status.SUCCESS || command.ended ? done(result) : step(n + 1),
        );
      }
    };
    if (status !== Status.SUCCESS || !deallocates) done(status);
    else step(0);
  });
}

/**
 * All source ranges are checked and read before the first block is written, so that they may overlap the destination.
 * Sets the command's position and length. Resolves to a status; never rejects.
 */
async function copyBlocks(command: Command, namespace: Namespace): Promise<number> {
  const { cdw10, cdw11, cdw12 } = command;
  if (CopyDword12.formatOf(cdw12) !== 0) return Status.INVALID_FIELD;
  const count = CopyDword12.rangesOf(cdw12);
  if (count > MAX_COPY_RANGES) return Status.COMMAND_SIZE_LIMIT_EXCEEDED;
  const bytes = new Uint8Array(count * CopyRange.size);
  const copied = await copyData("read", command, bytes);
  if (copied !== Status.SUCCESS) return copied;
  const data = new DataView(bytes.buffer);
  const range = CopyRange.view();
  const sources: Extent[] = [];
  let blocks = 0;
  for (let at = 0; at < bytes.length; at += CopyRange.size) {
    const { NLB, LBA_LOW, LBA_HIGH } = range.at(data, at);
    const position = namespace.positionOf(LBA_LOW, LBA_HIGH, NLB + 1);
    if (position < 0) return Status.LBA_OUT_OF_RANGE;
    sources.push({ position, length: (NLB + 1) * namespace.blockSize });
    blocks += NLB + 1;
  }
  const length = blocks * namespace.blockSize;
  if (length > MAX_COPY_LENGTH) return Status.COMMAND_SIZE_LIMIT_EXCEEDED;
  const position = namespace.positionOf(cdw10, cdw11, blocks);
  if (position < 0) return Status.LBA_OUT_OF_RANGE;
  command.position = position;
  command.length = length;
  return new Promise((done) => copy(sources, command, namespace, done));
}
