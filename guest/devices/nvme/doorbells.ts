/**
 * NVM Express 1.4, sections 3.1.24 and 3.1.25: doorbell registers, written by message. Submission and completion
 * doorbells take turns. What makes no sense there becomes an event.
 */
import type { QueueEngine } from "./engine.js";
import type { AsyncEvents } from "./events.js";
import { Doorbell } from "./queues.js";
import { DOORBELL_OFFSET, DOORBELL_STRIDE } from "./registers.js";
import { ErrorEvent, EventType, LogPage } from "./spec.js";

/** A write to BAR 0 among the doorbells, where they are not shared. */
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
  const index = value & 0xffff;
  if (!isDoorbell(engine, number, size)) {
    events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_REGISTER, LogPage.ERROR_INFORMATION);
    return;
  }
  const id = Math.floor(number / 2);
  const isCompletion = number % 2 === 1;
  const submission = engine.submissionQueues[id];
  const completion = engine.completionQueues[id];
  let result: number = Doorbell.INVALID;
  if (isCompletion && completion !== undefined) result = engine.ringCompletion(completion, index);
  else if (submission !== undefined) result = engine.ringSubmission(submission, index);
  if (result === Doorbell.INVALID) {
    events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogPage.ERROR_INFORMATION);
  }
}

/**
 * Where they are shared: the value is in memory already, and is checked there. `number`: which doorbell, if it is
 * whole.
 */
export function wroteDoorbell(engine: QueueEngine, events: AsyncEvents, number: number, size: number): void {
  if (engine.submissionQueues[0] === undefined) return;
  if (!isDoorbell(engine, number, size)) {
    events.raise(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_REGISTER, LogPage.ERROR_INFORMATION);
  }
  engine.poll.wake();
}

/** Whether there is such a queue, and the write is one to its register. */
function isDoorbell(engine: QueueEngine, number: number, size: number): boolean {
  if (!Number.isInteger(number) || size < 2) return false;
  const id = Math.floor(number / 2);
  return (number % 2 === 1 ? engine.completionQueues[id] : engine.submissionQueues[id]) !== undefined;
}
