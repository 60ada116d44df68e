/** The pins register by register: events, interrupts, what moves the inputs. */
import test, { type ExecutionContext } from "ava";
import { createGpio, type GpioOptions } from "../../../guest/devices/gpio/index.js";
import { UserError } from "../../../shared/errors.js";
import { Irq, MigrationState } from "../../../shared/spec/vfio-user.js";
import { driver, interrupt, serve } from "./serve.js";

const INPUT = 0x00;
const OUTPUT = 0x04;
const RISING = 0x08;
const FALLING = 0x0c;
const EVENTS = 0x10;
const PINS = 0x14;
const ALL = 0xffff_ffff;

async function start(t: ExecutionContext, options: GpioOptions = {}, index: number = Irq.MSIX) {
  const { connect } = await serve(t, createGpio(options));
  const client = await connect();
  const irq = interrupt(t);
  await client.setIrqs({ index, eventfds: [irq.fd] });
  return { client, irq, ...driver(client) };
}

test("after reset: 16 pins, all down, nothing selected", async (t) => {
  const { read, write, client } = await start(t);
  const values = () => Promise.all([INPUT, OUTPUT, RISING, FALLING, EVENTS, PINS, 0x18, 0xffc].map(read));
  t.deepEqual(await values(), [0, 0, 0, 0, 0, 16, 0, 0]);
  for (const offset of [RISING, OUTPUT, FALLING]) await write(offset, ALL);
  await client.reset();
  t.deepEqual(await values(), [0, 0, 0, 0, 0, 16, 0, 0]);
});

test("what can be written, and what cannot", async (t) => {
  const { read, write } = await start(t);
  for (const offset of [OUTPUT, RISING, FALLING]) {
    await write(offset, ALL);
    t.is(await read(offset), 0xffff);
  }
  await write(INPUT, 0);
  t.is(await read(INPUT), 0xffff);
  await write(PINS, 0);
  t.is(await read(PINS), 16);
  await write(EVENTS, ALL);
  t.is(await read(EVENTS), 0);
});

test("inputs wired to outputs: an event for the way that is selected, and an interrupt for each new one", async (t) => {
  const { read, write, irq } = await start(t);
  await write(RISING, 0b0011);
  await write(FALLING, 0b0110);
  await write(OUTPUT, 0b1111);
  t.is(await irq.next(), 1);
  t.is(await read(INPUT), 0b1111);
  t.is(await read(EVENTS), 0b0011);
  await write(OUTPUT, 0b1110);
  await write(OUTPUT, 0b1111);
  t.is(await read(EVENTS), 0b0011);
  t.is(irq.count(), 0, "pin 0's fall is not selected, and its rise has not been cleared");
  await write(OUTPUT, 0);
  t.is(await irq.next(), 1);
  t.is(await read(EVENTS), 0b0111);
  await write(EVENTS, 0b0101);
  t.is(await read(EVENTS), 0b0010);
  await write(OUTPUT, 1);
  t.is(await irq.next(), 1);
  t.is(await read(EVENTS), 0b0011);
});

test("INTx comes again until all events are cleared", async (t) => {
  const { client, read, write, irq } = await start(t, {}, Irq.INTX);
  const unmask = () => client.setIrqs({ index: Irq.INTX, count: 1, action: "unmask" });
  await write(RISING, 3);
  await write(OUTPUT, 3);
  await irq.next();
  await write(EVENTS, 1);
  await unmask();
  t.is(await irq.next(), 1);
  await write(EVENTS, 2);
  await unmask();
  await read(EVENTS);
  t.is(irq.count(), 0);
});

test("inputs that count reads", async (t) => {
  const { read, write, irq } = await start(t, { inputs: "reads" });
  t.deepEqual([await read(INPUT), await read(INPUT), await read(INPUT)], [0, 1, 2]);
  await write(OUTPUT, 0xff);
  t.is(await read(INPUT), 3, "outputs move nothing");
  await write(RISING, 1);
  t.is(await read(INPUT), 4);
  t.is(await irq.next(), 1);
});

test("inputs that the clock moves, but not while the device is paused", async (t) => {
  const [here, there] = [
    await start(t, { inputs: "time", periodMs: 1 }),
    await start(t, { inputs: "time", periodMs: 1 }),
  ];
  const next = async ({ write, irq }: typeof here) => {
    await write(EVENTS, ALL);
    irq.count();
    await irq.next();
  };
  await here.write(RISING, ALL);
  await there.write(RISING, ALL);
  await next(here);
  const { migration } = here.client;
  await migration.setState(MigrationState.STOP_COPY);
  const first = await migration.readAll();
  // Another device's clock goes on.
  await there.write(RISING, ALL);
  await next(there);
  await migration.setState(MigrationState.STOP);
  await migration.setState(MigrationState.STOP_COPY);
  t.deepEqual(await migration.readAll(), first);
  await migration.setState(MigrationState.RUNNING);
  await next(here);
  await here.client.reset();
  await here.write(RISING, ALL);
  await next(here);
});

test("options that will not do", (t) => {
  const bad = [{ inputs: "buttons" }, { inputs: "toString" }, { periodMs: 0 }, { periodMs: 1.5 }, { periodMs: 1e9 }];
  for (const options of bad) t.throws(() => createGpio(options), { instanceOf: UserError });
});
