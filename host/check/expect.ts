/**
 * How a check ends that does not pass, thrown wherever that shows, and how answers are judged. Each `expect` function
 * throws a Failure that says what was expected and what came; some return a note.
 */
import { constants } from "node:os";
import { isAligned } from "../../shared/bits.js";
import { type Answer, commandName, isError, type Message } from "./messages.js";

/** The server does not do what the specification demands. */
export class Failure extends Error {
  override readonly name: string = "Failure";
  constructor(
    readonly expected: string,
    readonly came: string,
  ) {
    super(`expected ${expected}; came ${came}`);
  }
}

/** The check does not apply to this server or device. */
export class Skip extends Error {
  override readonly name = "Skip";
}

/** Nobody accepts connections any more. */
export class ServerGone extends Failure {
  override readonly name = "ServerGone";
}

const ERRNO_NAMES = new Map<number, string>(Object.entries(constants.errno).map(([name, number]) => [number, name]));

function errnoName(errno: number): string {
  return errno === 0 ? "an error without an errno" : (ERRNO_NAMES.get(errno) ?? `errno ${errno}`);
}

/** What came, in a few words. */
export function describe(answer: Answer): string {
  if (answer === undefined) return "connection closed";
  return isError(answer) ? errnoName(answer.errno) : "accepted";
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
export function expectReply(answer: Answer, command: number): Message {
  if (answer === undefined) throw new Failure(`a reply to ${commandName(command)}`, describe(answer));
  return answer;
}

export function expectEqual(what: string, came: number | string | boolean, expected: number | string | boolean): void {
  if (came !== expected) throw new Failure(`${what} ${expected}`, `${came}`);
}

export function expectThat(condition: boolean, expected: string, came: string | number): void {
  if (!condition) throw new Failure(expected, `${came}`);
}

/** Where the headers of a list of capabilities may lie. */
interface ListBounds {
  /** What one of them is called, as in "region 3: a capability". */
  readonly name: string;
  readonly from: number;
  readonly to: number;
  readonly headerSize: number;
  readonly alignment: number;
}

/** Walks a list of capabilities by their offsets. @throws Failure when it leaves its bounds or does not end */
export function walkList(bounds: ListBounds, first: number, next: (at: number) => number): number[] {
  const { name, from, to, headerSize, alignment } = bounds;
  const found: number[] = [];
  for (let at = first; at !== 0; at = next(at)) {
    expectThat(at >= from && at + headerSize <= to, `${name} within ${from} to ${to}`, `one at ${at}`);
    expectThat(isAligned(at, alignment), `${name} at a multiple of ${alignment}`, `one at ${at}`);
    expectThat(!found.includes(at), `${name} list that ends`, `one that comes back to ${at}`);
    found.push(at);
  }
  return found;
}
