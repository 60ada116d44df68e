/** What a peer can write into the log: so many lines of a kind, so many of a level, and the number of the rest. */

import test from "ava";
import { pino } from "pino";
import { LOG_LINES_PER_KIND, LOG_LINES_PER_LEVEL } from "../../shared/limits.js";
import { LimitedLog } from "../../shared/log.js";

interface Line {
  readonly level: number;
  readonly msg: string;
  readonly suppressed?: number;
  readonly kind?: string;
  readonly session?: string;
}

function logged(periodMs?: number) {
  const lines: Line[] = [];
  const waiting: { count: number; resolve: () => void }[] = [];
  const write = (text: string) => {
    lines.push(JSON.parse(text));
    for (const { count, resolve } of waiting) if (lines.length >= count) resolve();
  };
  const log = LimitedLog.of(pino({ level: "debug" }, { write }), periodMs);
  const written = (count: number) => new Promise<void>((resolve) => waiting.push({ count, resolve }));
  return { log, lines, written };
}

const ERROR = 50;
const WARN = 40;

test("lines of one kind are counted above the limit, whatever their details; others are still written", (t) => {
  const { log, lines } = logged();
  for (let address = 0; address < LOG_LINES_PER_KIND + 3; address++) log.warn({ address }, "not mapped");
  log.warn("something else");
  t.is(lines.length, LOG_LINES_PER_KIND + 1);
  log.report();
  t.like(lines.at(-1), { level: WARN, suppressed: 3, kind: "not mapped" });
  log.report();
  t.is(lines.length, LOG_LINES_PER_KIND + 2, "said once");
  log.warn("not mapped");
  t.is(lines.at(-1)?.msg, "not mapped", "a new period");
});

test("a level has so many lines in all, which another level does not share", (t) => {
  const { log, lines } = logged();
  for (let n = 0; n < LOG_LINES_PER_LEVEL + 1000; n++) log.warn(`kind ${n}`);
  t.is(lines.length, LOG_LINES_PER_LEVEL);
  log.warn("kind 0");
  log.error("the disk is full");
  t.like(lines.at(-1), { level: ERROR, msg: "the disk is full" });
  log.report();
  t.deepEqual(
    lines.slice(LOG_LINES_PER_LEVEL + 1).map(({ level, suppressed, kind }) => ({ level, suppressed, kind })),
    [
      { level: WARN, suppressed: 1, kind: "kind 0" },
      { level: WARN, suppressed: 1000, kind: undefined },
    ],
  );
});

test("a child has its own fields and the limits of all", (t) => {
  const { log, lines } = logged();
  const children = [log.child({ session: "a" }), log.child({ session: "b" })];
  for (let n = 0; n < LOG_LINES_PER_KIND; n++) for (const child of children) child.info("connected");
  t.is(lines.length, LOG_LINES_PER_KIND);
  t.deepEqual(new Set(lines.map(({ session }) => session)), new Set(["a", "b"]));
});

test("the end of the period says by itself what was left out", async (t) => {
  const { log, lines, written } = logged(1);
  for (let n = 0; n < LOG_LINES_PER_KIND + 2; n++) log.info("connected");
  const alive = setInterval(() => {}, 1000);
  await written(LOG_LINES_PER_KIND + 1);
  clearInterval(alive);
  t.like(lines.at(-1), { suppressed: 2, kind: "connected" });
});

test("what an operator asks for has no limit", (t) => {
  const { log, lines } = logged();
  for (let n = 0; n < LOG_LINES_PER_LEVEL * 2; n++) log.debug("control message");
  t.is(lines.length, LOG_LINES_PER_LEVEL * 2);
  t.true(log.isLevelEnabled("debug"));
  t.false(log.isLevelEnabled("trace"));
});
