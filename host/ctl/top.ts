/** `vfio-user-ctl top`: what all sessions do, as rates, from one look to the next. */
import type { ControlClient } from "../../shared/control/control-client.js";
import { printable } from "./format.js";
import { Screen } from "./screen.js";

interface Look {
  readonly at: number;
  readonly program: string;
  readonly sessions: readonly SessionLook[];
  readonly warning: string;
}

interface SessionLook {
  readonly name: string;
  readonly client: boolean;
  readonly device: string;
  readonly draining: boolean;
  readonly mappedBytes: number;
  readonly counts: Readonly<Record<string, number>>;
  /** Microseconds, of register reads that the device was asked for. */
  readonly p50: number | undefined;
  readonly p99: number | undefined;
}

/** A column: its title, its width, and its text; the first one has what is left. */
type Column = readonly [title: string, width: number, text: (now: SessionLook, rate: Rate) => string];
/** How much of a count came in a second, of several together. */
type Rate = (...names: readonly string[]) => number;

const COLUMNS: readonly Column[] = [
  ["DEVICE", 10, ({ device, draining }) => (draining ? `${device.slice(0, 8)}/d` : device)],
  ["VM", 3, ({ client }) => (client ? "yes" : "no")],
  ["MAPPED", 7, ({ mappedBytes }) => short(mappedBytes, 1024)],
  ["READ/s", 7, (_, rate) => short(rate("reads"))],
  ["WRITE/s", 7, (_, rate) => short(rate("writes"))],
  ["IRQ/s", 6, (_, rate) => short(rate("doorbells", "doorbellsRung"))],
  [
    "COPY/s",
    7,
    (_, rate) => short(rate("copiedBytes", "movedByCopy", "readThroughWindow", "writtenThroughWindow"), 1024),
  ],
  ["P50us", 6, ({ p50 }) => (p50 === undefined ? "-" : micros(p50))],
  ["P99us", 6, ({ p99 }) => (p99 === undefined ? "-" : micros(p99))],
];
const LEAST_NAME = 8;
const UNITS = ["", "k", "M", "G", "T", "P"];

interface TopOptions {
  readonly intervalMs: number;
  /** Undefined: until somebody ends it. */
  readonly count: number | undefined;
}

/** Resolves when it ends. Rejects with UserError when the program is gone. */
export async function top(client: ControlClient, { intervalMs, count }: TopOptions): Promise<void> {
  const screen = process.stdout.isTTY ? new Screen(process.stdin, process.stdout) : undefined;
  try {
    let before: Look | undefined;
    for (let n = 0; n !== count && screen?.isOver !== true; n++) {
      if (n > 0) await (screen?.pause(intervalMs) ?? sleep(intervalMs));
      if (screen?.isOver) return;
      const now = await look(client);
      if (screen === undefined) print(now, before, n === 0);
      else screen.draw(() => page(now, before, screen.columns, screen.rows));
      before = now;
    }
  } finally {
    screen?.close();
  }
}

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

async function look(client: ControlClient): Promise<Look> {
  // biome-ignore lint/suspicious/noExplicitAny: what the schema says
  const ask = async (method: string): Promise<any> => client.request(method);
  const { program, version } = await ask("version");
  const sessions = await ask("sessions");
  const counts = await ask("counts");
  const latencies = await ask("latency");
  const warnings = await ask("warnings");
  const latest = warnings.at(-1);
  return {
    at: performance.now(),
    program: `${program} ${version}`,
    // biome-ignore lint/suspicious/noExplicitAny: as above
    sessions: sessions.map((session: any, n: number) => {
      const own = latencies.filter((each: { session: string }) => each.session === session.name);
      const { p50, p99 } = own.find((each: { command: string }) => each.command === "REGION_READ") ?? {};
      return { ...session, counts: counts[n]?.session === session.name ? counts[n].counts : {}, p50, p99 };
    }),
    warning: latest === undefined ? "" : `${new Date(latest.time).toTimeString().slice(0, 8)} ${latest.message}`,
  };
}

/** What the terminal shows: as many lines as it has. */
export function page(now: Look, before: Look | undefined, columns: number, rows: number): string[] {
  const clients = now.sessions.filter(({ client }) => client).length;
  const head = `${now.program}: ${now.sessions.length} sessions, ${clients} with a driver VM`;
  const time = new Date().toTimeString().slice(0, 8);
  const fill = Math.max(1, columns - head.length - time.length);
  const last = now.warning === "" ? [] : [`last warning: ${now.warning}`];
  const room = Math.max(0, rows - 3 - last.length);
  const lines = now.sessions.slice(0, room).map((each) => line(each, rateOf(each, now, before), columns));
  const left = now.sessions.length - lines.length;
  const more = left > 0 ? [`... and ${left} more`] : [];
  return [head + " ".repeat(fill) + time, title(columns), ...lines, ...more, ...last].map((text) => cut(text, columns));
}

/** Without a terminal: a line for each session, and a title in front of all. */
function print(now: Look, before: Look | undefined, isFirst: boolean): void {
  if (isFirst) console.log(`TIME      ${title(80)}`);
  const time = new Date().toTimeString().slice(0, 8);
  for (const each of now.sessions) console.log(`${time}  ${line(each, rateOf(each, now, before), 80)}`);
}

function rateOf(session: SessionLook, now: Look, before: Look | undefined): Rate {
  const old = before?.sessions.find(({ name }) => name === session.name);
  const seconds = (now.at - (before?.at ?? now.at)) / 1000;
  return (...names) => {
    if (old === undefined || seconds <= 0) return 0;
    const grown = names.map((name) => Math.max(0, (session.counts[name] ?? 0) - (old.counts[name] ?? 0)));
    return grown.reduce((sum, each) => sum + each, 0) / seconds;
  };
}

function nameWidth(columns: number): number {
  return Math.max(LEAST_NAME, columns - COLUMNS.reduce((sum, [, width]) => sum + width + 1, 0));
}

function title(columns: number): string {
  return ["SESSION".padEnd(nameWidth(columns)), ...COLUMNS.map(([text, width]) => text.padStart(width))].join(" ");
}

function line(session: SessionLook, rate: Rate, columns: number): string {
  const name = cut(printable(session.name), nameWidth(columns)).padEnd(nameWidth(columns));
  return [name, ...COLUMNS.map(([, width, text]) => cut(printable(text(session, rate)), width).padStart(width))].join(
    " ",
  );
}

const cut = (text: string, width: number) => (text.length <= width ? text : `${text.slice(0, width - 1)}~`);

/** Three digits and a unit. */
export function short(value: number, base = 1000): string {
  let scaled = value;
  let unit = 0;
  for (; scaled >= base && unit < UNITS.length - 1; unit++) scaled /= base;
  const digits = unit === 0 ? Math.round(scaled).toString() : scaled.toPrecision(scaled >= 1000 ? 4 : 3);
  return digits + UNITS[unit];
}

const micros = (value: number) => (value < 100 ? value.toFixed(1) : short(value));
