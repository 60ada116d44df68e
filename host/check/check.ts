/**
 * What a check is, and how a topic declares its own: what it does by itself, on a connection, with what is known of the
 * device, or, the most frequent kind, one well-framed request with something odd in it, which must be answered while
 * the connection goes on. A check passes when its function returns, perhaps with a note of what the server did where
 * the specification leaves it a choice; it fails or is skipped by an exception.
 */
import type { Context } from "./context.js";
import type { Device } from "./device.js";
import { describe, expectRefusal, expectReply } from "./expect.js";
import type { CheckerSession } from "./session.js";

/** Resolves with a note about what came, if it is worth one. @throws Failure, Skip, ServerGone */
type Note = Promise<string | undefined>;

export interface Check {
  /** Unique, lower-case words with dashes; begins with the topic. */
  readonly id: string;
  /** Where the demand comes from: "vfio-user.rst, VFIO_USER_DMA_MAP". */
  readonly section: string;
  /** What must hold, in one sentence without a full stop. */
  readonly title: string;
  /** It writes to the device, resets it or changes its state. */
  readonly destructive?: boolean;
  readonly run: (context: Context) => Note;
}

interface Declared extends Omit<Check, "section" | "run"> {
  /** In place of the topic's. */
  readonly section?: string;
}

/** A check that makes its own connections. */
export interface Performed extends Declared {
  readonly run: (context: Context) => Note;
}

/** A check on a connection that has agreed on a version. */
export interface Connected extends Declared {
  readonly connected: (session: CheckerSession, context: Context) => Note;
}

/** The same, skipped when the device does not describe itself. */
interface Described extends Declared {
  readonly described: (session: CheckerSession, device: Device, context: Context) => Note;
}

/** What the specification says of the reply: an error, or that it leaves open whether it is one. */
type Allowed = "error" | "any";

/** A request with something wrong or odd in it. What it leaves out is the topic's. */
interface OddRequest extends Declared {
  readonly command?: number;
  /** The function is there for what depends on the device; it may throw Skip. */
  readonly body: Uint8Array | ((device: Device) => Uint8Array);
  readonly fds?: (context: Context) => number[];
  readonly answer?: Allowed;
  readonly errno?: number;
  /** Done before, on the same connection. */
  readonly before?: (session: CheckerSession, context: Context) => Promise<void>;
  /** Done after a success that was allowed: takes back what was done. */
  readonly undo?: (session: CheckerSession) => Promise<unknown>;
}

/** What a topic's declarations have in common. */
interface Topic {
  readonly section: string;
  /** In front of each id. */
  readonly prefix?: string;
  /** Behind each title. */
  readonly suffix?: string;
  readonly command?: number;
  readonly answer?: Allowed;
}

/** A section of the vfio-user specification (QEMU's docs/interop/vfio-user.rst). */
export function vfioUser(section: string): string {
  return `vfio-user.rst, ${section}`;
}

type Declaration = Performed | Connected | Described | OddRequest;

export function topic(common: Topic, declarations: readonly Declaration[]): readonly Check[] {
  const { prefix = "", suffix = "" } = common;
  return declarations.map((declared) => ({
    id: prefix + declared.id,
    section: declared.section ?? common.section,
    title: declared.title + suffix,
    destructive: declared.destructive ?? false,
    run: async (context) => {
      if ("run" in declared) return declared.run(context);
      if ("connected" in declared) return declared.connected(await context.connect(), context);
      if ("body" in declared) return sendOddRequest({ ...common, ...declared }, context);
      const device = context.device();
      return declared.described(await context.connect(), device, context);
    },
  }));
}

async function sendOddRequest(request: Omit<OddRequest, "section">, context: Context): Promise<string> {
  const { command, body, answer: allowed } = request;
  if (command === undefined || allowed === undefined) throw new Error(`${request.id} has no command, or no answer`);
  const bytes = typeof body === "function" ? body(context.device()) : body;
  const session = await context.connect();
  await request.before?.(session, context);
  const answer = await session.request(command, bytes, { fds: request.fds?.(context) ?? [] });
  const note =
    allowed === "error" ? expectRefusal(answer, command, request.errno) : describe(expectReply(answer, command));
  if (note === "accepted") await request.undo?.(session);
  await context.expectConnectionKept(session);
  return note;
}
