/** What /status.json has (../metrics/snapshot.ts makes it), and what comes of two of them: rates. */

export interface Latency {
  readonly command: string;
  /** Nanoseconds. */
  readonly summary: Readonly<Record<"count" | "mean" | "p50" | "p90" | "p99" | "p999" | "max", number>>;
  readonly cumulative: readonly number[];
}

export interface Session {
  readonly name: string;
  readonly client: boolean;
  readonly device: string;
  readonly draining: boolean;
  readonly maps: number;
  readonly windowMaps: number;
  readonly mappedBytes: number;
  readonly counts: Readonly<Record<string, number>>;
  readonly commands: Readonly<Record<string, number>>;
  readonly latencies: readonly Latency[];
  readonly firstMaps: readonly {
    readonly address: string;
    readonly size: number;
    readonly readable: boolean;
    readonly writable: boolean;
    readonly windowOffset: number;
  }[];
}

export interface Status {
  readonly program: string;
  readonly version: string;
  readonly pid: number;
  readonly startedAt: number;
  readonly time: number;
  readonly residentBytes: number;
  readonly bounds: readonly number[];
  readonly sessions: readonly Session[];
  readonly warnings: readonly {
    readonly level: string;
    readonly time: number;
    readonly message: string;
    readonly details: unknown;
  }[];
}

/** In a second. */
export interface Rates {
  readonly commands: number;
  readonly reads: number;
  readonly writes: number;
  readonly interrupts: number;
  readonly messages: number;
  readonly dmaBytes: number;
}

export function ratesOf(session: Session, now: Status, before: Status | undefined): Rates {
  const old = before?.sessions.find(({ name }) => name === session.name);
  const seconds = (now.time - (before?.time ?? now.time)) / 1000;
  const rate = (
    from: Readonly<Record<string, number>> | undefined,
    to: Readonly<Record<string, number>>,
    names: string[],
  ) => {
    if (from === undefined || seconds <= 0) return 0;
    const grown = names.map((name) => Math.max(0, (to[name] ?? 0) - (from[name] ?? 0)));
    return grown.reduce((sum, each) => sum + each, 0) / seconds;
  };
  const count = (...names: string[]) => rate(old?.counts, session.counts, names);
  return {
    commands: rate(old?.commands, session.commands, Object.keys(session.commands)),
    reads: count("reads"),
    writes: count("writes"),
    interrupts: count("doorbells", "doorbellsRung"),
    messages: count("messagesSent", "messagesReceived"),
    dmaBytes: count("copiedBytes", "readThroughWindow", "writtenThroughWindow", "movedByCopy", "movedByMessage"),
  };
}

/** Makes a table's body say these texts; `from` to `to` are columns of numbers. Elements that are there stay. */
export function fill(
  body: HTMLTableSectionElement,
  rows: readonly string[][],
  from: number,
  to = Number.POSITIVE_INFINITY,
): void {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  for (const [n, texts] of rows.entries()) {
    const row = body.rows[n] ?? body.insertRow();
    for (const [at, text] of texts.entries()) {
      const cell = row.cells[at] ?? row.insertCell();
      cell.className = at >= from && at <= to ? "number" : "";
      if (cell.textContent !== text) cell.textContent = text;
    }
  }
}
