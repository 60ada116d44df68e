/** What comes up at the queues that is the controller's business: noted here, and taken by it in its next turn. */
import type { Command } from "./command.js";

/** A command that ended with an error, as far as the error log wants to know it. */
export interface Failure {
  readonly queueId: number;
  readonly commandId: number;
  readonly status: number;
  readonly namespaceId: number;
  readonly lbaLow: number;
  readonly lbaHigh: number;
}

export class Reports {
  /** Why the controller cannot go on: a queue's memory cannot be reached. The first reason counts. */
  fatal: unknown;
  /** A bug of ours: what was thrown. */
  bug: unknown;
  /** A doorbell has an invalid value. */
  invalidDoorbell = false;
  /** The driver took entries of the admin completion queue. */
  adminRoom = false;
  readonly failures: Failure[] = [];

  note({ queue, id, namespaceId, cdw10, cdw11 }: Command, status: number): void {
    this.failures.push({
      queueId: queue.id,
      commandId: id,
      status,
      namespaceId,
      lbaLow: cdw10,
      lbaHigh: cdw11,
    });
  }

  /** The queues are gone, and what was wrong with them. */
  clear(): void {
    this.fatal = undefined;
    this.invalidDoorbell = this.adminRoom = false;
  }
}
