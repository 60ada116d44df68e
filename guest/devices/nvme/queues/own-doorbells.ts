/** Doorbells of the queues that no lane serves: what the driver wrote is read, once each, and checked. */
import { type Doorbells, headNumber, tailNumber } from "./doorbells.js";
import type { Lanes } from "./lanes.js";
import type { QueueInterrupts } from "./queue-interrupts.js";
import { type CompletionQueue, NO_LANE, type Ring, type SubmissionQueue } from "./queues.js";
import type { Reports } from "./reports.js";

/** What they are about. */
interface Sources {
  readonly submissionQueues: readonly (SubmissionQueue | undefined)[];
  readonly completionQueues: readonly (CompletionQueue | undefined)[];
  readonly doorbells: Doorbells;
  readonly lanes: Lanes;
  readonly interrupts: QueueInterrupts;
  readonly reports: Reports;
}

export class OwnDoorbells {
  readonly #sources: Sources;

  constructor(sources: Sources) {
    this.#sources = sources;
  }

  /** Lanes look at the queue's doorbells for us, where no message comes with them. */
  watch({ id, tail, completionQueue }: SubmissionQueue): void {
    const { doorbells, lanes } = this.#sources;
    if (!doorbells.isShared && !doorbells.isShadowed(tailNumber(id))) return;
    lanes.watch(tailNumber(id), tail);
    lanes.watch(headNumber(completionQueue.id), completionQueue.head);
  }

  /** Takes what was written; `served`: the queue may have commands that can be fetched. */
  take(served: (queue: SubmissionQueue) => void): void {
    const { completionQueues, submissionQueues } = this.#sources;
    for (const queue of completionQueues) if (queue?.lane === NO_LANE) this.#takeHead(queue, served);
    for (const queue of submissionQueues) if (queue?.completionQueue.lane === NO_LANE) this.#takeTail(queue, served);
  }

  #takeTail(queue: SubmissionQueue, served: (queue: SubmissionQueue) => void): void {
    const tail = this.#sources.doorbells.load(tailNumber(queue.id));
    if (tail === undefined || tail === queue.tail || tail === queue.invalidDoorbell) return;
    if (this.#check(queue, tail, queue.ring(tail))) served(queue);
  }

  /** Entries came free, so commands that waited for them can be fetched. */
  #takeHead(queue: CompletionQueue, served: (queue: SubmissionQueue) => void): void {
    const { doorbells, interrupts, reports } = this.#sources;
    const head = doorbells.load(headNumber(queue.id));
    if (head === undefined || head === queue.head || head === queue.invalidDoorbell) return;
    if (!this.#check(queue, head, queue.ring(head))) return;
    for (const submission of queue.submissionQueues) served(submission);
    interrupts.acknowledge();
    if (queue.id === 0) reports.adminRoom = true;
  }

  #check(queue: Ring, value: number, isValid: boolean): boolean {
    queue.invalidDoorbell = isValid ? -1 : value;
    if (!isValid) this.#sources.reports.invalidDoorbell = true;
    return isValid;
  }
}
