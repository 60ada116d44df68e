/**
 * NVM Express 1.4, section 5.2: Asynchronous Event Requests wait here for events, and events for requests. Once an
 * event of a type was reported, further ones of the type wait until the driver has read its log page.
 */
import type { QueueEngine } from "../queues/engine.js";
import {
  CRITICAL_WARNING_RELIABILITY,
  CRITICAL_WARNING_TEMPERATURE,
  EventType,
  LogPage,
  SmartEvent,
  Status,
} from "../spec.js";

/** Requests in flight at most (Identify's AERL plus one). */
export const MAX_EVENT_REQUESTS = 4;

const WARNING_EVENTS = [
  [CRITICAL_WARNING_RELIABILITY, SmartEvent.RELIABILITY],
  [CRITICAL_WARNING_TEMPERATURE, SmartEvent.TEMPERATURE],
] as const;

interface Event {
  readonly type: number;
  readonly information: number;
  readonly logPage: number;
}

export class AsyncEvents {
  readonly #engine: QueueEngine;
  /** Command identifiers of the requests that wait. */
  readonly #requests: number[] = [];
  /** Events that wait; at most one of a kind. */
  #events: Event[] = [];
  /** Types that were reported and whose log page was not read since, with that log page. */
  readonly #reported = new Map<number, number>();

  /** See `warn`. */
  #warnings = 0;

  constructor(engine: QueueEngine) {
    this.#engine = engine;
  }

  get full(): boolean {
    return this.#requests.length >= MAX_EVENT_REQUESTS;
  }

  /** A request of the driver's; `full` was checked. */
  request(commandId: number): void {
    this.#requests.push(commandId);
    this.deliver();
  }

  /** A request is not wanted any more. Returns whether there was such a one. */
  abort(commandId: number): boolean {
    const admin = this.#engine.submissionQueues[0];
    const index = this.#requests.indexOf(commandId);
    if (index < 0 || admin === undefined || admin.completionQueue.room === 0) return false;
    this.#requests.splice(index, 1);
    this.#engine.commands.completions.post(admin, commandId, Status.ABORT_REQUESTED, 0);
    return true;
  }

  raise(type: number, information: number, logPage: number): void {
    if (this.#events.some((event) => event.type === type && event.information === information)) return;
    this.#events.push({ type, information, logPage });
    this.deliver();
  }

  /**
   * The SMART critical warnings that there are and that the driver wants to hear of, as bits: each is an event when it
   * begins, or when the driver begins to want it.
   */
  warn(warnings: number): void {
    const begun = warnings & ~this.#warnings;
    this.#warnings = warnings;
    for (const [warning, information] of WARNING_EVENTS) {
      if ((begun & warning) !== 0) this.raise(EventType.SMART, information, LogPage.SMART);
    }
  }

  /** The driver read the log page and did not ask to retain its event: the next event of the type may be reported. */
  logPageRead(logPage: number): void {
    for (const [type, page] of this.#reported) if (page === logPage) this.#reported.delete(type);
    this.deliver();
  }

  /** Reports what can be: also called when the admin completion queue has room again. */
  deliver(): void {
    const admin = this.#engine.submissionQueues[0];
    if (admin === undefined || this.#engine.paused) return;
    for (const event of [...this.#events]) {
      if (this.#requests.length === 0 || admin.completionQueue.room === 0) return;
      if (this.#reported.has(event.type)) continue;
      this.#reported.set(event.type, event.logPage);
      this.#events = this.#events.filter((other) => other !== event);
      const commandId = this.#requests.shift() as number;
      const result = event.type | (event.information << 8) | (event.logPage << 16);
      this.#engine.commands.completions.post(admin, commandId, Status.SUCCESS, result);
    }
  }

  reset(): void {
    this.#requests.length = 0;
    this.#events = [];
    this.#reported.clear();
    this.#warnings = 0;
  }
}
