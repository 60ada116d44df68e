/**
 * Queues that the driver has made and deleted: the admin queues, which the registers describe when the controller is
 * enabled (NVM Express 1.4, section 7.6.1), and I/O queues by command (5.3 to 5.6).
 */
import { isExact } from "../../../../shared/address.js";
import type { RegisterFile } from "../../../pci/registers.js";
import type { Command } from "../queues/command.js";
import type { QueueEngine } from "../queues/engine.js";
import { type AdminQueues, CompletionQueue, MAX_RING_SIZE, SubmissionQueue } from "../queues/queues.js";
import { Aqa, Cc, MAX_QUEUE_ENTRIES, MPSMAX, type RegisterName } from "../registers.js";
import { CQES, SQES, Status } from "../spec.js";
import type { Namespaces } from "../storage/namespaces.js";
import type { Features } from "./features.js";

/** Create I/O Queue, CDW11. */
const PHYSICALLY_CONTIGUOUS = 1;
const INTERRUPTS_ENABLED = 2;

/** Address 0 is as good as any other to an IOMMU. Memory that is not there is noticed when it is used. */
function isQueueBase(address: number, pageSize: number): boolean {
  return address % pageSize === 0 && isExact(address, MAX_RING_SIZE);
}

/** The admin queues as the registers describe them, or what is wrong with the registers. */
export function adminQueuesOf(registers: RegisterFile<RegisterName>): AdminQueues | string {
  const cc = registers.get("CC");
  const aqa = registers.get("AQA");
  const submission = registers.getAddress("ASQ");
  const completion = registers.getAddress("ACQ");
  const pageSize = Cc.pageSizeOf(cc);
  if (Cc.cssOf(cc) !== 0) return "CC.CSS is not the NVM command set";
  if (Cc.mpsOf(cc) > MPSMAX) return "CC.MPS is above CAP.MPSMAX";
  if (Cc.amsOf(cc) !== 0) return "CC.AMS is not round robin";
  if (Aqa.asqsOf(aqa) < 2 || Aqa.acqsOf(aqa) < 2) return "AQA: an admin queue has fewer than two entries";
  if (!isQueueBase(submission, pageSize) || !isQueueBase(completion, pageSize)) {
    return "ASQ or ACQ is no address of a memory page";
  }
  const completionQueue = new CompletionQueue(0, completion, Aqa.acqsOf(aqa), 0, true);
  const submissionQueue = new SubmissionQueue(0, submission, Aqa.asqsOf(aqa), completionQueue);
  return { pageSize, completionQueue, submissionQueue };
}

/** What they concern. */
interface Sources {
  readonly engine: QueueEngine;
  readonly features: Features;
  readonly namespaces: Namespaces;
  readonly registers: RegisterFile<RegisterName>;
}

/** Each command's method returns a status. */
export class QueueCommands {
  readonly #sources: Sources;

  constructor(sources: Sources) {
    this.#sources = sources;
  }

  get hasAny(): boolean {
    const { submissionQueues, completionQueues } = this.#sources.engine;
    const isIo = (queue: unknown, id: number): boolean => id > 0 && queue !== undefined;
    return submissionQueues.some(isIo) || completionQueues.some(isIo);
  }

  /** 5.3 */
  createCompletion(command: Command): number {
    const { engine } = this.#sources;
    const { completionQueues } = engine;
    const id = command.cdw10 & 0xffff;
    const size = (command.cdw10 >>> 16) + 1;
    const vector = command.cdw11 >>> 16;
    if (id === 0 || id > this.#sources.features.queues || completionQueues[id]) return Status.INVALID_QUEUE_IDENTIFIER;
    if (size < 2 || size > MAX_QUEUE_ENTRIES) return Status.INVALID_QUEUE_SIZE;
    if (vector >= this.#sources.features.vectors) return Status.INVALID_INTERRUPT_VECTOR;
    if (Cc.iocqesOf(this.#sources.registers.get("CC")) !== CQES) return Status.INVALID_FIELD;
    const status = this.#checkBase(command);
    if (status !== Status.SUCCESS) return status;
    if (!engine.prepare(id, "completion")) return Status.DATA_TRANSFER_ERROR;
    const interruptsEnabled = (command.cdw11 & INTERRUPTS_ENABLED) !== 0;
    engine.addCompletion(new CompletionQueue(id, command.prp1, size, vector, interruptsEnabled));
    return Status.SUCCESS;
  }

  /** 5.4 */
  createSubmission(command: Command): number {
    const { engine } = this.#sources;
    const { completionQueues, submissionQueues } = engine;
    const id = command.cdw10 & 0xffff;
    const size = (command.cdw10 >>> 16) + 1;
    const completionId = command.cdw11 >>> 16;
    if (id === 0 || id > this.#sources.features.queues || submissionQueues[id]) return Status.INVALID_QUEUE_IDENTIFIER;
    if (completionId === 0 || completionId > this.#sources.features.queues) return Status.INVALID_QUEUE_IDENTIFIER;
    const completionQueue = completionQueues[completionId];
    if (completionQueue === undefined) return Status.COMPLETION_QUEUE_INVALID;
    if (size < 2 || size > MAX_QUEUE_ENTRIES) return Status.INVALID_QUEUE_SIZE;
    if (Cc.iosqesOf(this.#sources.registers.get("CC")) !== SQES) return Status.INVALID_FIELD;
    const status = this.#checkBase(command);
    if (status !== Status.SUCCESS) return status;
    if (!engine.prepare(id, "submission")) return Status.DATA_TRANSFER_ERROR;
    engine.addSubmission(new SubmissionQueue(id, command.prp1, size, completionQueue));
    return Status.SUCCESS;
  }

  /** PRP1 of a new queue. */
  #checkBase({ prp1, cdw11, pageSize }: Command): number {
    if ((cdw11 & PHYSICALLY_CONTIGUOUS) === 0) return Status.INVALID_FIELD;
    if (isQueueBase(prp1, pageSize)) return Status.SUCCESS;
    return prp1 % pageSize !== 0 ? Status.PRP_OFFSET_INVALID : Status.DATA_TRANSFER_ERROR;
  }

  /** 5.5 */
  deleteCompletion({ cdw10 }: Command): number {
    const { engine } = this.#sources;
    const id = cdw10 & 0xffff;
    const queue = id === 0 ? undefined : engine.completionQueues[id];
    if (queue === undefined) return Status.INVALID_QUEUE_IDENTIFIER;
    if (queue.submissionQueues.length > 0) return Status.INVALID_QUEUE_DELETION;
    engine.removeCompletion(queue);
    return Status.SUCCESS;
  }

  /** 5.6: the queue's commands end now; those that were not fetched are dropped. */
  deleteSubmission({ cdw10 }: Command): number {
    const { engine, namespaces } = this.#sources;
    const id = cdw10 & 0xffff;
    const queue = id === 0 ? undefined : engine.submissionQueues[id];
    if (queue === undefined) return Status.INVALID_QUEUE_IDENTIFIER;
    engine.removeSubmission(queue);
    namespaces.purge();
    return Status.SUCCESS;
  }
}
