/**
 * A program that somebody supervises: says in a line of JSON with what it was started, and then does what lines of its
 * standard input say.
 */
import { fstatSync } from "node:fs";
import { createInterface } from "node:readline";
import { createMemory, send } from "../../native/index.js";
import { connectDatagrams } from "../../native/supervision.js";
import { takeKeptFds } from "../../shared/notify/kept-fds.js";
import { Notifier } from "../../shared/notify/notifier.js";

export type Order =
  | { do: "ready" | "stopping" | "crash" }
  | { do: "store"; name: string; count: number }
  | { do: "remove"; name: string }
  | { do: "status"; text: string }
  /** Any text, with one descriptor. */
  | { do: "raw"; text: string }
  | { do: "exit"; code: number };

export interface Life {
  readonly pid: number;
  readonly parent: number;
  readonly socket: string | undefined;
  /** The environment as it was. */
  readonly listen: readonly (string | null)[];
  /** Name and inode of each descriptor. */
  readonly kept: readonly (readonly [string, number])[];
  readonly args: readonly string[];
}

const say = (line: object) => process.stdout.write(`${JSON.stringify(line)}\n`);
const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, NOTIFY_SOCKET } = process.env;
const life: Life = {
  pid: process.pid,
  parent: process.ppid,
  socket: NOTIFY_SOCKET,
  listen: [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES].map((value) => value ?? null),
  kept: takeKeptFds().map(({ name, fd }) => [name, fstatSync(fd).ino] as const),
  args: process.argv.slice(2),
};
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"] as const) {
  process.on(signal, () => say({ signal }));
}
say(life);

const notifier = Notifier.ofProcess();
const lines = createInterface({ input: process.stdin });
for await (const line of lines) {
  const order = JSON.parse(line) as Order;
  if (order.do === "exit") process.exit(order.code);
  if (order.do === "crash") process.kill(process.pid, "SIGKILL");
  say(await carryOut(order));
}

async function carryOut(order: Order): Promise<object> {
  if (!notifier) return { error: "nobody supervises" };
  switch (order.do) {
    case "ready":
      return { sent: await notifier.ready() };
    case "stopping":
      return { sent: await notifier.stopping() };
    case "status":
      return { sent: await notifier.status(order.text) };
    case "store": {
      const fds = Array.from({ length: order.count }, () => createMemory("kept", 4096, false));
      return { sent: await notifier.store(order.name, fds), inodes: fds.map((fd) => fstatSync(fd).ino) };
    }
    case "remove":
      return { sent: await notifier.remove(order.name) };
    case "raw": {
      const socket = connectDatagrams(NOTIFY_SOCKET ?? "");
      const bytes = Buffer.from(order.text);
      return { sent: send(socket, bytes, 0, bytes.length, [createMemory("raw", 4096, false)]) === bytes.length };
    }
    default:
      return {};
  }
}
