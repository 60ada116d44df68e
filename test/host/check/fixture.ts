/** A server with a device behind it, a meddler in front of it if need be, and the checker run on it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import { type Result, type RunOptions, runChecks } from "../../../host/check/run.js";
import { ALL_CHECKS } from "../../../host/check/topics/index.js";
import { Share } from "../../../shared/turn.js";
import { Server } from "../../../shared/vfio-user/server.js";
import { FullDevice } from "./full-device.js";
import { Meddler, type Meddling } from "./meddler.js";

export interface Broken {
  readonly device?: FullDevice;
  readonly meddling?: Meddling;
}

/** Runs `body` with the path of a socket where a server listens. */
export async function withServer<T>(broken: Broken, body: (path: string) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(join(tmpdir(), "vfio-user-check-"));
  const path = join(directory, "server");
  const device = broken.device ?? new FullDevice();
  const share = new Share();
  const server = new Server({ backend: device, socket: path, share });
  server.open();
  const front = join(directory, "meddler");
  const meddler = broken.meddling && new Meddler(front, path, broken.meddling, share);
  try {
    return await body(meddler ? front : path);
  } finally {
    meddler?.close();
    await server.close();
    device.end();
    rmSync(directory, { recursive: true, force: true });
  }
}

export function check(
  socketPath: string,
  { only, ...options }: Partial<RunOptions> & { only?: RegExp } = {},
): Promise<Result[]> {
  const checks = ALL_CHECKS.filter(({ id }) => only?.test(id) ?? true);
  return runChecks(checks, { socketPath, timeoutMs: 5000, destructive: true, ...options });
}

/** The ids of those with that outcome. */
export function idsOf(results: readonly Result[], outcome: Result["outcome"]): string[] {
  return results.filter((result) => result.outcome === outcome).map(({ id }) => id);
}

/** A pattern for the checks with these ids. */
export function only(...ids: readonly string[]): RegExp {
  return new RegExp(`^(?:${ids.join("|")})$`);
}

/** These fail and no others; if not, what was expected and what came of each is said. */
export function expectFailures(t: ExecutionContext, results: readonly Result[], ids: readonly string[]): void {
  const failed = results.filter(({ outcome }) => outcome === "fail");
  const said = failed.map(({ id, expected, came }) => `${id}: expected ${expected}; came ${came}`).join("\n");
  t.deepEqual(idsOf(results, "fail").sort(), [...ids].sort(), said);
}
