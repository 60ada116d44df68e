/** What a process has of the system, before and after many rounds of something that is to leave nothing behind. */
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { ExecutionContext } from "ava";

/** Growth that is none: what an allocator keeps of what was freed, compiled code. */
const MAPS_SLACK = 8;
const SHARED_SLACK_KIB = 1024;
const OWN_SLACK_KIB = 48 * 1024;
/** Rounds after which caches and compiled code are there. */
const WARM_UP = 200;
const DEADLINE_MS = 10_000;

interface Resources {
  readonly fds: number;
  /** Shared ones: what V8 has for itself is not. */
  readonly maps: number;
  /** RSS in KiB: of memfds and the like, and of its own. */
  readonly shared: number;
  readonly own: number;
}

function resources(pid: number): Resources {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return {
    fds: readdirSync(`/proc/${pid}/fd`).length,
    maps: readFileSync(`/proc/${pid}/maps`, "utf8").match(/^\S+ ...s /gm)?.length ?? 0,
    shared: kib("RssShmem"),
    own: kib("RssAnon"),
  };
}

/** Runs `round` so many times, and holds what the process has then against what it had before. */
export async function staysAsItWas(t: ExecutionContext, pid: number, rounds: number, round: () => Promise<void>) {
  for (let n = 0; n < WARM_UP; n++) await round();
  await delay(100);
  const before = resources(pid);
  for (let n = 0; n < rounds; n++) await round();
  const end = Date.now() + DEADLINE_MS;
  let after = resources(pid);
  // Descriptors are closed a turn or two after their peer has gone.
  while (after.fds > before.fds && Date.now() < end) {
    await delay(10);
    after = resources(pid);
  }
  const both = JSON.stringify([before, after]);
  t.log(both);
  t.true(after.fds <= before.fds, both);
  t.true(after.maps <= before.maps + MAPS_SLACK, both);
  t.true(after.shared <= before.shared + SHARED_SLACK_KIB, both);
  t.true(after.own <= before.own + OWN_SLACK_KIB, both);
}
