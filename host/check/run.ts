/** Runs checks one after the other, each with connections of its own, and never lets one stop those behind it. */
import { statSync } from "node:fs";
import { UserError } from "../../shared/errors.js";
import type { Check } from "./check.js";
import { Conduct } from "./conduct.js";
import { Context, type Target } from "./context.js";
import { Device } from "./device.js";
import { Failure, ServerGone, Skip } from "./expect.js";

export type Outcome = "pass" | "fail" | "skip";

export interface Result {
  readonly id: string;
  readonly section: string;
  readonly title: string;
  readonly outcome: Outcome;
  /** Of a pass: what the server did, where that is worth a note. */
  readonly note?: string;
  /** Of a failure. */
  readonly expected?: string;
  readonly came?: string;
  /** Of what was skipped. */
  readonly reason?: string;
  readonly milliseconds: number;
}

export interface RunOptions {
  readonly socketPath: string;
  readonly timeoutMs: number;
  readonly destructive: boolean;
  /** Called with each result as it comes. */
  readonly onResult?: (result: Result) => void;
}

/**
 * What the device says of itself, asked before the first check. A server that gives no proper answer is not reason to
 * stop: the checks of that will fail, and those that need to know will be skipped.
 */
async function describeDevice(target: Omit<Target, "device">): Promise<Device | Skip> {
  const context = new Context({ ...target, device: new Skip("not asked yet") });
  try {
    return await Device.describe(await context.connect());
  } catch (error) {
    if (error instanceof ServerGone) {
      throw new UserError(`cannot connect to ${target.path}: ${whyNot(target.path, error)}`);
    }
    if (error instanceof Failure && !context.wasServed) {
      const advice = "the server has another client, most likely, and serves one at a time: end that one first";
      throw new UserError(`${target.path}: ${error.came} in place of an answer to VERSION; ${advice}`);
    }
    if (error instanceof Failure) return new Skip(`the device does not describe itself: ${error.message}`);
    throw error;
  } finally {
    context.close();
  }
}

/** What is at a path where no server was, and what to do. */
function whyNot(path: string, { came }: ServerGone): string {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status === undefined) return "there is no such file; is the server running?";
  if (!status.isSocket()) return "it is no socket; is that the server's path?";
  if (!came.startsWith("EACCES")) return `${came}; is the server running?`;
  return "this user may not connect to it: its permissions are the server's user's alone";
}

/** Resolves with one result for each check. @throws UserError when there is no server from the beginning */
export async function runChecks(checks: readonly Check[], options: RunOptions): Promise<Result[]> {
  const reached = { path: options.socketPath, timeoutMs: options.timeoutMs, conduct: new Conduct() };
  const target: Target = { ...reached, device: await describeDevice(reached) };
  const results: Result[] = [];
  let goneSince: string | undefined;
  for (const check of checks) {
    const start = performance.now();
    const { id, section, title, destructive } = check;
    let reason: string | undefined;
    if (goneSince !== undefined) reason = `the server accepts no connections since ${goneSince}`;
    else if (destructive && !options.destructive) reason = "it writes to the device: give --destructive";
    const { isGone, ...verdict } = reason === undefined ? await runOne(check, target) : skipped(reason);
    if (isGone) goneSince = id;
    const result = { id, section, title, ...verdict, milliseconds: Math.round(performance.now() - start) };
    results.push(result);
    options.onResult?.(result);
  }
  return results;
}

interface Verdict extends Pick<Result, "outcome" | "note" | "expected" | "came" | "reason"> {
  readonly isGone?: boolean;
}

const skipped = (reason: string): Verdict => ({ outcome: "skip", reason });

async function runOne(check: Check, target: Target): Promise<Verdict> {
  const context = new Context(target);
  try {
    const note = await check.run(context);
    return { outcome: "pass", ...(note !== undefined && { note }) };
  } catch (error) {
    if (error instanceof Skip) return skipped(error.message);
    if (!(error instanceof Failure)) throw error;
    const { expected, came } = error;
    return { outcome: "fail", expected, came, isGone: error instanceof ServerGone };
  } finally {
    context.close();
  }
}
