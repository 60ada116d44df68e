/**
 * NVM Express 1.4, section 6: the NVM command set: Read, Write, Flush, Compare, Write Zeroes, Dataset Management,
 * Verify, Copy.
 *
 * Data that is not moved at once (direct-io.ts) goes through buffers (transfers.ts).
 * Left out: Write Uncorrectable, fused operations, reservations, protection information.
 */
import { inBounds } from "../../../shared/bits.js";
import type { DeviceContext } from "../../device.js";
import type { Command } from "./command.js";
import { copyBlocks } from "./copy-blocks.js";
import { NOT_IN_WINDOW } from "./data-lists.js";
import { manageDataset } from "./dataset-management.js";
import type { QueueEngine } from "./engine.js";
import type { Features } from "./features.js";
import type { Namespace } from "./namespace.js";
import type { Namespaces } from "./namespaces.js";
import { DSM_DEALLOCATE, NSID_ALL, NvmOpcode, RW_FUA, RW_NLB_MASK, Status, WRITE_ZEROES_DEAC } from "./spec.js";
import { Transfers } from "./transfers.js";

/** Section 5.14.1.2: what SMART counts; a unit is 512 bytes, the log reports thousands of them. */
export interface Counters {
  bytesRead: number;
  bytesWritten: number;
  reads: number;
  writes: number;
  mediaErrors: number;
}

const READING: ReadonlySet<number> = new Set([NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY]);
const OPCODES: ReadonlySet<number> = new Set(Object.values(NvmOpcode));

export class IoCommands {
  readonly #counters: Counters;
  readonly #context: DeviceContext;
  readonly #engine: QueueEngine;
  readonly #namespaces: Namespaces;
  readonly #features: Features;
  readonly #maxTransfer: number;
  readonly #transfers: Transfers;

  /** maxTransfer: bytes of one command's data (MDTS). */
  constructor(
    context: DeviceContext,
    engine: QueueEngine,
    namespaces: Namespaces,
    features: Features,
    counters: Counters,
    maxTransfer: number,
  ) {
    this.#counters = counters;
    this.#context = context;
    this.#engine = engine;
    this.#namespaces = namespaces;
    this.#features = features;
    this.#maxTransfer = maxTransfer;
    this.#transfers = new Transfers(context.dma);
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
      case NvmOpcode.READ:
      case NvmOpcode.WRITE:
      case NvmOpcode.COMPARE:
        this.#startTransfer(command, namespace);
        return;
      case NvmOpcode.FLUSH:
        namespace.sync(command.complete);
        return;
      case NvmOpcode.DATASET_MANAGEMENT:
        void this.#manageDataset(command, namespace);
        return;
      case NvmOpcode.COPY:
        void this.#copy(command, namespace);
        return;
      default:
        this.#startWithoutData(command, namespace);
    }
  }

  /** Sets the command's place in the storage. Returns a status. */
  #place(command: Command, { blockSize, blockCount }: Namespace, maxLength: number): number {
    // Inexact above 2^53, and then far above every size.
    const block = command.cdw10 + command.cdw11 * 0x1_0000_0000;
    const blocks = (command.cdw12 & RW_NLB_MASK) + 1;
    if (blocks * blockSize > maxLength) return Status.INVALID_FIELD;
    if (!inBounds(block, blocks, blockCount)) return Status.LBA_OUT_OF_RANGE;
    command.position = block * blockSize;
    command.length = blocks * blockSize;
    return Status.SUCCESS;
  }

  #startTransfer(command: Command, namespace: Namespace): void {
    const placed = this.#place(command, namespace, this.#maxTransfer);
    if (placed !== Status.SUCCESS) {
      command.complete(placed);
      return;
    }
    const { dma } = this.#context;
    const { pageSize } = this.#engine.commands;
    const status = command.resolve(dma, command.length, pageSize);
    if (status === NOT_IN_WINDOW) void this.#resolveAndMove(command, namespace);
    else if (status !== Status.SUCCESS) command.complete(status);
    else this.#move(command, namespace);
  }

  async #resolveAndMove(command: Command, namespace: Namespace): Promise<void> {
    const status = await command.resolveByMessages(this.#context.dma);
    if (status !== Status.SUCCESS) command.complete(status);
    else if (!command.ended) this.#move(command, namespace);
  }

  #move(command: Command, namespace: Namespace): void {
    const finish = (status: number): void => this.#finish(command, namespace, status);
    if (command.opcode === NvmOpcode.READ) this.#transfers.read(command, namespace, finish);
    else if (command.opcode === NvmOpcode.WRITE) this.#transfers.write(command, namespace, finish);
    else this.#transfers.compare(command, namespace, finish);
  }

  /** Write Zeroes and Verify: MDTS is no limit to what moves no data. */
  #startWithoutData(command: Command, namespace: Namespace): void {
    const placed = this.#place(command, namespace, Number.POSITIVE_INFINITY);
    const finish = (status: number): void => this.#finish(command, namespace, status);
    if (placed !== Status.SUCCESS) {
      command.complete(placed);
    } else if (command.opcode === NvmOpcode.VERIFY) {
      this.#transfers.verify(command, namespace, finish);
    } else {
      const deallocate = (command.cdw12 & WRITE_ZEROES_DEAC) !== 0;
      namespace.writeZeroes(command.position, command.length, deallocate, command, finish);
    }
  }

  async #copy(command: Command, namespace: Namespace): Promise<void> {
    const { dma } = this.#context;
    const status = await copyBlocks(command, namespace, dma, this.#engine.commands.pageSize, this.#transfers);
    this.#finish(command, namespace, status);
  }

  /** With the write cache off, what was deallocated stays so. */
  async #manageDataset(command: Command, namespace: Namespace): Promise<void> {
    const status = await manageDataset(command, namespace, this.#context.dma, this.#engine.commands.pageSize);
    if (status !== Status.SUCCESS || command.ended || this.#features.writeCache) command.complete(status);
    else namespace.sync(command.complete);
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
