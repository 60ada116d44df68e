/** Polls that always have something to do, and the rest of the event loop beside them. */
import { readFile } from "node:fs/promises";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { owned, pair } from "./helpers.js";

/** Two polls that signal each other for ever. Returns how often they did. */
function pingPong(t: ExecutionContext): () => number {
  const events = [owned(t, native.eventfd(1)), owned(t, native.eventfd(0))];
  let rounds = 0;
  for (const [n, event] of events.entries()) {
    const pass = () => {
      rounds++;
      native.eventfdWrite(events[1 - n]);
    };
    const poll = new native.Poll(event, pass, "eventfd");
    poll.start(native.POLL_READABLE);
    t.teardown(() => poll.close());
  }
  return () => rounds;
}

test("timers, immediates, promises and files go on while polls keep each other busy", async (t) => {
  const rounds = pingPong(t);
  while (rounds() <= 2) await new Promise((resolve) => setTimeout(resolve, 1));
  await new Promise((resolve) => setImmediate(resolve));
  await Promise.resolve();
  t.true((await readFile("/proc/self/stat")).length > 0);
  let ticks = 0;
  await new Promise<void>((resolve) => {
    const interval = setInterval(() => {
      if (++ticks < 10) return;
      clearInterval(interval);
      resolve();
    }, 2);
  });
  t.is(ticks, 10);
});

test("timers that a callback sets and clears are kept to", async (t) => {
  const event = owned(t, native.eventfd(0));
  const order: string[] = [];
  await new Promise<void>((resolve) => {
    const poll = new native.Poll(
      event,
      () => {
        clearTimeout(setTimeout(() => order.push("cleared"), 5));
        setTimeout(() => order.push("first"), 10);
        setTimeout(() => {
          order.push("second");
          resolve();
        }, 25);
      },
      "eventfd",
    );
    poll.start(native.POLL_READABLE);
    t.teardown(() => poll.close());
    native.eventfdWrite(event);
  });
  t.deepEqual(order, ["first", "second"]);
});

test("a poll that is started in a callback is heard", async (t) => {
  const rounds = pingPong(t);
  const [near, far] = pair(t);
  const first = owned(t, native.eventfd(1));
  await new Promise<void>((resolve) => {
    const outer = new native.Poll(first, () => {
      outer.close();
      const inner = new native.Poll(near, () => {
        inner.close();
        resolve();
      });
      inner.start(native.POLL_READABLE);
      native.send(far, new Uint8Array(1), 0, 1);
    });
    outer.start(native.POLL_READABLE);
  });
  t.true(rounds() >= 0);
});

test("an event that another callback has dealt with is none", async (t) => {
  const events = Array.from({ length: 8 }, () => owned(t, native.eventfd(1)));
  let calls = 0;
  for (const event of events) {
    const poll = new native.Poll(event, () => {
      calls++;
      for (const each of events) native.eventfdRead(each);
    });
    poll.start(native.POLL_READABLE);
    t.teardown(() => poll.close());
  }
  while (calls === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(calls, 1);
});
