/** Metrics and the status page's server: whom it answers, with what, and what it costs the program. */
import { request } from "node:http";
import { connect, createServer } from "node:net";
import test, { type ExecutionContext } from "ava";
import { parseByTable } from "../../../shared/command-line/parse.js";
import type { ProgramTable } from "../../../shared/command-line/table.js";
import { hostName } from "../../../shared/control/metrics/host-check.js";
import { Metrics } from "../../../shared/control/metrics/metrics.js";
import { CONTROL_ROWS, type MetricsOptions, parseControlOptions } from "../../../shared/control/options.js";
import { Measuring } from "../../../shared/control/sessions.js";
import { UserError } from "../../../shared/errors.js";
import { Latencies } from "../../../shared/histogram.js";
import { ProgramLog } from "../../../shared/log.js";
import { RecentLines } from "../../../shared/recent-lines.js";
import { fakeSession } from "./fake-session.js";

const LOCAL: MetricsOptions = { address: "127.0.0.1", port: 0, hosts: ["disks.example"] };

async function setUp(t: ExecutionContext, options = LOCAL) {
  const lines: string[] = [];
  const recent = new RecentLines();
  const log = ProgramLog.create("test", "info", { write: (line) => void lines.push(line) });
  const fake = fakeSession('a "session"\\with\nodd letters');
  let snapshots = 0;
  const program = {
    ...{ name: "test", log, recent },
    sessions: () => {
      snapshots++;
      return [fake.session];
    },
  };
  const measuring = new Measuring(
    () => [fake.session],
    () => new Latencies(),
  );
  const metrics = await Metrics.open(program, measuring, options);
  t.teardown(() => {
    metrics.close();
    measuring.end();
  });
  const port = Number(/:(\d+)\//.exec(lines.join(""))?.[1]);
  const ask = (path: string, { method = "GET", host = `127.0.0.1:${port}` } = {}) =>
    new Promise<{ status: number | undefined; text: string; type: string | undefined }>((resolve, reject) => {
      const sent = request({ port, path, method, headers: { host }, host: "127.0.0.1" }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part) => {
          text += part;
        });
        response.on("end", () =>
          resolve({ status: response.statusCode, text, type: response.headers["content-type"] }),
        );
      });
      sent.on("error", reject);
      sent.end();
    });
  return { ask, port, fake, snapshots: () => snapshots };
}

test("metrics have the sessions' counts, gauges and latencies, whatever the sessions are called", async (t) => {
  const { ask, fake } = await setUp(t);
  await ask("/metrics");
  fake.record(30);
  let text = "";
  while (!text.includes("_count{")) ({ text } = await ask("/metrics"));
  const labels = 'session="a \\"session\\"\\\\with\\nodd letters"';
  t.true(text.includes(`vfio_user_register_reads_total{${labels}} 3\n`), text);
  t.true(text.includes(`vfio_user_commands_total{${labels},command="REGION_READ"} 3\n`));
  t.true(text.includes(`vfio_user_command_duration_seconds_bucket{${labels},command="REGION_READ",le="0.00002"} 0\n`));
  t.true(text.includes(`vfio_user_command_duration_seconds_bucket{${labels},command="REGION_READ",le="0.00005"} 1\n`));
  t.true(text.includes(`vfio_user_command_duration_seconds_count{${labels},command="REGION_READ"} 1\n`));
  t.true(text.includes(`vfio_user_client_connected{${labels}} 1\n`));
});

test("every page is there, and nothing else is; nothing can be changed", async (t) => {
  const { ask } = await setUp(t);
  for (const [path, type] of [
    ["/", "text/html"],
    ["/?x=1", "text/html"],
    ["/style.css", "text/css"],
    ["/icon.svg", "image/svg+xml"],
    ...["/page.js", "/draw.js", "/format.js", "/status.js"].map((name) => [name, "text/javascript"]),
    ["/status.json", "application/json"],
  ]) {
    const answer = await ask(path);
    t.is(answer.status, 200, path);
    t.true(answer.type?.startsWith(type), `${path}: ${answer.type}`);
    t.is((await ask(path, { method: "HEAD" })).text, "");
  }
  for (const path of ["/worker.js", "/../metrics/worker.js", "/page.ts", "/constructor", "/%2e%2e/"]) {
    t.is((await ask(path)).status, 404, path);
  }
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS"]) t.is((await ask("/", { method })).status, 405);
});

test("only who asks for this address, by a name of its own, is answered", async (t) => {
  const { ask, port } = await setUp(t);
  for (const host of ["localhost", `LOCALHOST:${port}`, "[::1]:1", "disks.example", "disks.example.:80"]) {
    t.is((await ask("/status.json", { host })).status, 200, host);
  }
  for (const host of ["evil.example", "127.0.0.1.evil.example", "localhost@evil", "a b", "127.0.0.2"]) {
    t.not((await ask("/status.json", { host })).status, 200, host);
  }
  t.is(hostName(undefined), undefined);
});

test("however often it is asked, the program makes a snapshot every half a second at most", async (t) => {
  const { ask, snapshots } = await setUp(t);
  const start = performance.now();
  for (let n = 0; n < 50; n++) await Promise.all([ask("/metrics"), ask("/status.json"), ask("/")]);
  const most = 2 + (performance.now() - start) / 500;
  t.true(snapshots() <= most, `${snapshots()} of ${most}`);
});

test("what is no HTTP, or too many connections, is cut off", async (t) => {
  const { ask, port } = await setUp(t);
  const sockets = Array.from({ length: 100 }, () => connect(port, "127.0.0.1").on("error", () => {}));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
  });
  const closed = sockets.slice(32).map((socket) => new Promise((resolve) => socket.resume().on("close", resolve)));
  await Promise.all(closed);
  const ended = new Promise((resolve) => sockets[0].resume().on("close", resolve));
  sockets[0].write(`${"x".repeat(20_000)}\r\n\r\n`);
  await ended;
  for (const socket of sockets) socket.destroy();
  let answer = await ask("/").catch(() => undefined);
  while (answer?.status !== 200) answer = await ask("/").catch(() => undefined);
  t.is(answer.status, 200);
});

test("a port that another one has is a sentence", async (t) => {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  t.teardown(() => other.close());
  const address = other.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  const error = await t.throwsAsync(setUp(t, { ...LOCAL, port }), { instanceOf: UserError });
  t.is(error.message, `--metrics 127.0.0.1:${port}: another process has this port`);
});

test("addresses: loopback unless it is said otherwise", (t) => {
  const table = { name: "x", groups: [{ title: "", options: CONTROL_ROWS }] } as unknown as ProgramTable;
  const parse = (...args: string[]) => parseControlOptions(parseByTable(table, args)).metrics;
  t.is(parse(), undefined);
  t.deepEqual(parse("--metrics=9400"), { address: "127.0.0.1", port: 9400, hosts: [] });
  t.like(parse("--metrics=localhost:9400"), { address: "127.0.0.1" });
  t.like(parse("--metrics=[::1]:9400"), { address: "::1" });
  t.deepEqual(parse("--metrics=0.0.0.0:9400", "--metrics-host=disks.example", "--metrics-host=b"), {
    ...{ address: "0.0.0.0", port: 9400, hosts: ["disks.example", "b"] },
  });
  for (const [args, message] of [
    [["--metrics=0.0.0.0:9400"], /can be reached from other machines/],
    [["--metrics=[::]:9400"], /can be reached from other machines/],
    [["--metrics=99999"], /must be a port/],
    [["--metrics=example:9400"], /must be a port/],
    [["--metrics=127.0.0.1"], /must be a port/],
    [["--metrics-host=x"], /--metrics, which is missing/],
    [["--metrics=9400", "--metrics-host=a/b"], /no host's name/],
    [["--control-mode=660"], /about --control/],
    [["--control=a", "--control-admin=a"], /given twice/],
  ] as [string[], RegExp][]) {
    t.throws(() => parse(...args), { instanceOf: UserError, message }, args.join(" "));
  }
});
