/** NVM Express 1.4, sections 3.1.24 and 3.1.25: doorbell registers. Submission and completion doorbells take turns. */
import type { QueueEngine } from "./engine.js";
import type { AsyncEvents } from "./events.js";
import { Doorbell } from "./queues.js";
import { DOORBELL_OFFSET, DOORBELL_STRIDE } from "./registers.js";
import { ErrorEvent, EventType, LogPage } from "./spec.js";

/** A write to BAR 0 among the doorbells; what makes no sense there becomes an event. */
export function ringDoorbell(
  engine: QueueEngine,
  events: AsyncEvents,
  offset: number,
  size: number,
  value: number,
): void {
  // Before the controller is ready doorbells mean nothing.
  if (engine.submissionQueues[0] === undefined) return;
  const number = (offset - DOORBELL_OFFSET) / DOORBELL_STRIDE;
  const id = Math.floor(number / 2);
  const isCompletion = number % 2 === 1;
  const index = value & 0xffff;
  const submission = engine.submissionQueues[id];
  const completion = engine.completionQueues[id];
  if (!Number.isInteger(number) || size < 2 || (isCompletion ? completion : submission) === undefined) {
    events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_REGISTER, LogPage.ERROR_INFORMATION);
    return;
  }
  let result: number = Doorbell.INVALID;
  if (isCompletion && completion !== undefined) result = engine.ringCompletion(completion, index);
  else if (submission !== undefined) result = engine.ringSubmission(submission, index);
  if (result === Doorbell.INVALID) {
    events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogPage.ERROR_INFORMATION);
  } else if (isCompletion && id === 0) {
    events.deliver();
  }
}
