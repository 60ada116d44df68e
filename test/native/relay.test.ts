/** The relay: what goes in at a source comes out at its target, and no pair can hold up the others or the caller. */
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { fdsOfEventfd, fdsOfMemory, makeBlocking, owned, pair, ready } from "./helpers.js";

function relay(t: ExecutionContext) {
  const made = new native.Relay();
  t.teardown(() => made.close());
  return made;
}

const event = (t: ExecutionContext, count = 0) => owned(t, native.eventfd(count));

/** Takes one signal from the target, waiting for it. */
async function taken(target: number): Promise<number> {
  await ready(target);
  return native.eventfdRead(target);
}

test("each signal arrives at its own target, one after the other", async (t) => {
  const relaying = relay(t);
  const sources = [event(t), event(t), event(t)];
  const targets = [event(t), event(t), event(t)];
  const ids = sources.map((source, i) => relaying.add(source, targets[i]!));
  for (let round = 1; round <= 20; round++) {
    for (const i of [2, 0, 1]) {
      native.eventfdWrite(sources[i]!);
      t.is(await taken(targets[i]!), 1);
      t.is(relaying.count(ids[i]!), round);
      for (const other of targets) t.is(native.eventfdRead(other), 0);
    }
  }
  t.is(relaying.count(), 60);
  for (const id of ids) relaying.remove(id);
  for (const source of sources) t.is(native.eventfdRead(source), 0);
});

test("a count that waited becomes one signal, also from before the pair", async (t) => {
  const relaying = relay(t);
  const target = event(t);
  const id = relaying.add(event(t, 1000), target);
  t.is(await taken(target), 1);
  t.is(relaying.count(id), 1);
});

test("a source that ended one pair signals nothing of the past to the next", async (t) => {
  const relaying = relay(t);
  const [source, target, other, otherTarget] = [event(t), event(t), event(t), event(t)];
  relaying.add(other, otherTarget);
  for (let i = 0; i < 3; i++) {
    const id = relaying.add(source, target);
    for (let n = 1; n <= 3; n++) {
      native.eventfdWrite(source);
      t.is(await taken(target), 1);
      t.is(relaying.count(id), n);
    }
    relaying.remove(id);
  }
  native.eventfdWrite(other);
  t.is(await taken(otherTarget), 1);
  t.is(native.eventfdRead(target), 0);
});

test("many sources may share a target", async (t) => {
  const relaying = relay(t);
  const target = event(t);
  for (let i = 0; i < 300; i++) relaying.add(event(t, 1), target);
  for (let sum = 0; sum < 300; ) sum += await taken(target);
  t.is(relaying.count(), 300);
  t.is(native.eventfdRead(target), 0);
});

test("a removed pair is let go: its signals stay, its fds are closed, its count is in the total", async (t) => {
  const relaying = relay(t);
  const [source, target, kept, keptTarget] = [event(t), event(t), event(t), event(t)];
  const id = relaying.add(source, target);
  const keptId = relaying.add(kept, keptTarget);
  t.is(fdsOfEventfd(source), 2);
  native.eventfdWrite(source);
  await taken(target);
  relaying.remove(id);
  relaying.remove(id);
  relaying.remove(4_000_000_000);
  t.deepEqual([fdsOfEventfd(source), fdsOfEventfd(target)], [1, 1]);
  native.eventfdWrite(source);
  // By the time that the other pair's signal has gone through, this one's would have too.
  native.eventfdWrite(kept);
  t.is(await taken(keptTarget), 1);
  t.is(native.eventfdRead(target), 0);
  t.is(native.eventfdRead(source), 1);
  t.is(relaying.count(keptId), 1);
  t.is(relaying.count(), 2);
  t.throws(() => relaying.count(id), { instanceOf: RangeError });
});

test("a pair that gets another target loses no signal, and lets go of the one before", async (t) => {
  const relaying = relay(t);
  const [source, a, b] = [event(t), event(t), event(t)];
  const id = relaying.add(source, a);
  for (let round = 0; round < 2000; round++) {
    native.eventfdWrite(source);
    relaying.retarget(id, round % 2 === 0 ? b : a);
    while (native.eventfdRead(a) + native.eventfdRead(b) === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  t.is(relaying.count(id), 2000);
  t.deepEqual([fdsOfEventfd(a), fdsOfEventfd(b)], [2, 1]);
  native.eventfdWrite(source);
  t.is(await taken(a), 1);
  t.is(native.eventfdRead(b), 0);
  const [socket] = pair(t);
  t.throws(() => relaying.retarget(id, socket), { code: "EINVAL" });
  t.throws(() => relaying.retarget(id, 1 << 30), { code: "EBADF" });
  t.throws(() => relaying.retarget(id + 1, b), { code: "ENOENT" });
  native.eventfdWrite(source);
  t.is(await taken(a), 1);
});

test("when a pair is removed its target has every signal", (t) => {
  const relaying = relay(t);
  const [source, target] = [event(t), event(t)];
  for (let round = 0; round < 1000; round++) {
    const id = relaying.add(source, target);
    native.eventfdWrite(source);
    relaying.remove(id);
    t.true(native.eventfdRead(target) > 0);
    t.is(native.eventfdRead(source), 0);
  }
  relaying.add(source, target);
  native.eventfdWrite(source);
  relaying.close();
  t.true(native.eventfdRead(target) > 0);
});

test("closing drops all pairs", (t) => {
  const relaying = relay(t);
  const [source, target] = [event(t), event(t)];
  for (let i = 0; i < 10; i++) relaying.add(source, target);
  t.is(fdsOfEventfd(source), 11);
  relaying.close();
  relaying.close();
  t.deepEqual([fdsOfEventfd(source), fdsOfEventfd(target)], [1, 1]);
  t.throws(() => relaying.add(source, target), { message: /closed/ });
  relaying.remove(1);
});

test("the thread starts with the first pair and ends with close", (t) => {
  // In a process of its own: other tests have relays too.
  const printed = execFileSync(
    process.execPath,
    [
      "--input-type=module",
      "-e",
      `import * as native from ${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)};
      import { execFileSync } from "node:child_process";
import fs from "node:fs";
      const named = (id) => {
        try {
          return fs.readFileSync("/proc/self/task/" + id + "/comm", "utf8") === "doorbell-relay\\n";
        } catch {
          return false;
        }
      };
      const count = () => fs.readdirSync("/proc/self/task").filter(named).length;
      const relay = new native.Relay();
      const event = native.eventfd(0);
      const counts = [count()];
      relay.add(event, native.eventfd(0));
      relay.add(event, native.eventfd(0));
      // The thread names itself, and has done so when it has relayed something.
      native.eventfdWrite(event);
      while (relay.count() === 0) await new Promise((resolve) => setImmediate(resolve));
      counts.push(count());
      relay.close();
      // A thread that was joined may be listed for a moment yet.
      while (count() > 0) await new Promise((resolve) => setImmediate(resolve));
      counts.push(count());
      process.stdout.write(counts.join());`,
    ],
    { encoding: "utf8" },
  );
  t.is(printed, "0,1,0");
});

test("a pair that signals itself without end stops neither the others nor their removal", async (t) => {
  const relaying = relay(t);
  const [mill, source, target] = [event(t, 1), event(t), event(t)];
  const spinning = relaying.add(mill, mill);
  for (let i = 0; i < 200; i++) {
    const id = relaying.add(source, target);
    native.eventfdWrite(source);
    t.is(await taken(target), 1);
    relaying.remove(id);
  }
  t.true(relaying.count(spinning) > 1);
  relaying.remove(spinning);
  const total = relaying.count();
  native.eventfdRead(mill);
  native.eventfdWrite(mill);
  t.is(native.eventfdRead(mill), 1);
  t.is(relaying.count(), total);
});

test("blocking fds and full targets hold up nobody", async (t) => {
  const relaying = relay(t);
  const [source, full, other, target] = [event(t), event(t), event(t), event(t)];
  for (const fd of [source, full, other, target]) makeBlocking(fd);
  fs.writeSync(full, new BigUint64Array([0xfffffffffffffffen]));
  // Two pairs may have one source.
  const ids = [relaying.add(source, full), relaying.add(source, full)];
  relaying.add(other, target);
  for (let i = 1; i <= 100; i++) {
    native.eventfdWrite(source);
    native.eventfdWrite(other);
    t.is(await taken(target), 1);
  }
  for (const id of ids) relaying.remove(id);
  t.true(native.eventfdRead(full) >= 2 ** 63);
});

test("only eventfds are taken, and what is refused leaves nothing behind", (t) => {
  const relaying = relay(t);
  const [socket] = pair(t);
  const good = event(t);
  const memory = owned(t, native.createMemory("no-doorbell", 8, false));
  for (const bad of [socket, memory]) {
    t.like(
      t.throws(() => relaying.add(good, bad)),
      { code: "EINVAL", syscall: "relay" },
    );
    t.throws(() => relaying.add(bad, good), { code: "EINVAL" });
  }
  t.throws(() => relaying.add(good, 1 << 30), { code: "EBADF" });
  t.is(fdsOfEventfd(good), 1);
  t.is(fdsOfMemory("no-doorbell"), 1);
  t.is(relaying.count(), 0);
});
