import test from "ava";
import { InFlight } from "../../../../../guest/devices/nvme/queues/in-flight.js";

test("drained waits for what is in flight, and not for what begins later", async (t) => {
  const work = new InFlight();
  await work.drained();
  const first = work.begin();
  const second = work.begin();
  const order: string[] = [];
  const drained = work.drained().then(() => order.push("drained"));
  const third = work.begin();
  const later = work.drained().then(() => order.push("later"));
  work.end(first);
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(order, []);
  work.end(second);
  await drained;
  t.deepEqual(order, ["drained"]);
  t.is(work.count, 1);
  work.end(third);
  await later;
  t.is(work.count, 0);
  await work.drained();
});

test("a later drained waits for what an earlier one still waits for", async (t) => {
  const work = new InFlight();
  const first = work.begin();
  let done = 0;
  const drains = [work.drained(), work.drained()].map((drain) => drain.then(() => done++));
  await new Promise((resolve) => setImmediate(resolve));
  t.is(done, 0);
  work.end(first);
  await Promise.all(drains);
  t.is(done, 2);
});
