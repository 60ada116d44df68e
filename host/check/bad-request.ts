/**
 * Checks of the most frequent kind, as tables: one well-framed request with something wrong in it. It must be answered,
 * and the connection goes on. `answer` says what the specification leaves open:
 *
 * - "error": it is wrong by the specification, so the reply is an error.
 * - "any": unusual, but the specification does not say that it is wrong; the reply may be an error or not.
 * - "error or close", "any or close": as these, and the server may also close the connection (then a new one works).
 */
import type { Check } from "./check.js";
import { commandName } from "./conduct.js";
import type { Context } from "./context.js";
import type { Device } from "./device.js";
import { describe, expectRefusal, expectRefusalOrClose, expectReply } from "./expect.js";
import type { Answer, Session } from "./session.js";
import { Failure } from "./verdict.js";

type Allowed = "error" | "any" | "error or close" | "any or close";

export interface BadRequest {
  readonly id: string;
  readonly title: string;
  readonly command: number;
  /** Its parameter is there for what depends on the device; it may throw Skip. */
  readonly body: Uint8Array | ((device: Device) => Uint8Array);
  readonly fds?: (context: Context) => number[];
  readonly answer: Allowed;
  readonly errno?: number;
  /** Overrides the topic's. */
  readonly section?: string;
  /** Done before, on the same connection. */
  readonly before?: (session: Session, context: Context) => Promise<void>;
  /** Done after a success that was allowed: takes back what was done. */
  readonly undo?: (session: Session) => Promise<void>;
  readonly destructive?: boolean;
}

function judge(request: BadRequest, answer: Answer): string {
  const { command } = request;
  switch (request.answer) {
    case "error":
      return expectRefusal(answer, command, request.errno);
    case "error or close":
      return expectRefusalOrClose(answer, command);
    case "any":
      return expectReply(answer, command);
    case "any or close":
      return describe(answer);
  }
}

export function badRequests(section: string, requests: readonly BadRequest[]): Check[] {
  return requests.map((request) => ({
    id: request.id,
    section: request.section ?? section,
    title: request.title,
    ...(request.destructive && { destructive: true }),
    run: (context) => runBadRequest(request, context),
  }));
}

async function runBadRequest(request: BadRequest, context: Context): Promise<string> {
  const { command, body } = request;
  const bytes = typeof body === "function" ? body(context.device()) : body;
  const session = await context.connect();
  await request.before?.(session, context);
  const answer = await session.request(command, bytes, { fds: request.fds?.(context) ?? [] });
  const note = judge(request, answer);
  if (answer !== undefined && note === "accepted") await request.undo?.(session);
  if (answer === undefined) {
    session.close();
    await context.expectUsable();
    return note;
  }
  try {
    await context.expectConnectionKept(session);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (request.answer.endsWith("or close")) {
      session.close();
      await context.expectUsable();
    } else {
      throw new Failure(`the server to go on after the reply to ${commandName(command)} (${note})`, error.came);
    }
  }
  return note;
}
