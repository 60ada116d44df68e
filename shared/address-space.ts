/** Address space of this process for memory of others. */
import { Reservation } from "../native/index.js";
import { isSystemError, UserError } from "./errors.js";
import { WINDOW_PIECE_SIZE } from "./limits.js";

/**
 * For `size` bytes at most, a piece of which is reserved at once and more when it is needed. `what` it is for, in
 * words; `stray`: see Reservation. @throws UserError when the process may have no more
 */
export function reserveAddressSpace(what: string, size: number, stray?: number): Reservation {
  try {
    return new Reservation(size, WINDOW_PIECE_SIZE, stray);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(
      `no address space for ${what} (${error.code}): raise the limit (ulimit -v, or LimitAS= of a unit)`,
    );
  }
}
