/**
 * The three ways in which something outside our control goes wrong. `assert` is for our own bugs, never for these.
 */
import { constants } from "node:os";
import { getSystemErrorName } from "node:util";

/** Errno values that are put on the wire (Linux numbers, as the vfio-user header's error field wants them). */
export const Errno: Readonly<Record<ErrnoName, number>> = constants.errno;

type ErrnoName =
  | "E2BIG"
  | "EACCES"
  | "EAGAIN"
  | "EBUSY"
  | "ECANCELED"
  | "EEXIST"
  | "EFAULT"
  | "EINVAL"
  | "EIO"
  | "EMFILE"
  | "ENODEV"
  | "ENOENT"
  | "ENOMEM"
  | "ENOSPC"
  | "ENOTCONN"
  | "ENOTSUP"
  | "ENOTTY"
  | "EOVERFLOW"
  | "EPERM"
  | "EPROTO"
  | "ETIMEDOUT";

/** A peer broke the protocol in one message: becomes an error reply with `errno`, and the session goes on. */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
  constructor(
    message: string,
    readonly errno: number = Errno.EINVAL,
    /** The command that was refused, in the protocol's own numbering. */
    readonly command?: number,
  ) {
    super(message);
  }
}

/** A peer is gone, or broke the framing so that nothing more can be understood: the session ends. */
export class PeerGone extends Error {
  override readonly name = "PeerGone";
}

/** What the native addon throws: a system call failed. */
interface SystemError extends Error {
  /** The name of the errno, as `Error.code` is in Node: "ENOENT". */
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
}

/** The error for a failure that the addon reported as a number. */
export function systemError(syscall: string, errno: number): SystemError {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno, syscall });
}

export function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && typeof (error as Partial<SystemError>).syscall === "string";
}

/** An operator's mistake, in one sentence that says what to do; the process exits with `exitCode`. */
export class UserError extends Error {
  override readonly name = "UserError";
  constructor(
    message: string,
    /** 1: the machine is not as needed. 2: wrong usage. */
    readonly exitCode: 1 | 2 = 1,
    /** `cause`: the error that it was made from, if it was. */
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
