/** The holder as a process, with a program that tells what it is given. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { close, createMemory, send } from "../../native/index.js";
import { connectDatagrams, HOLDER } from "../../native/supervision.js";
import type { Life, Order } from "../fakes/supervised-program.js";
import { folder } from "./helpers.js";

const PROGRAM = fileURLToPath(new URL("../fakes/supervised-program.js", import.meta.url));

class Supervised {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  errors = "";

  constructor(t: ExecutionContext, command: readonly string[] = [process.execPath, PROGRAM], env = {}) {
    // What a holder that is killed leaves behind goes with the test.
    const places = { RUNTIME_DIRECTORY: folder(t) };
    this.process = spawn(HOLDER, command, { stdio: "pipe", env: { ...process.env, ...places, ...env } });
    this.#lines = createInterface({ input: this.process.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
    this.process.stderr?.on("data", (data) => {
      this.errors += data;
    });
    t.teardown(() => this.process.kill("SIGKILL"));
  }

  async line<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`the program ended: ${this.errors}`);
    return JSON.parse(value) as T;
  }

  order(order: Order): void {
    this.process.stdin?.write(`${JSON.stringify(order)}\n`);
  }

  /** An order, and what the program says of it. */
  async done(order: Order): Promise<{ sent: boolean; inodes: number[] }> {
    this.order(order);
    return this.line();
  }

  /** The exit code, once all output was read. */
  async end(): Promise<number> {
    const [code] = (await once(this.process, "close")) as [number];
    return code;
  }
}

test("a program that ends by itself ends the holder, with its code", (t) => {
  const run = (...command: string[]) => spawnSync(HOLDER, command, { encoding: "utf8" });
  t.is(run("/bin/sh", "-c", "exit 0").status, 0);
  t.is(run("/bin/sh", "-c", "exit 23").status, 23);
  t.is(run("/bin/sh", "-c", 'test "$1" = "a b"', "sh", "a b").status, 0);
  const missing = run("/no/such/program");
  t.is(missing.status, 127);
  t.is(missing.stderr, "vfio-user-bridge: /no/such/program cannot be started: No such file or directory\n");
  t.is(run().status, 2);
});

test("a program that was killed is started again, with all that it had kept", async (t) => {
  const holder = new Supervised(t, [process.execPath, PROGRAM, "an argument"], { LISTEN_FDS: "7", LISTEN_PID: "1" });
  const first = await holder.line<Life>();
  t.deepEqual(first.kept, []);
  t.deepEqual(first.listen, [null, null, null], "what the holder was told is not the program's");
  t.true(first.parent === holder.process.pid);
  const a = await holder.done({ do: "store", name: "a", count: 2 });
  const b = await holder.done({ do: "store", name: "b b", count: 1 });
  const c = await holder.done({ do: "store", name: "c", count: 1 });
  t.true((await holder.done({ do: "remove", name: "b b" })).sent);
  t.true(b.sent);
  holder.order({ do: "crash" });
  const second = await holder.line<Life>();
  t.not(second.pid, first.pid);
  t.deepEqual(second.args, ["an argument"]);
  t.deepEqual(second.kept, [...a.inodes.map((inode) => ["a", inode] as const), ["c", c.inodes[0]] as const]);
  t.deepEqual(second.listen, [String(second.pid), "3", "a:a:c"]);
  t.is(second.socket, first.socket);
  // What the first life stored is still kept in the third, and what is added goes behind it.
  const d = await holder.done({ do: "store", name: "d", count: 1 });
  holder.order({ do: "crash" });
  t.deepEqual((await holder.line<Life>()).kept, [...second.kept, ["d", d.inodes[0]] as const]);
  holder.order({ do: "exit", code: 0 });
  t.is(await holder.end(), 0);
  t.regex(
    holder.errors,
    /^vfio-user-bridge: the bridge, process \d+, was killed by signal 9 \(SIGKILL\): .* with 3 file descriptors\n.*\n$/,
  );
});

test("descriptors that were sent just before the death are kept", async (t) => {
  const holder = new Supervised(t);
  await holder.line<Life>();
  // The pipe has both orders before the first is carried out.
  for (let i = 0; i < 8; i++) holder.order({ do: "store", name: `s${i}`, count: 1 });
  holder.order({ do: "crash" });
  for (let i = 0; i < 8; i++) t.true((await holder.line<{ sent: boolean }>()).sent);
  const { kept } = await holder.line<Life>();
  t.deepEqual(
    kept.map(([name]) => name),
    Array.from({ length: 8 }, (_, i) => `s${i}`),
  );
});

test("one that dies again and again is waited for, twice as long each time, and a line says so", async (t) => {
  const holder = new Supervised(t, undefined, { VFIO_USER_STARTS: "0" });
  for (let i = 0; i < 2; i++) {
    await holder.line<Life>();
    holder.order({ do: "crash" });
  }
  const before = performance.now();
  await holder.line<Life>();
  t.true(performance.now() - before >= 200);
  const [first, second, ...more] = holder.errors.split("\n");
  t.regex(first, /was killed .*, again and again: it is started again in 100 ms, with 0 file descriptors$/);
  t.regex(second, /, again and again: it is started again in 200 ms, with 0 file descriptors$/);
  t.deepEqual(more, [""]);
});

test("several deaths in a row are no reason to wait", async (t) => {
  const holder = new Supervised(t);
  for (let i = 0; i < 5; i++) {
    await holder.line<Life>();
    holder.order({ do: "crash" });
  }
  await holder.line<Life>();
  t.notRegex(holder.errors, /again and again/);
});

test("a failure of a program that was ready is a death, and the end that it announced is none", async (t) => {
  const ready = new Supervised(t);
  await ready.line<Life>();
  await ready.done({ do: "ready" });
  ready.order({ do: "exit", code: 1 });
  await ready.line<Life>();
  t.regex(ready.errors, /ended with code 1: it is started again/);
  // Never ready in this life, but the one before was: what is kept is worth another attempt.
  ready.order({ do: "exit", code: 1 });
  await ready.line<Life>();
  await ready.done({ do: "stopping" });
  ready.order({ do: "exit", code: 5 });
  t.is(await ready.end(), 5);

  const killed = new Supervised(t);
  await killed.line<Life>();
  await killed.done({ do: "ready" });
  killed.order({ do: "crash" });
  await killed.line<Life>();
  killed.order({ do: "exit", code: 1 });
  await killed.line<Life>();
  killed.order({ do: "exit", code: 0 });
  t.is(await killed.end(), 0);

  const never = new Supervised(t);
  await never.line<Life>();
  never.order({ do: "exit", code: 1 });
  t.is(await never.end(), 1);
  t.is(never.errors, "");
});

test("signals go on to the program, once, and it decides how it ends", async (t) => {
  const holder = new Supervised(t);
  await holder.line<Life>();
  for (const signal of ["SIGUSR1", "SIGHUP", "SIGINT", "SIGTERM"] as const) {
    holder.process.kill(signal);
    t.deepEqual(await holder.line(), { signal });
  }
  holder.order({ do: "exit", code: 3 });
  t.is(await holder.end(), 3);
});

test("a program that is killed after it was told to end is not started again", async (t) => {
  const holder = new Supervised(t);
  await holder.line<Life>();
  holder.process.kill("SIGTERM");
  await holder.line();
  holder.order({ do: "crash" });
  t.is(await holder.end(), 128 + 9);
});

test("a signal while nothing runs ends the holder", async (t) => {
  const holder = new Supervised(t, ["/bin/sh", "-c", "kill -9 $$"]);
  while (!holder.errors.includes("800 ms")) await once(holder.process.stderr as NodeJS.ReadableStream, "data");
  holder.process.kill("SIGTERM");
  t.is(await holder.end(), 128 + 9);
});

test("its socket is for this user alone, and is gone at the end", async (t) => {
  const holder = new Supervised(t);
  const { socket = "" } = await holder.line<Life>();
  t.is(statSync(dirname(socket)).mode & 0o777, 0o700);
  holder.order({ do: "exit", code: 0 });
  await holder.end();
  t.false(existsSync(dirname(socket)));
});

test("another process's messages are ignored, and said once", async (t) => {
  const holder = new Supervised(t);
  const { socket = "" } = await holder.line<Life>();
  const fd = connectDatagrams(socket);
  const memory = createMemory("foreign", 4096, false);
  t.teardown(() => [fd, memory].forEach(close));
  for (let i = 0; i < 3; i++) {
    const text = Buffer.from("FDSTORE=1\nFDNAME=foreign");
    send(fd, text, 0, text.length, [memory]);
  }
  await holder.done({ do: "store", name: "own", count: 1 });
  holder.order({ do: "crash" });
  const { kept } = await holder.line<Life>();
  t.deepEqual(
    kept.map(([name]) => name),
    ["own"],
  );
  t.is(holder.errors.match(/is not the bridge/g)?.length, 1);
  t.regex(holder.errors, new RegExp(`a message of process ${process.pid} was ignored`));
});

test("names as systemd has them, and no more than there is room for", async (t) => {
  const holder = new Supervised(t);
  await holder.line<Life>();
  // In the store under the name that it has for what has none.
  await holder.done({ do: "raw", text: "FDSTORE=1\nFDNAME=a:b" });
  await holder.done({ do: "raw", text: `FDSTORE=1\nFDNAME=${"n".repeat(256)}` });
  await holder.done({ do: "raw", text: "FDNAME=last\nFDSTORE=1" });
  // Nothing is stored of these: no order to, no whole message, another order.
  await holder.done({ do: "raw", text: "FDNAME=x" });
  await holder.done({ do: "raw", text: "FDSTORE=10\nFDNAME=x" });
  await holder.done({ do: "raw", text: `FDSTORE=1\nFDNAME=x\nX=${"x".repeat(5000)}` });
  await holder.done({ do: "raw", text: "BARRIER=1" });
  const long = "m".repeat(255);
  await holder.done({ do: "store", name: long, count: 253 });
  await holder.done({ do: "store", name: long, count: 253 });
  holder.order({ do: "crash" });
  const { kept, listen } = await holder.line<Life>();
  t.deepEqual(
    kept.slice(0, 4).map(([name]) => name),
    ["stored", "stored", "last", long],
  );
  t.true((listen[2]?.length ?? 0) <= 120 * 1024);
  t.true(kept.length > 470 && kept.length < 490, "names of 120 KiB");
  t.is(holder.errors.match(/a message was ignored/g)?.length, 1);
  await holder.done({ do: "remove", name: long });
  holder.order({ do: "crash" });
  t.is((await holder.line<Life>()).kept.length, 3);
});

test("what the program says of itself goes on to the manager of the holder", async (t) => {
  const outer = new Supervised(t, [HOLDER, process.execPath, PROGRAM]);
  await outer.line<Life>();
  await outer.done({ do: "ready" });
  // The inner holder is the outer one's program: that it was ready is known there.
  outer.order({ do: "exit", code: 7 });
  await outer.line<Life>();
  await outer.done({ do: "stopping" });
  outer.order({ do: "exit", code: 0 });
  t.is(await outer.end(), 0);
});
