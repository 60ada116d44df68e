/**
 * The status page, in the browser: asks for the program's state every second, and shows it. Files of this folder:
 * index.html and style.css; draw.ts, the pictures; format.ts, numbers for people; status.ts, what /status.json has.
 * Everything is text to it, whoever chose it: no HTML is made of it.
 */
import { drawBars, drawCurve, drawPicture } from "./draw.js";
import { bytes, dateTime, duration, number, time } from "./format.js";
import { fill, type Rates, ratesOf, type Session, type Status } from "./status.js";

const PERIOD_MS = 1000;
const DEADLINE_MS = 5000;
const HISTORY = 60;

const byId = <Kind extends HTMLElement>(id: string) => document.getElementById(id) as Kind;
const command = byId<HTMLSelectElement>("command");
const pause = byId<HTMLButtonElement>("pause");

let before: Status | undefined;
/** What is shown: a status, and the one before, from which its rates are. */
let shown: [now: Status, last: Status | undefined] | undefined;
let chosen = decodeURIComponent(location.hash.slice(1)).replace(/^session$/, "");
let isPaused = false;
/** Commands in a second, of each session, the newest last. */
const history = new Map<string, number[]>();

async function ask(): Promise<Status> {
  const response = await fetch("/status.json", { signal: AbortSignal.timeout(DEADLINE_MS) });
  if (!response.ok) throw new Error(`${response.status}`);
  return response.json();
}

async function look(): Promise<void> {
  if (isPaused) return;
  try {
    const now = await ask();
    // Another process has counts of its own.
    const last = before?.pid === now.pid && before.startedAt === now.startedAt ? before : undefined;
    show(now, last);
    shown = [now, last];
    before = now;
    say("live", "live");
  } catch {
    say("no answer: the program may have ended", "lost");
  }
}

function say(text: string, kind: string): void {
  const line = byId("connection");
  // A screen reader says it whenever it changes, and only then.
  if (line.textContent !== text) line.textContent = text;
  line.className = kind;
}

function show(now: Status, last: Status | undefined): void {
  document.title = `${now.program}: ${now.sessions.length} sessions`;
  byId("program").textContent = now.program;
  const about = [`version ${now.version}`, `process ${now.pid}`, `up ${duration((now.time - now.startedAt) / 1000)}`];
  byId("about").textContent = [...about, bytes(now.residentBytes)].join(", ");
  const rates = now.sessions.map((session) => ratesOf(session, now, last));
  if (last !== undefined) for (const [n, { name }] of now.sessions.entries()) note(name, rates[n].commands);
  for (const name of history.keys()) if (!now.sessions.some((each) => each.name === name)) history.delete(name);
  if (!now.sessions.some(({ name }) => name === chosen)) chosen = now.sessions[0]?.name ?? "";
  showSessions(now.sessions, rates);
  const at = now.sessions.findIndex(({ name }) => name === chosen);
  byId("session").hidden = at < 0;
  if (at >= 0) showSession(now, now.sessions[at], rates[at]);
  showWarnings(now);
}

function note(name: string, value: number): void {
  const values = history.get(name) ?? [];
  values.push(value);
  history.set(name, values.slice(-HISTORY));
}

function showSessions(sessions: readonly Session[], rates: readonly Rates[]): void {
  const rows = sessions.map((session, n) => {
    const { name, client, device, draining, mappedBytes } = session;
    const { commands, interrupts, dmaBytes } = rates[n];
    const state = draining ? `${device}, draining` : device;
    return [
      name,
      client ? "connected" : "none",
      state,
      number(commands),
      number(interrupts),
      bytes(dmaBytes),
      bytes(mappedBytes),
    ];
  });
  const body = document.querySelector<HTMLTableSectionElement>("#sessions tbody")!;
  fill(body, rows, 3);
  for (const [n, { name }] of sessions.entries()) {
    const row = body.rows[n];
    row.className = name === chosen ? "chosen" : "";
    chooser(row.cells[0], name);
  }
}

/** A session's name as a button, which stays the same element, so that the focus stays. */
function chooser(cell: HTMLTableCellElement, name: string): void {
  let button = cell.querySelector("button");
  if (button === null) {
    button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", (event) => choose((event.currentTarget as HTMLElement).dataset.session ?? ""));
    cell.replaceChildren(button);
  }
  button.dataset.session = name;
  if (button.textContent !== name) button.textContent = name;
  button.setAttribute("aria-pressed", `${name === chosen}`);
}

function choose(name: string): void {
  chosen = name;
  window.history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  command.replaceChildren();
  if (shown !== undefined) show(...shown);
}

function showSession(now: Status, session: Session, rates: Rates): void {
  byId("session-title").textContent = session.name;
  byId("picture").replaceChildren(drawPicture(session, rates));
  byId("rates").replaceChildren(drawCurve(history.get(session.name) ?? [], HISTORY));
  showLatency(now, session);
  const { maps, windowMaps, firstMaps } = session;
  const more = maps > firstMaps.length ? `; the first ${firstMaps.length} of them:` : "";
  byId("maps-summary").textContent = `${maps} maps, ${windowMaps} in the window${more}`;
  fill(
    document.querySelector<HTMLTableSectionElement>("#maps tbody")!,
    firstMaps.map(({ address, size, readable, writable, windowOffset }) => {
      const access = [readable ? "read" : "", writable ? "write" : ""].filter(Boolean).join(", ");
      return [address, bytes(size), access, windowOffset < 0 ? "no" : `0x${windowOffset.toString(16)}`];
    }),
    1,
    1,
  );
}

function showLatency({ bounds }: Status, { latencies }: Session): void {
  const names = latencies.map((each) => each.command);
  const offered = [...command.options].map(({ value }) => value);
  if (names.join() !== offered.join()) {
    const was = command.value;
    command.replaceChildren(...names.map((name) => new Option(name, name)));
    const preferred = names.includes(was) ? was : names.find((name) => name === "REGION_READ");
    if (preferred !== undefined) command.value = preferred;
  }
  const latency = latencies.find((each) => each.command === command.value);
  byId("latency").replaceChildren(drawBars(latency, bounds));
  const { count = 0, mean = 0, p50 = 0, p90 = 0, p99 = 0, p999 = 0, max = 0 } = latency?.summary ?? {};
  const columns = { count, mean, p50, p90, p99, "p99.9": p999, max };
  const table = byId<HTMLTableElement>("percentiles");
  table.hidden = latency === undefined;
  const texts = Object.entries(columns).map(([name, value]) => [name, name === "count" ? number(value) : time(value)]);
  for (const [n, row] of [table.rows[0], table.rows[1]].entries()) {
    while (row.cells.length < texts.length) row.append(document.createElement(n === 0 ? "th" : "td"));
    for (const [at, text] of texts.entries()) {
      row.cells[at].className = "number";
      row.cells[at].textContent = text[n];
    }
  }
}

function showLatencyOf(status: Status): void {
  const session = status.sessions.find(({ name }) => name === chosen);
  if (session !== undefined) showLatency(status, session);
}

function showWarnings({ warnings }: Status): void {
  const list = byId("warnings");
  const newest = [...warnings].reverse();
  const key = JSON.stringify(newest);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const items = newest.map(({ level, time: at, message, details }) => {
    const item = document.createElement("li");
    const when = document.createElement("time");
    when.dateTime = new Date(at).toISOString();
    when.textContent = dateTime(at);
    const kind = document.createElement("strong");
    kind.className = level;
    kind.textContent = ` ${level} `;
    const more = document.createElement("code");
    more.textContent = ` ${JSON.stringify(details)}`;
    item.append(when, kind, message, more);
    return item;
  });
  const none = document.createElement("li");
  none.textContent = "none";
  list.replaceChildren(...(items.length > 0 ? items : [none]));
}

pause.addEventListener("click", () => {
  isPaused = !isPaused;
  pause.setAttribute("aria-pressed", `${isPaused}`);
  if (isPaused) say("paused", "");
  else void look();
});
command.addEventListener("change", () => {
  if (before !== undefined) showLatencyOf(before);
});

async function keepLooking(): Promise<never> {
  for (;;) {
    await look();
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}
void keepLooking();
