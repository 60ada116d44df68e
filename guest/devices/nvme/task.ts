/**
 * What somebody asked for, and may have lost interest in: a reset, an abort or a queue's deletion ends it before its
 * work has ended.
 */
export interface Task {
  /** Nobody waits for it any more. What is done for it stops at the next step, and tells nobody. */
  readonly ended: boolean;
}
