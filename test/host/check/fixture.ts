/** A server with a device behind it, a meddler in front of it if need be, and the checker run on it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ALL_CHECKS } from "../../../host/check/all.js";
import { type Result, type RunOptions, runChecks } from "../../../host/check/run.js";
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

export function check(socketPath: string, options: Partial<RunOptions> = {}): Promise<Result[]> {
  return runChecks(ALL_CHECKS, { socketPath, timeoutMs: 5000, destructive: true, only: undefined, ...options });
}

/** The ids of those with that outcome. */
export function idsOf(results: readonly Result[], outcome: Result["outcome"]): string[] {
  return results.filter((result) => result.outcome === outcome).map(({ id }) => id);
}

/** A pattern for the checks with these ids. */
export function only(...ids: readonly string[]): RegExp {
  return new RegExp(`^(?:${ids.join("|")})$`);
}
