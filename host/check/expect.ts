/** Judging answers. Each function throws a Failure that says what was expected and what came; some return a note. */
import { constants } from "node:os";
import { HeaderFlags } from "../../shared/spec/vfio-user.js";
import { commandName } from "./conduct.js";
import type { Answer } from "./session.js";
import { Failure } from "./verdict.js";
import type { Message } from "./wire.js";

const ERRNO_NAMES = new Map<number, string>(Object.entries(constants.errno).map(([name, number]) => [number, name]));

function errnoName(errno: number): string {
  return errno === 0 ? "an error without an errno" : (ERRNO_NAMES.get(errno) ?? `errno ${errno}`);
}

export function isError(message: Message): boolean {
  return (message.flags & HeaderFlags.ERROR) !== 0;
}

/** What came, in a few words. */
export function describe(answer: Answer): string {
  if (answer === undefined) return "connection closed";
  if (isError(answer)) return errnoName(answer.errno);
  return "accepted";
}

/** A reply without error, of exactly `length` bytes if given. */
export function expectSuccess(answer: Answer, command: number, length?: number): Message {
  const what = `success from ${commandName(command)}`;
  if (answer === undefined || isError(answer)) throw new Failure(what, describe(answer));
  if (length !== undefined && answer.body.length !== length) {
    throw new Failure(`${what} with a body of ${length} bytes`, `a body of ${answer.body.length} bytes`);
  }
  return answer;
}

/** An error reply; with `errno`, that one. */
export function expectRefusal(answer: Answer, command: number, errno?: number): string {
  const name = errno === undefined ? "an error" : errnoName(errno);
  if (answer === undefined || !isError(answer) || (errno !== undefined && answer.errno !== errno)) {
    throw new Failure(`${name} in reply to ${commandName(command)}`, describe(answer));
  }
  return describe(answer);
}

/** An error reply or a closed connection. */
export function expectRefusalOrClose(answer: Answer, command: number): string {
  if (answer !== undefined && !isError(answer)) {
    throw new Failure(`an error in reply to ${commandName(command)}, or a closed connection`, describe(answer));
  }
  return describe(answer);
}

/** Any reply. */
export function expectReply(answer: Answer, command: number): string {
  if (answer === undefined) throw new Failure(`a reply to ${commandName(command)}`, describe(answer));
  return describe(answer);
}

export function expectEqual(what: string, came: number | string | boolean, expected: number | string | boolean): void {
  if (came !== expected) throw new Failure(`${what} ${expected}`, `${came}`);
}

export function expectThat(condition: boolean, expected: string, came: string | number): void {
  if (!condition) throw new Failure(expected, `${came}`);
}
