/**
 * NVM Express 1.4, section 5: the admin command set. Left out of Format NVM: metadata, protection information,
 * cryptographic erase.
 *
 * Of this folder's files admin.ts hands commands on to create-queues.ts, identify.ts, log-pages.ts, features.ts and
 * events.ts, all by the names of what they answer. io.ts is the NVM command set, as far as lanes leave it to us, over
 * transfers.ts (data) and dataset-ranges.ts (what is deallocated).
 */
import { isExact } from "../../../../shared/address.js";
import type { ControllerParts } from "../lifecycle.js";
import type { Command } from "../queues/command.js";
import { type Doorbells, ShadowDoorbells } from "../queues/doorbells.js";
import { AdminOpcode, Feature, Format, NSID_ALL, Status } from "../spec.js";
import { LBA_FORMATS } from "../storage/namespace.js";
import { QueueCommands } from "./create-queues.js";
import { type Identity, identify, Oacs } from "./identify.js";
import { copyData } from "./transfers.js";

/** What admin commands work on. */
export interface AdminSources extends ControllerParts {
  readonly identity: Identity;
}

/** The admin commands that there are. */
export function adminOpcodes({ isShared }: Doorbells): number[] {
  return Object.values(AdminOpcode).filter((opcode) => opcode !== AdminOpcode.DOORBELL_BUFFER_CONFIG || !isShared);
}

/** Get Log Page, Retain Asynchronous Event. */
const RETAIN_EVENT = 1 << 15;
/** Abort: bit 0 of the completion's dword 0. */
const NOT_ABORTED = 1;

export class AdminCommands {
  readonly #sources: AdminSources;
  readonly #queues: QueueCommands;

  constructor(sources: AdminSources) {
    this.#sources = sources;
    this.#queues = new QueueCommands(sources);
  }

  execute(command: Command): void {
    const { engine, events, keepAlive } = this.#sources;
    switch (command.opcode) {
      case AdminOpcode.IDENTIFY:
        void this.#identify(command);
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
        command.complete(this.#queues.createCompletion(command));
        return;
      case AdminOpcode.CREATE_IO_SQ:
        command.complete(this.#queues.createSubmission(command));
        return;
      case AdminOpcode.DELETE_IO_CQ:
        command.complete(this.#queues.deleteCompletion(command));
        return;
      case AdminOpcode.DELETE_IO_SQ:
        command.complete(this.#queues.deleteSubmission(command));
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
        keepAlive.restart();
        command.complete(Status.SUCCESS);
        return;
      case AdminOpcode.DOORBELL_BUFFER_CONFIG:
        command.complete(this.#hasShadowDoorbells ? this.#configureDoorbells(command) : Status.INVALID_OPCODE);
        return;
      case AdminOpcode.FORMAT_NVM:
        void this.#format(command).then(command.complete);
        return;
      default:
        command.complete(Status.INVALID_OPCODE);
    }
  }

  /** Writes `bytes` to where the command's data pointer says and completes it. Never rejects. */
  async #answer(command: Command, bytes: Uint8Array): Promise<void> {
    command.complete(await copyData("write", command, bytes));
  }

  /** 5.15 */
  async #identify(command: Command): Promise<void> {
    const { identity, namespaces } = this.#sources;
    const oacs = Oacs.FORMAT_NVM | (this.#hasShadowDoorbells ? Oacs.DOORBELL_BUFFER_CONFIG : 0);
    const answer = await identify(command, identity, namespaces, oacs);
    if (typeof answer === "number") command.complete(answer);
    else await this.#answer(command, answer);
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
    void copyData("write", command, bytes).then((status) => {
      // What the driver did not get it has not read: the event stays, and so does the page.
      if (!command.ended) {
        if (status !== Status.SUCCESS) undo?.();
        else if (clears) events.logPageRead(identifier);
      }
      command.complete(status);
    });
  }

  /** 5.13 */
  #getFeature(command: Command): void {
    const { features, namespaces } = this.#sources;
    const { namespaceId } = command;
    const isThere = isAllOrNone(namespaceId) || namespaces.find(namespaceId) !== undefined;
    const status = isThere ? features.get(command.cdw10, command.cdw11) : Status.INVALID_NAMESPACE_OR_FORMAT;
    const data = status === Status.SUCCESS ? features.getData(command.cdw10) : undefined;
    if (data !== undefined) void this.#answer(command, data);
    else this.#finishFeature(command, status);
  }

  /** The value comes as data. */
  async #setFeatureData(command: Command, size: number): Promise<void> {
    const bytes = new Uint8Array(size);
    const status = await copyData("read", command, bytes);
    // Of a driver that has reset the controller meanwhile nothing is left.
    if (status !== Status.SUCCESS || command.ended) command.complete(status);
    else command.complete(this.#sources.features.setData(command.cdw10, bytes));
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
    const status = features.set(command.cdw10, command.cdw11, this.#queues.hasAny);
    namespaces.setCache(features.writeCache);
    const identifier = status === Status.SUCCESS ? command.cdw10 & 0xff : undefined;
    if (identifier === Feature.KEEP_ALIVE_TIMER) keepAlive.set(features.keepAliveMs);
    const dataSize = identifier === undefined ? 0 : features.dataSize(identifier);
    if (dataSize > 0) void this.#setFeatureData(command, dataSize);
    else if (hadCache && !features.writeCache) namespaces.sync(command.complete);
    else this.#finishFeature(command, status);
    events.warn(logPages.criticalWarning & features.events);
  }

  #finishFeature(command: Command, status: number): void {
    if (status === Status.SUCCESS) command.result = this.#sources.features.result;
    command.complete(status);
  }

  /** 5.1: a command that is in flight ends now, and so does one that waits: for an event, or in its queue. */
  #abort(command: Command): void {
    const { engine, events, namespaces } = this.#sources;
    const [queueId, commandId] = [command.cdw10 & 0xffff, command.cdw10 >>> 16];
    const isMeant = (other: Command) => other.queue.id === queueId && other.id === commandId && other !== command;
    const count = engine.commands.cancel(isMeant, Status.ABORT_REQUESTED);
    if (count > 0) namespaces.purge();
    const isAborted =
      count > 0 ||
      (queueId === 0 && events.abort(commandId)) ||
      (queueId !== 0 && engine.commands.abortWaiting(engine.submissionQueues[queueId], commandId));
    command.result = isAborted ? 0 : NOT_ABORTED;
    command.complete(Status.SUCCESS);
  }

  /** 5.7. Drivers go on with registers alone when they are refused, as for memory that is not in the window. */
  #configureDoorbells({ prp1, prp2, pageSize }: Command): number {
    const { context, engine, features } = this.#sources;
    for (const address of [prp1, prp2]) {
      if (address % pageSize !== 0 || !isExact(address, pageSize)) return Status.INVALID_FIELD;
    }
    const doorbells = new ShadowDoorbells(context.dma, prp1, prp2, features.queues);
    return engine.useShadow(doorbells) ? Status.SUCCESS : Status.DATA_TRANSFER_ERROR;
  }

  /**
   * Doorbells that are in memory anyway need not be there twice. And a driver that is interrupted by INTA# has to
   * write registers: without KVM, QEMU deasserts it when the driver accesses a BAR, and not before.
   */
  get #hasShadowDoorbells(): boolean {
    const { context, engine } = this.#sources;
    return !engine.doorbells.isShared && !context.interrupts.byPin;
  }

  /** 5.23: formats one namespace, or all. Resolves to a status; never rejects. */
  async #format(command: Command): Promise<number> {
    const { namespaces } = this.#sources;
    const { cdw10, namespaceId } = command;
    const found = namespaces.find(namespaceId);
    const chosen = namespaceId === NSID_ALL ? namespaces.all : found === undefined ? [] : [found];
    if (chosen.length === 0) return Status.INVALID_NAMESPACE_OR_FORMAT;
    const blockSize = LBA_FORMATS[Format.lbafOf(cdw10)];
    if (blockSize === undefined || (cdw10 & Format.PROTECTION_MASK) !== 0) return Status.INVALID_FORMAT;
    // What is erased reads as zeros for ever, whether that was asked for or not.
    if (Format.sesOf(cdw10) > Format.SES_USER_DATA) return Status.INVALID_FIELD;
    if (chosen.some(({ storage }) => storage.readOnly)) return Status.NAMESPACE_WRITE_PROTECTED;
    if (!chosen.every((namespace) => namespace.canHaveBlocksOf(blockSize))) return Status.INVALID_FORMAT;
    if (chosen.some(({ formatting }) => formatting)) return Status.FORMAT_IN_PROGRESS;
    const formatted = chosen.map(
      (namespace) => new Promise<number>((done) => namespace.format(blockSize, command, done)),
    );
    const statuses = await Promise.all(formatted);
    return statuses.find((status) => status !== Status.SUCCESS) ?? Status.SUCCESS;
  }
}

/** Whether an NSID is that of no namespace in particular. */
function isAllOrNone(namespaceId: number): boolean {
  return namespaceId === 0 || namespaceId === NSID_ALL;
}
