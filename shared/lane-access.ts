/** What a function gives to loops in C++ (lanes) that serve its queues without JavaScript. */
import type { LaneContext } from "../native/lane.js";

export interface LaneAccess {
  /** Driver-VM memory that is in the window, kept up to date, and interrupt vectors that can be signalled directly. */
  readonly context: LaneContext;
  /** Lanes signalled so many interrupts. */
  interrupted(count: number): void;
}

/** How the doorbell of a vector is rung: by an eventfd, or by 16 bits written to a device's register. */
export type DirectTrigger =
  | { readonly eventfd: number }
  | { readonly buffer: ArrayBuffer; readonly offset: number; readonly value: number };
