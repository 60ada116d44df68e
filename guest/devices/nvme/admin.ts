/** NVM Express 1.4, section 5: the admin command set. */
import { isExact } from "../../../shared/address.js";
import type { DeviceContext } from "../../device.js";
import type { RegisterFile } from "../../pci/registers.js";
import type { Command } from "./command.js";
import { copyData } from "./command-data.js";
import type { QueueEngine } from "./engine.js";
import type { AsyncEvents } from "./events.js";
import type { Features } from "./features.js";
import { formatNvm } from "./format.js";
import { type Identity, identifyController, identifyNamespace, namespaceDescriptors } from "./identify.js";
import type { KeepAlive } from "./keep-alive.js";
import type { LogPages } from "./log-pages.js";
import type { Namespaces } from "./namespaces.js";
import { CompletionQueue, MAX_RING_SIZE, SubmissionQueue } from "./queues.js";
import { Cc, MAX_QUEUE_ENTRIES, type RegisterName } from "./registers.js";
import { ShadowDoorbells } from "./shadow.js";
import { AdminOpcode, CQES, Feature, NSID_ALL, SQES, Status, Timestamp } from "./spec.js";
import { Cns, CSI_NVM, IDENTIFY_SIZE, Oacs } from "./spec-identify.js";

/** What admin commands work on. */
export interface AdminSources {
  readonly context: DeviceContext;
  readonly engine: QueueEngine;
  readonly events: AsyncEvents;
  readonly features: Features;
  readonly logPages: LogPages;
  readonly identity: Identity;
  readonly namespaces: Namespaces;
  readonly keepAlive: KeepAlive;
  /** Bytes of one command's data (MDTS). */
  readonly maxTransfer: number;
  readonly registers: RegisterFile<RegisterName>;
}

/** The admin commands that there are. */
export function adminOpcodes(engine: QueueEngine): number[] {
  return Object.values(AdminOpcode).filter((opcode) => opcode !== AdminOpcode.DOORBELL_BUFFER_CONFIG || !engine.shared);
}

/** Get Log Page, Retain Asynchronous Event. */
const RETAIN_EVENT = 1 << 15;
/** Abort: bit 0 of the completion's dword 0. */
const NOT_ABORTED = 1;
/** Create I/O Queue, CDW11. */
const PHYSICALLY_CONTIGUOUS = 1;
const INTERRUPTS_ENABLED = 2;

export class AdminCommands {
  readonly #sources: AdminSources;

  constructor(sources: AdminSources) {
    this.#sources = sources;
  }

  execute(command: Command): void {
    const { engine, events } = this.#sources;
    switch (command.opcode) {
      case AdminOpcode.IDENTIFY:
        this.#identify(command);
        return;
      case AdminOpcode.GET_LOG_PAGE:
        this.#getLogPage(command);
        return;
      case AdminOpcode.GET_FEATURES:
        this.#getFeature(command);
        return;
      case AdminOpcode.SET_FEATURES:
        this.#setFeature(command);
        return;
      case AdminOpcode.CREATE_IO_CQ:
        command.complete(this.#createCompletionQueue(command));
        return;
      case AdminOpcode.CREATE_IO_SQ:
        command.complete(this.#createSubmissionQueue(command));
        return;
      case AdminOpcode.DELETE_IO_CQ:
        command.complete(this.#deleteCompletionQueue(command.cdw10 & 0xffff));
        return;
      case AdminOpcode.DELETE_IO_SQ:
        command.complete(this.#deleteSubmissionQueue(command.cdw10 & 0xffff));
        return;
      case AdminOpcode.ASYNC_EVENT_REQUEST:
        if (events.full) {
          command.complete(Status.ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
          return;
        }
        engine.commands.detach(command);
        events.request(command.id);
        return;
      case AdminOpcode.ABORT:
        this.#abort(command);
        return;
      case AdminOpcode.KEEP_ALIVE:
        this.#sources.keepAlive.restart();
        command.complete(Status.SUCCESS);
        return;
      case AdminOpcode.DOORBELL_BUFFER_CONFIG:
        command.complete(this.#hasShadowDoorbells ? this.#configureDoorbells(command) : Status.INVALID_OPCODE);
        return;
      case AdminOpcode.FORMAT_NVM:
        void formatNvm(command, this.#sources.namespaces).then(command.complete);
        return;
      default:
        command.complete(Status.INVALID_OPCODE);
    }
  }

  /** 5.15 */
  #identify(command: Command): void {
    const { identity, namespaces } = this.#sources;
    const { namespaceId } = command;
    const namespace = namespaces.find(namespaceId);
    const cns = command.cdw10 & 0xff;
    switch (cns) {
      case Cns.CONTROLLER:
        void this.#answer(command, identifyController(identity, namespaces.all, this.#optionalCommands));
        return;
      case Cns.NAMESPACE:
        if (namespace === undefined) break;
        // As large as it is now, not as it was a second ago.
        namespaces.refresh(namespace, () => void this.#answer(command, identifyNamespace(identity, namespace)));
        return;
      case Cns.ACTIVE_NAMESPACE_LIST:
        // FFFFFFFEh and FFFFFFFFh leave no room above them.
        if (namespaceId >= 0xffff_fffe) break;
        void this.#answer(command, namespaces.listActive(namespaceId));
        return;
      case Cns.NAMESPACE_DESCRIPTOR_LIST:
        if (namespace === undefined) break;
        void this.#answer(command, namespaceDescriptors(identity, namespace));
        return;
      case Cns.COMMAND_SET_NAMESPACE:
      case Cns.COMMAND_SET_CONTROLLER:
        if (cns === Cns.COMMAND_SET_NAMESPACE && namespace === undefined) break;
        // Zeros: nothing beyond what the other structures say, and no other limits than theirs.
        if (command.cdw11 >>> 24 === CSI_NVM) void this.#answer(command, new Uint8Array(IDENTIFY_SIZE));
        else command.complete(Status.INVALID_FIELD);
        return;
      default:
        command.complete(Status.INVALID_FIELD);
        return;
    }
    command.complete(Status.INVALID_NAMESPACE_OR_FORMAT);
  }

  /** 5.14 */
  #getLogPage(command: Command): void {
    const { logPages, events, maxTransfer } = this.#sources;
    const identifier = command.cdw10 & 0xff;
    const length = ((command.cdw10 >>> 16) + (command.cdw11 & 0xffff) * 0x1_0000 + 1) * 4;
    const offset = command.cdw12 + command.cdw13 * 0x1_0000_0000;
    // 5.14: none of them is of one namespace (LPA bit 0).
    if (!isAllOrNone(command.namespaceId)) {
      command.complete(Status.INVALID_FIELD);
      return;
    }
    const page = logPages.page(identifier);
    if (page === undefined) {
      command.complete(Status.INVALID_LOG_PAGE);
      return;
    }
    if (length > maxTransfer || offset % 4 !== 0 || offset > page.length) {
      command.complete(Status.INVALID_FIELD);
      return;
    }
    const bytes = new Uint8Array(length);
    bytes.set(page.subarray(offset, offset + length));
    const clears = (command.cdw10 & RETAIN_EVENT) === 0;
    const undo = clears ? logPages.clear(identifier) : undefined;
    const { context, engine } = this.#sources;
    void copyData("write", command, bytes, context.dma, engine.commands.pageSize).then((status) => {
      // What the driver did not get it has not read: the event stays, and so does the page.
      if (!command.ended) {
        if (status !== Status.SUCCESS) undo?.();
        else if (clears) events.logPageRead(identifier);
      }
      command.complete(status);
    });
  }

  /** Writes `bytes` to where the command's PRPs say and completes it. Never rejects. */
  async #answer(command: Command, bytes: Uint8Array): Promise<void> {
    const { context, engine } = this.#sources;
    command.complete(await copyData("write", command, bytes, context.dma, engine.commands.pageSize));
  }

  /** 5.13 */
  #getFeature(command: Command): void {
    const { features, namespaces } = this.#sources;
    const { namespaceId } = command;
    const isThere = isAllOrNone(namespaceId) || namespaces.find(namespaceId) !== undefined;
    const status = isThere ? features.get(command.cdw10, command.cdw11) : Status.INVALID_NAMESPACE_OR_FORMAT;
    if (status === Status.SUCCESS && features.isData(command.cdw10)) void this.#answer(command, features.clock.get());
    else this.#finishFeature(command, status);
  }

  /** 5.21.1.14: the value comes as data. */
  async #setTimestamp(command: Command): Promise<void> {
    const { context, engine, features } = this.#sources;
    const bytes = new Uint8Array(Timestamp.size);
    const status = await copyData("read", command, bytes, context.dma, engine.commands.pageSize);
    // Of a driver that has reset the controller meanwhile nothing is left.
    if (status === Status.SUCCESS && !command.ended) features.clock.set(bytes);
    command.complete(status);
  }

  /** 5.21: a write cache that is switched off is written out first. */
  #setFeature(command: Command): void {
    const { events, features, logPages, namespaces, keepAlive } = this.#sources;
    // 7.8: all features are the controller's.
    if (!isAllOrNone(command.namespaceId)) {
      const isThere = namespaces.find(command.namespaceId) !== undefined;
      command.complete(isThere ? Status.FEATURE_NOT_NAMESPACE_SPECIFIC : Status.INVALID_NAMESPACE_OR_FORMAT);
      return;
    }
    const hadCache = features.writeCache;
    const status = features.set(command.cdw10, command.cdw11, this.#hasQueues());
    if (status === Status.SUCCESS && (command.cdw10 & 0xff) === Feature.KEEP_ALIVE_TIMER) {
      keepAlive.set(features.keepAliveMs);
    }
    const isTimestamp = status === Status.SUCCESS && (command.cdw10 & 0xff) === Feature.TIMESTAMP;
    if (isTimestamp) void this.#setTimestamp(command);
    else if (hadCache && !features.writeCache) namespaces.sync(command.complete);
    else this.#finishFeature(command, status);
    events.warn(logPages.criticalWarning & features.events);
  }

  #finishFeature(command: Command, status: number): void {
    if (status === Status.SUCCESS) command.result = this.#sources.features.result;
    command.complete(status);
  }

  /** 5.3 */
  #createCompletionQueue(command: Command): number {
    const { engine, features, registers } = this.#sources;
    const id = command.cdw10 & 0xffff;
    const size = (command.cdw10 >>> 16) + 1;
    const vector = command.cdw11 >>> 16;
    if (id === 0 || id > features.queues || engine.completionQueues[id]) return Status.INVALID_QUEUE_IDENTIFIER;
    if (size < 2 || size > MAX_QUEUE_ENTRIES) return Status.INVALID_QUEUE_SIZE;
    if (vector >= features.vectors) return Status.INVALID_INTERRUPT_VECTOR;
    if (Cc.iocqesOf(registers.get("CC")) !== CQES) return Status.INVALID_FIELD;
    const status = this.#checkBase(command);
    if (status !== Status.SUCCESS) return status;
    if (!engine.poll.prepare(id, "completion")) return Status.DATA_TRANSFER_ERROR;
    const interruptsEnabled = (command.cdw11 & INTERRUPTS_ENABLED) !== 0;
    engine.completionQueues[id] = new CompletionQueue(id, command.prp1, size, vector, interruptsEnabled);
    return Status.SUCCESS;
  }

  /** 5.4 */
  #createSubmissionQueue(command: Command): number {
    const { engine, features, registers } = this.#sources;
    const id = command.cdw10 & 0xffff;
    const size = (command.cdw10 >>> 16) + 1;
    const completionId = command.cdw11 >>> 16;
    if (id === 0 || id > features.queues || engine.submissionQueues[id]) return Status.INVALID_QUEUE_IDENTIFIER;
    if (completionId === 0) return Status.INVALID_QUEUE_IDENTIFIER;
    const completionQueue = engine.completionQueues[completionId];
    if (completionQueue === undefined) return Status.COMPLETION_QUEUE_INVALID;
    if (size < 2 || size > MAX_QUEUE_ENTRIES) return Status.INVALID_QUEUE_SIZE;
    if (Cc.iosqesOf(registers.get("CC")) !== SQES) return Status.INVALID_FIELD;
    const status = this.#checkBase(command);
    if (status !== Status.SUCCESS) return status;
    if (!engine.poll.prepare(id, "submission")) return Status.DATA_TRANSFER_ERROR;
    engine.submissionQueues[id] = new SubmissionQueue(id, command.prp1, size, completionQueue);
    return Status.SUCCESS;
  }

  /** PRP1 of a new queue. Memory that is not there is noticed at its first use. */
  #checkBase({ prp1, cdw11 }: Command): number {
    if ((cdw11 & PHYSICALLY_CONTIGUOUS) === 0) return Status.INVALID_FIELD;
    if (prp1 % this.#sources.engine.commands.pageSize !== 0) return Status.PRP_OFFSET_INVALID;
    if (!isExact(prp1, MAX_RING_SIZE)) return Status.DATA_TRANSFER_ERROR;
    return Status.SUCCESS;
  }

  /** 5.5 */
  #deleteCompletionQueue(id: number): number {
    const { engine } = this.#sources;
    const queue = id === 0 ? undefined : engine.completionQueues[id];
    if (queue === undefined) return Status.INVALID_QUEUE_IDENTIFIER;
    if (queue.submissionQueues.length > 0) return Status.INVALID_QUEUE_DELETION;
    queue.alive = false;
    engine.completionQueues[id] = undefined;
    engine.interrupts.forget(queue);
    return Status.SUCCESS;
  }

  /** 5.6: the queue's commands end now; those that were not fetched are dropped. */
  #deleteSubmissionQueue(id: number): number {
    const { engine, namespaces } = this.#sources;
    const queue = id === 0 ? undefined : engine.submissionQueues[id];
    if (queue === undefined) return Status.INVALID_QUEUE_IDENTIFIER;
    engine.submissionQueues[id] = undefined;
    engine.commands.cancel((other) => other.queue === queue, Status.ABORTED_SQ_DELETION);
    namespaces.purge();
    queue.alive = false;
    const { submissionQueues } = queue.completionQueue;
    submissionQueues.splice(submissionQueues.indexOf(queue), 1);
    return Status.SUCCESS;
  }

  /** 5.1: a command that is under way ends now. Of one that was not fetched, or has ended, nothing can be said. */
  #abort(command: Command): void {
    const { engine, namespaces } = this.#sources;
    const [queueId, commandId] = [command.cdw10 & 0xffff, command.cdw10 >>> 16];
    const isMeant = (other: Command) => other.queue.id === queueId && other.id === commandId && other !== command;
    const count = engine.commands.cancel(isMeant, Status.ABORT_REQUESTED);
    if (count > 0) namespaces.purge();
    command.result = count > 0 ? 0 : NOT_ABORTED;
    command.complete(Status.SUCCESS);
  }

  /** 5.7. Drivers go on with registers alone when they are refused, as for memory that is not in the window. */
  #configureDoorbells({ prp1, prp2 }: Command): number {
    const { context, engine, features } = this.#sources;
    for (const address of [prp1, prp2]) {
      const { pageSize } = engine.commands;
      if (address % pageSize !== 0 || !isExact(address, pageSize)) return Status.INVALID_FIELD;
    }
    const doorbells = new ShadowDoorbells(context.dma, prp1, prp2, features.queues);
    return engine.shadow.start(doorbells) ? Status.SUCCESS : Status.DATA_TRANSFER_ERROR;
  }

  /**
   * Doorbells that are in memory anyway need no second place there. And a driver that is interrupted by INTA# has to
   * write registers: without KVM, QEMU deasserts it when the driver accesses a BAR, and not before.
   */
  get #hasShadowDoorbells(): boolean {
    const { context, engine } = this.#sources;
    return engine.shared === undefined && !context.interrupts.byPin;
  }

  get #optionalCommands(): number {
    return Oacs.FORMAT_NVM | (this.#hasShadowDoorbells ? Oacs.DOORBELL_BUFFER_CONFIG : 0);
  }

  #hasQueues(): boolean {
    const { submissionQueues, completionQueues } = this.#sources.engine;
    const isIo = (queue: unknown, id: number): boolean => id > 0 && queue !== undefined;
    return submissionQueues.some(isIo) || completionQueues.some(isIo);
  }
}

/** Whether an NSID is that of no namespace in particular. */
function isAllOrNone(namespaceId: number): boolean {
  return namespaceId === 0 || namespaceId === NSID_ALL;
}
