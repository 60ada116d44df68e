/** The device's thread of sleepers.test.ts: gives every buffer back, some one by one and some together. */
import { parentPort, workerData } from "node:worker_threads";
import { makeDevice } from "./rings.js";
import { DEVICE, makeSignals } from "./signals.js";

const signals = makeSignals(workerData.signals);
const queue = makeDevice(workerData.memory, workerData.layout);
let seen = signals.seen(DEVICE);
let count = 0;
parentPort?.postMessage("ready");
while (!signals.stopped) {
  let batch = 0;
  while (batch < 1 + (count % 5) && queue.next()) {
    queue.complete(1);
    batch++;
  }
  count += batch;
  if (batch > 0) {
    if (queue.shouldCall()) signals.wake(1 - DEVICE);
  } else {
    signals.sleep(DEVICE, seen, Number.POSITIVE_INFINITY);
    seen = signals.seen(DEVICE);
  }
}
