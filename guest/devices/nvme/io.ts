/**
 * NVM Express 1.4, section 6: the NVM command set: Read, Write, Flush, Compare, Write Zeroes.
 *
 * Data goes straight between the storage and driver-VM memory where that is in the window, and by bounce buffers elsewhere.
 * Left out: Dataset Management (Node has no call that punches holes), Write Uncorrectable, Verify, fused operations,
 * protection information.
 */
import { inBounds } from "../../../shared/bits.js";
import type { DeviceContext } from "../../device.js";
import { BouncePool } from "./bounce.js";
import type { Command } from "./command.js";
import type { QueueEngine } from "./engine.js";
import type { Features } from "./features.js";
import { type Namespace, statusOf } from "./namespace.js";
import { NOT_IN_WINDOW } from "./prp.js";
import { NSID_ALL, NvmOpcode, RW_FUA, RW_NLB_MASK, Status } from "./spec.js";
import type { StorageError } from "./storage.js";

/** Section 5.14.1.2: what SMART counts; a unit is 512 bytes, the log reports thousands of them. */
export interface Counters {
  bytesRead: number;
  bytesWritten: number;
  reads: number;
  writes: number;
  mediaErrors: number;
}

export class IoCommands {
  readonly counters: Counters = { bytesRead: 0, bytesWritten: 0, reads: 0, writes: 0, mediaErrors: 0 };
  readonly #context: DeviceContext;
  readonly #engine: QueueEngine;
  readonly #namespace: Namespace;
  readonly #features: Features;
  readonly #maxTransfer: number;
  readonly #bounce = new BouncePool();

  /** maxTransfer: bytes of one command's data (MDTS). */
  constructor(
    context: DeviceContext,
    engine: QueueEngine,
    namespace: Namespace,
    features: Features,
    maxTransfer: number,
  ) {
    this.#context = context;
    this.#engine = engine;
    this.#namespace = namespace;
    this.#features = features;
    this.#maxTransfer = maxTransfer;
  }

  execute(command: Command): void {
    switch (command.opcode) {
      case NvmOpcode.READ:
      case NvmOpcode.WRITE:
      case NvmOpcode.COMPARE:
        this.#startTransfer(command);
        return;
      case NvmOpcode.FLUSH:
        if (command.namespaceId !== 1 && command.namespaceId !== NSID_ALL) {
          command.complete(Status.INVALID_NAMESPACE_OR_FORMAT);
          return;
        }
        this.#namespace.sync(command.complete);
        return;
      case NvmOpcode.WRITE_ZEROES:
        this.#writeZeroes(command);
        return;
      default:
        command.complete(Status.INVALID_OPCODE);
    }
  }

  /** The file I/O that `#move` started has ended. */
  onTransferred(command: Command, error: StorageError | undefined): void {
    const direction = command.opcode === NvmOpcode.READ ? "read" : "write";
    this.#finish(command, error === undefined ? Status.SUCCESS : statusOf(error, direction));
  }

  /** Sets the command's place in the storage. Returns a status. */
  #place(command: Command, maxLength: number): number {
    const { blockSize, blockCount } = this.#namespace;
    if (command.namespaceId !== 1) return Status.INVALID_NAMESPACE_OR_FORMAT;
    // Inexact above 2^53, and then far above every size.
    const block = command.cdw10 + command.cdw11 * 0x1_0000_0000;
    const blocks = (command.cdw12 & RW_NLB_MASK) + 1;
    if (blocks * blockSize > maxLength) return Status.INVALID_FIELD;
    if (!inBounds(block, blocks, blockCount)) return Status.LBA_OUT_OF_RANGE;
    command.position = block * blockSize;
    command.length = blocks * blockSize;
    return Status.SUCCESS;
  }

  #startTransfer(command: Command): void {
    const placed = this.#place(command, this.#maxTransfer);
    if (placed !== Status.SUCCESS) {
      command.complete(placed);
      return;
    }
    const { dma } = this.#context;
    const { pageSize } = this.#engine;
    const status = command.ranges.resolve(dma, command.prp1, command.prp2, command.length, pageSize);
    if (status === NOT_IN_WINDOW) void this.#resolveAndMove(command);
    else if (status !== Status.SUCCESS) command.complete(status);
    else this.#move(command);
  }

  async #resolveAndMove(command: Command): Promise<void> {
    const status = await command.ranges.resolveByMessages(this.#context.dma);
    if (status !== Status.SUCCESS) command.complete(status);
    else this.#move(command);
  }

  #move(command: Command): void {
    const { dma } = this.#context;
    const isRead = command.opcode === NvmOpcode.READ;
    const direct = command.opcode !== NvmOpcode.COMPARE;
    if (direct && command.segments.locate(dma, command.ranges, isRead ? "write" : "read")) {
      dma.account(isRead ? 0 : command.length, isRead ? command.length : 0);
      command.transfer.start(isRead ? "read" : "write", command.position);
    } else {
      void this.#bounceAll(command);
    }
  }

  async #bounceAll(command: Command): Promise<void> {
    const { opcode } = command;
    const operation = opcode === NvmOpcode.READ ? "read" : opcode === NvmOpcode.WRITE ? "write" : "compare";
    this.#finish(command, await this.#bounce.run(operation, command, this.#context.dma, this.#namespace.storage));
  }

  #writeZeroes(command: Command): void {
    const placed = this.#place(command, Number.POSITIVE_INFINITY);
    if (placed !== Status.SUCCESS) command.complete(placed);
    else this.#namespace.writeZeroes(command.position, command.length, (status) => this.#finish(command, status));
  }

  /** Counts, and makes a write stable where that was asked for. */
  #finish(command: Command, status: number): void {
    const { counters } = this;
    if (status === Status.UNRECOVERED_READ_ERROR || status === Status.WRITE_FAULT) counters.mediaErrors++;
    if (status !== Status.SUCCESS) {
      command.complete(status);
      return;
    }
    if (command.opcode === NvmOpcode.READ || command.opcode === NvmOpcode.COMPARE) {
      counters.reads++;
      counters.bytesRead += command.length;
      command.complete(Status.SUCCESS);
      return;
    }
    counters.writes++;
    if (command.opcode === NvmOpcode.WRITE) counters.bytesWritten += command.length;
    if (this.#features.writeCache && (command.cdw12 & RW_FUA) === 0) command.complete(Status.SUCCESS);
    else this.#namespace.sync(command.complete);
  }
}
