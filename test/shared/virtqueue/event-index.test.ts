/** Who signals whom, and when: both sides of a queue against each other, with event indices and with flags. */
import test, { type ExecutionContext } from "ava";
import { passed } from "../../../shared/virtqueue/event-index.js";
import { bufferAddress, layoutOf, makeDevice, makeDriver, makeMemory } from "./rings.js";

const SIZE = 8;

function setUp(eventIndex: boolean) {
  const buffer = makeMemory();
  const driver = makeDriver(buffer, SIZE, eventIndex);
  const layout = layoutOf(driver);
  const device = makeDevice(buffer, layout);
  const words = new Uint16Array(buffer);
  const add = (id: number) => driver.add(id, bufferAddress(driver, id), 1, true);
  /** The device's work with one chain; whether there was one. */
  const serve = () => {
    if (!device.next()) return false;
    device.complete(1);
    return true;
  };
  return {
    buffer,
    driver,
    device,
    add,
    serve,
    /** Places in `words`. */
    availableIndex: layout.available / 2 + 1,
    usedIndex: layout.used / 2 + 1,
    usedEvent: layout.available / 2 + 2 + SIZE,
    availableEvent: layout.used / 2 + 2 + 4 * SIZE,
    availableFlags: layout.available / 2,
    usedFlags: layout.used / 2,
    words,
  };
}

type Rings = ReturnType<typeof setUp>;

/** Runs the test with event indices and with flags. */
function bothWays(title: string, run: (t: ExecutionContext, rings: Rings) => void): void {
  for (const eventIndex of [true, false]) {
    test.serial(`${title}: ${eventIndex ? "event indices" : "flags"}`, (t) => run(t, setUp(eventIndex)));
  }
}

/** Does `work`, and calls `strike` once: right before its first store at that place. */
function strikeAtStore<T>(rings: Rings, place: number, strike: () => void, work: () => T): T {
  const { store } = Atomics;
  let struck = false;
  const striking = (array: Uint16Array, index: number, value: number) => {
    if (!struck && array.buffer === rings.buffer && array.byteOffset / 2 + index === place) {
      struck = true;
      Object.defineProperty(Atomics, "store", { value: store, configurable: true, writable: true });
      strike();
    }
    return store(array, index, value);
  };
  Object.defineProperty(Atomics, "store", { value: striking, configurable: true, writable: true });
  try {
    const result = work();
    if (!struck) throw new Error("nothing was stored there");
    return result;
  } finally {
    Object.defineProperty(Atomics, "store", { value: store, configurable: true, writable: true });
  }
}

test("passed says whether the event's place is among those that the index went over", (t) => {
  for (const start of [0, 1, 0x7fff, 0xfff0, 0xffff]) {
    for (const count of [0, 1, 2, 5, 64]) {
      const places = new Set(Array.from({ length: count }, (_, n) => (start + n) & 0xffff));
      for (let near = -70; near <= 70; near++) {
        const event = (start + near) & 0xffff;
        t.is(passed(event, (start + count) & 0xffff, count), places.has(event), `${start} + ${count}, event ${event}`);
      }
    }
  }
  t.true(passed(12, 5, 0x1_0000), "going round the whole way passes every place");
});

bothWays("a burst is one signal each way", (t, { driver, device, add, serve }) => {
  let kicks = 0;
  for (let id = 0; id < SIZE; id++) {
    add(id);
    if (driver.publish()) kicks++;
    // The device wakes up at the third, and takes them as they come from then on.
    if (id >= 2) t.true(serve());
  }
  t.is(kicks, driver.eventIndex ? 1 : 3, "flags cannot take a request back before the device runs");
  while (serve());
  t.true(device.shouldCall());
  t.is(driver.take(), 0);
  for (let id = 1; id < SIZE; id++) t.is(driver.take(), id);
  t.is(driver.take(), -1);
});

bothWays("while the other side works, and until it found nothing more, it hears nothing", (t, rings) => {
  const { driver, device, add, serve } = rings;
  add(0);
  t.true(driver.publish());
  add(1);
  driver.publish();
  t.true(serve());
  add(2);
  t.false(driver.publish(), "the device has not come to the end");
  t.true(device.shouldCall(), "a start tells in any case");
  t.is(driver.take(), 0);
  while (serve());
  t.false(device.shouldCall(), "the driver has not come to the end");
  t.is(driver.take(), 1);
  t.is(driver.take(), 2);
  t.is(driver.take(), -1);
  add(0);
  t.true(driver.publish());
  t.true(serve());
  t.true(device.shouldCall());
  t.false(serve());
});

bothWays("what nobody wants is not signalled, until it is wanted again", (t, { driver, device, add, serve }) => {
  driver.wantsInterrupt = false;
  add(0);
  driver.publish();
  t.true(serve());
  device.shouldCall();
  for (let n = 0; n < 1000; n++) {
    t.is(driver.take(), 0);
    t.is(driver.take(), -1);
    add(0);
    driver.publish();
    t.true(serve());
    if (device.shouldCall()) return t.fail(`after ${n}`);
  }
  t.is(driver.take(), 0);
  driver.wantsInterrupt = true;
  t.is(driver.take(), -1);
  add(0);
  driver.publish();
  t.true(serve());
  t.true(device.shouldCall());
});

bothWays("round after round, past 65536, each sleeper is woken, and by one signal", (t, rings) => {
  const { driver, device, add, serve } = rings;
  t.false(serve());
  for (let round = 0; round < 30_000; round++) {
    const count = 1 + (round % SIZE);
    let kicks = 0;
    let calls = 0;
    for (let id = 0; id < count; id++) {
      add(id);
      if (driver.publish()) kicks++;
    }
    let served = 0;
    while (serve()) {
      served++;
      if (device.shouldCall()) calls++;
    }
    let taken = 0;
    while (driver.take() >= 0) taken++;
    // With flags the other side is told of each until it runs.
    const enough = (signals: number) => (driver.eventIndex ? signals === 1 : signals === count);
    if (!enough(kicks) || !enough(calls) || served !== count || taken !== count) {
      return t.fail(`round ${round}: ${kicks} kicks, ${calls} calls, ${served} served, ${taken} taken of ${count}`);
    }
  }
  t.pass();
});

bothWays("a chain that comes while the device goes to sleep is not lost", (t, rings) => {
  const { driver, add, serve, availableEvent, usedFlags } = rings;
  add(0);
  driver.publish();
  t.true(serve());
  let wanted = true;
  const late = () => {
    add(1);
    wanted = driver.publish();
  };
  const taken = strikeAtStore(rings, driver.eventIndex ? availableEvent : usedFlags, late, serve);
  t.false(wanted, "the driver could not know yet");
  t.true(taken, "so the device looks once more");
});

bothWays("a buffer that comes while the driver goes to sleep is not lost", (t, rings) => {
  const { driver, device, add, serve, usedEvent, availableFlags } = rings;
  add(0);
  add(1);
  driver.publish();
  t.true(serve());
  device.shouldCall();
  t.is(driver.take(), 0);
  let wanted = true;
  const late = () => {
    serve();
    wanted = device.shouldCall();
  };
  const id = strikeAtStore(rings, driver.eventIndex ? usedEvent : availableFlags, late, () => driver.take());
  t.false(wanted, "the device could not know yet");
  t.is(id, 1, "so the driver looks once more");
});

bothWays("the driver that publishes looks at the request behind it", (t, rings) => {
  const { driver, add, serve, availableIndex } = rings;
  add(0);
  driver.publish();
  t.true(serve());
  add(1);
  const kick = strikeAtStore(
    rings,
    availableIndex,
    () => t.false(serve(), "it goes to sleep just before"),
    () => driver.publish(),
  );
  t.true(kick);
});

bothWays("the device that completes looks at the request behind it", (t, rings) => {
  const { driver, device, add, serve, usedIndex } = rings;
  add(0);
  add(1);
  driver.publish();
  t.true(serve());
  device.shouldCall();
  t.is(driver.take(), 0);
  strikeAtStore(rings, usedIndex, () => t.is(driver.take(), -1, "it goes to sleep just before"), serve);
  t.true(device.shouldCall());
});

test.serial("any event index is harmless: too many signals at most, or none", (t) => {
  const rings = setUp(true);
  const { driver, device, add, serve, usedEvent, availableEvent, words } = rings;
  for (let event = 0; event <= 0xffff; event += 0x11) {
    words[usedEvent] = event;
    words[availableEvent] = event;
    add(0);
    driver.publish();
    words[availableEvent] = (event * 7) & 0xffff;
    if (!serve()) return t.fail(`event ${event}`);
    device.shouldCall();
    words[usedEvent] = (event * 5) & 0xffff;
    if (driver.take() !== 0 || driver.take() !== -1 || device.next()) return t.fail(`event ${event}`);
  }
  t.is(driver.inFlight, 0);
  t.true(device.running);
});

test("a device that starts again asks anew, and tells the driver", (t) => {
  for (const eventIndex of [true, false]) {
    const { buffer, driver, add, serve, device, words, usedFlags, availableEvent } = setUp(eventIndex);
    add(0);
    driver.publish();
    t.true(serve());
    if (eventIndex) words[availableEvent] = 0x8000;
    else t.is(words[usedFlags], 1);
    const base = device.stop();
    t.false(device.shouldCall());
    const next = makeDevice(buffer, { ...layoutOf(driver), base });
    t.is(eventIndex ? words[availableEvent] : words[usedFlags], eventIndex ? 1 : 0);
    t.is(driver.take(), 0);
    t.is(driver.take(), -1);
    add(0);
    t.true(driver.publish());
    t.true(next.next());
    next.complete(0);
    t.true(next.shouldCall());
  }
});
