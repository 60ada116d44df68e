/**
 * What a check is: data, with one function that does it. A check passes when the function returns, perhaps with a note
 * of what the server did where the specification leaves it a choice; it fails or is skipped by an exception.
 */
import type { Context } from "./context.js";

export interface Check {
  /** Unique, lower-case words with dashes; begins with the topic. */
  readonly id: string;
  /** Where the demand comes from: "vfio-user.rst, VFIO_USER_DMA_MAP". */
  readonly section: string;
  /** What must hold, in one sentence without a full stop. */
  readonly title: string;
  /** It writes to the device, resets it or changes its state. */
  readonly destructive?: boolean;
  /** Resolves with a note about what came, if there is something to tell. @throws Failure, Skip, ServerGone */
  readonly run: (context: Context) => Promise<string | undefined>;
}

/** A section of the vfio-user specification (QEMU's docs/interop/vfio-user.rst). */
export function vfioUser(section: string): string {
  return `vfio-user.rst, ${section}`;
}
