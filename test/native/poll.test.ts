/** Polls on an environment's own loop, and environments that end while something is open. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import test from "ava";
import * as native from "../../native/index.js";
import { owned, pair, ready } from "./helpers.js";

const header = `import * as native from ${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)};\n`;

/** Runs a module in a process of its own; its output. Throws if it does not exit with 0. */
function run(script: string): string {
  return execFileSync(process.execPath, ["--input-type=module", "-e", header + script], {
    encoding: "utf8",
    timeout: 60_000,
  });
}

function worker(script: string): Worker {
  return new Worker(new URL(`data:text/javascript,${encodeURIComponent(header + script)}`));
}

test("readable, writable, hung up", async (t) => {
  const [a, b] = native.socketPair();
  owned(t, a);
  t.is(await ready(a, native.POLL_READABLE | native.POLL_WRITABLE), native.POLL_WRITABLE);
  native.send(b, new Uint8Array(1), 0, 1);
  t.is(await ready(a), native.POLL_READABLE);
  native.receive(a, new Uint8Array(1), 0, 1, new Int32Array(1));
  native.close(b);
  t.is(await ready(a, native.POLL_READABLE | native.POLL_DISCONNECT), native.POLL_READABLE | native.POLL_DISCONNECT);
});

test("whether an event waits that is not one's own", (t) => {
  const output = run(`
    const [a, b] = [native.eventfd(0), native.eventfd(0)];
    const polls = [a, b].map((fd) => new native.Poll(fd, () => {}));
    for (const poll of polls) poll.start(native.POLL_READABLE);
    await new Promise((resolve) => setImmediate(resolve));
    // The loop knows of them when it has asked for events once.
    setImmediate(() => {
      const seen = [native.eventsWait(-1)];
      native.eventfdWrite(a);
      seen.push(native.eventsWait(-1), native.eventsWait(a), native.eventsWait(b));
      native.eventfdWrite(b);
      seen.push(native.eventsWait(a));
      console.log(seen.join());
      for (const poll of polls) poll.close();
    });
  `);
  t.is(output, "false,true,false,true,true\n");
});

test("a connection that was reset is a negative errno", async (t) => {
  const [a, b] = native.socketPair();
  owned(t, a);
  native.send(a, new Uint8Array(1), 0, 1);
  native.close(b);
  t.true((await ready(a, native.POLL_WRITABLE)) < 0);
});

test("an event comes again until it is handled, and not once stopped", async (t) => {
  const event = owned(t, native.eventfd(1));
  const marker = owned(t, native.eventfd(0));
  let calls = 0;
  const again = new Promise<void>((resolve) => {
    const poll = new native.Poll(event, () => {
      if (++calls === 3) {
        poll.stop();
        resolve();
      }
    });
    t.teardown(() => poll.close());
    poll.start(native.POLL_READABLE);
  });
  await again;
  native.eventfdWrite(marker);
  await ready(marker);
  t.is(calls, 3);
});

test("closed in its own callback, its fd closed and used again at once", async (t) => {
  for (let i = 0; i < 100; i++) {
    const event = native.eventfd(1);
    await new Promise<void>((resolve) => {
      const poll = new native.Poll(event, () => {
        poll.close();
        poll.close();
        native.close(event);
        resolve();
      });
      poll.start(native.POLL_READABLE);
    });
  }
  t.pass();
});

test("one callback may close the others that are ready as well", async (t) => {
  const events = Array.from({ length: 10 }, () => owned(t, native.eventfd(1)));
  let calls = 0;
  await new Promise<void>((resolve) => {
    const polls = events.map(
      (event) =>
        new native.Poll(event, () => {
          calls++;
          for (const poll of polls) poll.close();
          resolve();
        }),
    );
    for (const poll of polls) poll.start(native.POLL_READABLE);
  });
  await ready(events[9]!);
  t.is(calls, 1);
});

test("promises of a callback are settled before the next callback", async (t) => {
  const order: string[] = [];
  const polls: native.Poll[] = [];
  await new Promise<void>((resolve) => {
    for (const name of ["a", "b"]) {
      const poll = new native.Poll(owned(t, native.eventfd(1)), () => {
        poll.close();
        order.push(name);
        void Promise.resolve().then(() => {
          order.push("then");
          if (order.length === 4) resolve();
        });
      });
      polls.push(poll);
    }
    for (const poll of polls) poll.start(native.POLL_READABLE);
  });
  t.deepEqual([order[1], order[3]], ["then", "then"]);
});

test("after close nothing can be started; wrong arguments are refused", (t) => {
  const event = owned(t, native.eventfd(0));
  const poll = new native.Poll(event, () => {});
  t.throws(() => poll.start(0), { instanceOf: RangeError });
  t.throws(() => poll.start(8), { instanceOf: RangeError });
  poll.start(native.POLL_READABLE);
  t.throws(() => new native.Poll(event, () => {}), { code: "EEXIST" });
  poll.close();
  poll.stop();
  poll.ref();
  poll.unref();
  t.throws(() => poll.start(native.POLL_READABLE), { code: "EBADF" });
  t.throws(() => new native.Poll(event, undefined as never), { instanceOf: TypeError });
  t.like(
    t.throws(() => new native.Poll(1 << 30, () => {})),
    { code: "EBADF", syscall: "uv_poll_init" },
  );
  const memory = owned(t, native.createMemory("regular", 8, false));
  t.throws(() => new native.Poll(memory, () => {}), { code: "EPERM" });
});

test("a thrown exception is an uncaughtException, and the poll goes on", (t) => {
  const printed = run(`
    const event = native.eventfd(1);
    let calls = 0;
    process.on("uncaughtException", (error, origin) => {
      process.stdout.write(error.message + " " + origin + "\\n");
      if (calls === 2) poll.close();
    });
    const poll = new native.Poll(event, () => { throw new Error("call " + ++calls); });
    poll.start(1);`);
  t.is(printed, "call 1 uncaughtException\ncall 2 uncaughtException\n");
});

test("without a handler the exception ends the process as any other does", (t) => {
  const error = t.throws(() =>
    execFileSync(
      process.execPath,
      [
        "--input-type=module",
        "-e",
        `${header}new native.Poll(native.eventfd(1), () => { throw new Error("gone"); }).start(1);`,
      ],
      { encoding: "utf8", stdio: "pipe" },
    ),
  );
  t.like(error, { status: 1, signal: null });
  t.regex((error as Error & { stderr: string }).stderr, /Error: gone/);
});

test("only a started poll that is ref'ed keeps the process alive", (t) => {
  t.is(run(`new native.Poll(native.eventfd(0), () => {}); process.stdout.write("end");`), "end");
  t.is(
    run(`const p = new native.Poll(native.eventfd(0), () => {}); p.start(1); p.unref(); process.stdout.write("end");`),
    "end",
  );
  t.is(
    run(`
      const [a, b] = native.socketPair();
      const p = new native.Poll(a, (events) => { process.stdout.write("event " + events); p.close(); });
      p.start(1); p.unref(); p.ref();
      setTimeout(() => native.send(b, new Uint8Array(1), 0, 1), 20).unref();
      const other = new native.Poll(b, () => { other.close(); }); other.start(2);`),
    "event 1",
  );
});

test("a poll that nobody holds is not collected", (t) => {
  t.is(
    execFileSync(
      process.execPath,
      [
        "--expose-gc",
        "--input-type=module",
        "-e",
        `${header}
        const event = native.eventfd(0);
        (() => { new native.Poll(event, () => { process.stdout.write("called"); process.exit(0); }).start(1); })();
        for (let i = 0; i < 5; i++) { gc(); await new Promise((resolve) => setImmediate(resolve)); }
        native.eventfdWrite(event);`,
      ],
      { encoding: "utf8" },
    ),
    "called",
  );
});

/** Everything that can be open, some of it in use. */
const everything = `
  const event = native.eventfd(1);
  const [a, b] = native.socketPair();
  const polls = [event, a, b].map((fd) => new native.Poll(fd, () => {}));
  for (const poll of polls) poll.start(3);
  new native.Poll(native.eventfd(0), () => {});
  const relay = new native.Relay();
  const mill = native.eventfd(1);
  relay.add(mill, mill);
  const reservation = new native.Reservation(1 << 22, 1 << 20);
  const memory = native.createMemory("left-open", 1 << 20, false);
  reservation.map(0, 1 << 20, memory, 0, 3);
  const piece = reservation.piece(0);
  const mapped = native.mapFile(memory, 0, 4096, 3);
  globalThis.kept = { polls, relay, reservation, piece, mapped };
`;

test("a process exits with everything open", (t) => {
  t.is(run(`${everything} process.stdout.write("x"); process.exit(0);`), "x");
  t.is(run(`${everything} setImmediate(() => process.exit(0));`), "");
  t.is(run(`${everything} for (const poll of polls) poll.close(); process.exit(0);`), "");
});

test("a worker is terminated with everything open, or ends by itself", async (t) => {
  for (let i = 0; i < 5; i++) {
    const busy = worker(
      `import { parentPort } from "node:worker_threads"; ${everything} parentPort.postMessage("up");`,
    );
    await once(busy, "message");
    t.is(await busy.terminate(), 1);
    const exiting = worker(`${everything} process.exit(7);`);
    t.deepEqual(await once(exiting, "exit"), [7]);
    const ending = worker(`${everything} for (const poll of polls) poll.close();`);
    t.deepEqual(await once(ending, "exit"), [0]);
  }
});

test("a worker is terminated in the middle of a callback", async (t) => {
  const stuck = worker(`
    import { parentPort } from "node:worker_threads";
    new native.Poll(native.eventfd(1), () => { parentPort.postMessage("in"); for (;;); }).start(1);`);
  await once(stuck, "message");
  t.is(await stuck.terminate(), 1);
});

test("an exception in a worker's callback is that worker's error", async (t) => {
  const failing = worker(
    `new native.Poll(native.eventfd(1), () => { throw new RangeError("in a worker"); }).start(1);`,
  );
  const [error] = await once(failing, "error");
  t.like(error, { name: "RangeError", message: "in a worker" });
});

test("a truncated file in the main thread, after all workers with the addon have gone", (t) => {
  const printed = run(`
    import { Worker } from "node:worker_threads";
    import fs from "node:fs";
    const script = ${JSON.stringify(header + everything)} + "process.exit(0);";
    const url = new URL("data:text/javascript," + encodeURIComponent(script));
    await new Promise((resolve) => new Worker(url).on("exit", resolve));
    const memory = native.createMemory("after", 8192, false);
    const words = new Uint32Array(native.mapFile(memory, 0, 8192, 3));
    fs.ftruncateSync(memory, 0);
    process.stdout.write(String(words[1024]));`);
  t.is(printed, "0");
});

test("SIGBUS outside of guarded memory ends the process as always", (t) => {
  const error = t.throws(() =>
    run(`new native.Reservation(4096, 4096); process.kill(process.pid, "SIGBUS"); setInterval(() => {}, 1000);`),
  );
  t.like(error, { signal: "SIGBUS" });
});

test("sockets of a pair are independent of each other's polls", async (t) => {
  const [a, b] = pair(t);
  const waiting = ready(a);
  native.send(b, new Uint8Array(1), 0, 1);
  t.is(await waiting, native.POLL_READABLE);
});
