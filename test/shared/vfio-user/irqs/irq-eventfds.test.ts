/**
 * Eventfds that mask and unmask: each signal is dealt with, in turns of the event loop, and none is lost when one is
 * replaced.
 */
import { setImmediate } from "node:timers/promises";
import test from "ava";
import { eventfd, eventfdWrite } from "../../../../native/index.js";
import { Irq, IrqSetFlags } from "../../../../shared/spec/vfio-user.js";
import { IrqEventfds } from "../../../../shared/vfio-user/irqs/irq-eventfds.js";
import { until } from "../fixture.js";

const COUNT = 200;
const FLAGS = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_UNMASK;
const made = (count: number) => Array.from({ length: count }, () => eventfd(0));

test("many signals at once are dealt with a few in each turn, and all of them", async (t) => {
  const vectors: number[] = [];
  const set = new IrqEventfds(async ({ start }) => {
    vectors.push(start);
  });
  const eventfds = made(COUNT);
  set.set({ flags: FLAGS, index: Irq.MSIX, start: 0, count: COUNT, eventfds });
  for (let round = 1; round <= 2; round++) {
    for (const fd of eventfds) eventfdWrite(fd);
    for (let before = vectors.length; vectors.length < round * COUNT; before = vectors.length) {
      await setImmediate();
      t.true(vectors.length - before <= 100, `${vectors.length - before} at once`);
    }
    t.is(new Set(vectors.slice(-COUNT)).size, COUNT);
  }
  set.clear();
});

test("a signal that waits is not lost when its eventfd is replaced, and is when it is removed", async (t) => {
  const vectors: number[] = [];
  const set = new IrqEventfds(async ({ start }) => {
    vectors.push(start);
  });
  const eventfds = made(COUNT);
  set.set({ flags: FLAGS, index: Irq.MSIX, start: 0, count: COUNT, eventfds });
  for (const fd of eventfds) eventfdWrite(fd);
  await until(() => vectors.length > 0);
  set.set({ flags: FLAGS, index: Irq.MSIX, start: 0, count: COUNT, eventfds: made(COUNT) });
  t.is(new Set(vectors).size, COUNT);
  const { length } = vectors;
  set.clearIndex(Irq.MSIX);
  for (let n = 0; n < 10; n++) await setImmediate();
  t.is(vectors.length, length);
});
