/**
 * Two threads, one on each side of a queue, each of which sleeps whenever it finds nothing and is woken by the other's
 * signals alone: one that is lost leaves both asleep.
 */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import test from "ava";
import { bufferAddress, layoutOf, makeDriver, makeSharedMemory } from "./rings.js";
import { DRIVER, makeSignals } from "./signals.js";

const SIZE = 16;
const BUFFERS = 40_000;
const DEADLINE_MS = 10_000;

for (const eventIndex of [true, false]) {
  test.serial(`no wake-up is lost: ${eventIndex ? "event indices" : "flags"}`, async (t) => {
    const memory = makeSharedMemory();
    const driver = makeDriver(memory, SIZE, eventIndex);
    const signals = makeSignals();
    const workerData = { memory, layout: layoutOf(driver), signals: signals.words };
    const worker = new Worker(new URL("device-thread.js", import.meta.url), { workerData });
    await once(worker, "message");
    const free = Array.from({ length: SIZE }, (_, id) => id);
    let added = 0;
    let kicks = 0;
    let taken = 0;
    let seen = signals.seen(DRIVER);
    while (taken < BUFFERS) {
      // From one buffer at a time, where both sleep all the time, to as many as there are.
      const most = 1 + (Math.floor(added / 500) % SIZE);
      while (driver.inFlight < most && added < BUFFERS) {
        const id = free.pop();
        if (id === undefined) break;
        driver.add(id, bufferAddress(driver, id), 1, true);
        added++;
        if (driver.publish()) {
          kicks++;
          signals.wake(1 - DRIVER);
        }
      }
      const id = driver.take();
      if (id >= 0) {
        free.push(id);
        taken++;
      } else if (!signals.sleep(DRIVER, seen, DEADLINE_MS)) {
        break;
      } else {
        seen = signals.seen(DRIVER);
      }
    }
    signals.stop();
    const [code] = await once(worker, "exit");
    t.is(taken, BUFFERS, "both sleep");
    t.true(kicks < BUFFERS);
    t.is(code, 0);
  });
}
