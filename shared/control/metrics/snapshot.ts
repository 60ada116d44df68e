/**
 * What metrics and the status page are made of: plain data, so that the thread that serves them needs nothing else of
 * the program. In this folder: metrics.ts, the program's side; worker.ts, that thread; host-check.ts, whom it answers;
 * prometheus.ts, the text for Prometheus. ../page/ is the status page.
 */
import { packageVersion } from "../../command-line/parse.js";
import type { LatencySummary } from "../../histogram.js";
import type { RecentLine } from "../../recent-lines.js";
import { commandName, commandsOf, type ShownProgram } from "../generic-methods.js";
import type { MapOverview, Measuring, SessionOverview } from "../sessions.js";

/** Ends of buckets, in nanoseconds: a microsecond to five seconds. */
export const BOUNDS: readonly number[] = [3, 4, 5, 6, 7, 8, 9].flatMap((exponent) =>
  [1, 2, 5].map((digit) => digit * 10 ** exponent),
);

export interface CommandLatency {
  readonly command: string;
  readonly summary: LatencySummary;
  /** Of all values, in nanoseconds. */
  readonly sum: number;
  /** How many were at most each of BOUNDS. */
  readonly cumulative: readonly number[];
}

export interface SessionSnapshot extends SessionOverview {
  readonly name: string;
  readonly counts: Readonly<Record<string, number>>;
  readonly commands: Readonly<Record<string, number>>;
  readonly latencies: readonly CommandLatency[];
  readonly firstMaps: readonly MapOverview[];
}

export interface Snapshot {
  readonly program: string;
  readonly version: string;
  readonly pid: number;
  /** Milliseconds since 1970, and of when it was made. */
  readonly startedAt: number;
  readonly time: number;
  readonly cpuSeconds: number;
  readonly residentBytes: number;
  readonly bounds: readonly number[];
  readonly sessions: readonly SessionSnapshot[];
  readonly warnings: readonly RecentLine[];
}

export function takeSnapshot(program: ShownProgram, measuring: Measuring): Snapshot {
  const { user, system } = process.cpuUsage();
  const all = measuring.look();
  const sessions = program.sessions().map((session): SessionSnapshot => {
    const latencies = all.get(session);
    return {
      name: session.name,
      ...session.overview(),
      counts: session.counts(),
      commands: commandsOf(session),
      firstMaps: session.maps(),
      latencies: (latencies?.commands ?? []).map((command) => ({
        command: commandName(command),
        summary: latencies!.summary(command),
        sum: latencies!.sum(command),
        cumulative: latencies!.cumulative(command, BOUNDS),
      })),
    };
  });
  const time = Date.now();
  return {
    program: program.name,
    version: packageVersion(),
    pid: process.pid,
    startedAt: Math.round(time - process.uptime() * 1000),
    time,
    cpuSeconds: (user + system) / 1e6,
    residentBytes: process.memoryUsage.rss(),
    bounds: BOUNDS,
    sessions,
    warnings: program.recent.lines.slice(-20),
  };
}
