/**
 * Queues whose memory is not in the window: entries come and go by messages to the driver VM's VMM, in order. A failure
 * is fatal for the controller (NVM Express 1.4, section 9.5), unless the queue is gone by then.
 */
import type { Dma } from "../../device.js";
import type { InFlight } from "./in-flight.js";
import type { CompletionQueue, SubmissionQueue } from "./queues.js";
import { SUBMISSION_ENTRY_SIZE } from "./spec.js";

/** What they need of the engine. */
export interface RingUser {
  readonly inFlight: InFlight;
  beginTurn(): void;
  start(queue: SubmissionQueue, data: DataView, offset: number): void;
  serve(queue: SubmissionQueue): void;
  interrupt(queue: CompletionQueue): void;
  onFatal(reason: unknown): void;
}

/** Fetches at most `limit` commands. Never rejects. */
export async function fetchByMessages(
  queue: SubmissionQueue,
  limit: number,
  dma: Dma,
  engine: RingUser,
): Promise<void> {
  const tillEnd = queue.tail > queue.head ? queue.tail - queue.head : queue.size - queue.head;
  const count = Math.min(tillEnd, queue.completionQueue.room, limit);
  const bytes = new Uint8Array(count * SUBMISSION_ENTRY_SIZE);
  const data = new DataView(bytes.buffer);
  const epoch = engine.inFlight.begin();
  queue.fetching = true;
  try {
    await dma.read(queue.base + queue.head * SUBMISSION_ENTRY_SIZE, bytes);
    queue.fetching = false;
    engine.beginTurn();
    // What is no longer wanted stays in the queue and is read again.
    for (let n = 0; n < count && queue.servable; n++) engine.start(queue, data, n * SUBMISSION_ENTRY_SIZE);
    engine.serve(queue);
  } catch (error) {
    queue.fetching = false;
    if (queue.alive) engine.onFatal(error);
  } finally {
    engine.inFlight.end(epoch);
  }
}

/** Writes all `unwritten` entries; the word with the phase after the rest of its entry. Never rejects. */
export async function writeByMessages(queue: CompletionQueue, dma: Dma, engine: RingUser): Promise<void> {
  const epoch = engine.inFlight.begin();
  try {
    while (queue.alive && queue.unwritten.length > 0) {
      const { address, bytes } = queue.unwritten[0];
      const last = bytes.length - 4;
      await dma.write(address, bytes.subarray(0, last));
      if (!queue.alive) return;
      await dma.write(address + last, bytes.subarray(last));
      queue.unwritten.shift();
      if (queue.alive) engine.interrupt(queue);
    }
  } catch (error) {
    if (queue.alive) engine.onFatal(error);
  } finally {
    engine.inFlight.end(epoch);
  }
}
