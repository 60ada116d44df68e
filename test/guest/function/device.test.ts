/**
 * What an author gets: register files by BAR, jobs that reset, quiesce and pause wait for, and defaults for the rest.
 */
import test from "ava";
import { pino } from "pino";
import { type Device, type DeviceContext, DmaError } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { RegisterFile } from "../../../guest/pci/registers.js";
import { Errno } from "../../../shared/errors.js";
import { MAX_JOBS, MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { driver, serve } from "../devices/serve.js";
import { memory } from "../link/machine.js";

const ALL = 0xffff_ffff;

/** A device whose every promise can be seen, and held up. START begins a job, which ends when the test says so. */
function toy() {
  const events: string[] = [];
  const endings: (() => void)[] = [];
  let context: DeviceContext | undefined;
  const registers = new RegisterFile(0x10, {
    VALUE: { offset: 0x0, size: 4, reset: 7, writable: ALL },
    START: { offset: 0x4, size: 4, onWrite: (_value, _previous, written) => context?.run(() => work(written)) },
    DONE: { offset: 0x8, size: 4 },
  });
  async function work(number: number): Promise<void> {
    events.push(`begin ${number}`);
    await new Promise<void>((resolve) => {
      endings.push(resolve);
    });
    events.push(`end ${number}`);
    registers.set("DONE", number);
  }
  const device: Device = {
    identity: {
      vendorId: 0xfff4,
      deviceId: 9,
      classCode: 0xff0000,
      bars: { 0: { size: 0x1000 }, 2: { size: 0x1000 } },
    },
    registers: { 0: registers },
    start(given) {
      context = given;
    },
    reset() {
      events.push(`reset ${registers.get("VALUE")} ${registers.get("DONE")}`);
    },
    quiesce() {
      events.push("quiesce");
    },
    resume() {
      events.push("resume");
    },
    inspect: () => ({ waiting: endings.length }),
  };
  /** Ends the oldest job. */
  const endJob = () => endings.shift()?.();
  const run: DeviceContext["run"] = (job) => context?.run(job);
  const started = () => {
    if (context === undefined) throw new Error("not started");
    return context;
  };
  return { device, registers, events, endJob, run, context: started };
}

/** Whether a promise has resolved when everything that can go on has gone on. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  void promise.then(() => {
    settled = true;
  });
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  return settled;
}

test("registers answer for the start of their BAR, the device for the rest, zeros where it does not", async (t) => {
  const { device, registers } = toy();
  const { connect } = await serve(t, device);
  const client = await connect();
  const { read, write } = driver(client);
  t.is(await read(0), 7);
  await client.regionWrite(Region.BAR0, 1, Uint8Array.of(0xaa, 0xbb, 0xcc));
  t.is(registers.get("VALUE"), 0xccbbaa07);
  t.is(await read(0x10), 0);
  await write(0x10, 5);
  t.deepEqual([...(await client.regionRead(Region.BAR2, 0, 3))], [0, 0, 0]);
  device.readBar = (bar, offset, size) => bar * 256 + offset * 16 + size;
  t.is(await read(0x10), 0x104);
  t.is(Buffer.from(await client.regionRead(Region.BAR2, 2, 2)).readUInt16LE(), 0x222);
});

test("registers that are in no BAR are the author's bug", (t) => {
  const link = new LocalLink({ socket: "/nowhere", log: quietLog });
  t.teardown(() => link.close());
  const make = (bar: number, size: number) => {
    const { device } = toy();
    return new DeviceEndpoint({ ...device, registers: { [bar]: new RegisterFile(size, {}) } }, link, quietLog);
  };
  t.notThrows(() => make(0, 0x1000));
  t.throws(() => make(0, 0x1004), { instanceOf: RangeError });
  t.throws(() => make(0, 6), { instanceOf: RangeError });
  t.throws(() => make(1, 4), { instanceOf: RangeError });
  t.throws(() => make(6, 4), { instanceOf: RangeError });
});

test("a reset waits for jobs, drops those that come then, and resets the registers behind the device", async (t) => {
  const { device, registers, events, endJob, run } = toy();
  const { connect } = await serve(t, device);
  const client = await connect();
  const { read, write } = driver(client);
  await write(0, 1);
  await write(4, 1);
  const reset = client.reset();
  t.false(await isSettled(reset));
  run(() => void events.push("too late"));
  endJob();
  await reset;
  t.deepEqual(events, ["begin 1", "end 1", "reset 1 1"]);
  t.is(await read(0), 7);
  t.is(registers.get("DONE"), 0);
  await write(4, 3);
  endJob();
  t.is(events.at(-1), "begin 3");
});

test("unmapping waits for the jobs of before and for the device", async (t) => {
  const { device, events, endJob, run } = toy();
  const { connect } = await serve(t, device);
  const client = await connect();
  const { write } = driver(client);
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: MiB, size: MiB, fd });
  await write(4, 1);
  const unmap = client.unmapMemory(MiB, MiB);
  t.false(await isSettled(unmap));
  let endOther = () => {};
  run(
    () =>
      new Promise((resolve) => {
        endOther = resolve;
      }),
  );
  endJob();
  await unmap;
  t.deepEqual(events, ["begin 1", "quiesce", "end 1"]);
  endOther();
});

test("a pause waits for jobs; new ones begin after the resumption, the device's first", async (t) => {
  const { device, events, endJob } = toy();
  const { connect, endpoint } = await serve(t, device);
  const client = await connect();
  const { write } = driver(client);
  await write(4, 1);
  const pause = endpoint.callbacks.pause();
  t.false(await isSettled(pause));
  endJob();
  await pause;
  await write(4, 2);
  t.deepEqual(events.splice(0), ["begin 1", "quiesce", "end 1"]);
  await endpoint.callbacks.resume();
  await endpoint.callbacks.resume();
  t.deepEqual(events.splice(0), ["resume", "begin 2"]);
  device.pause = () => void events.push("pause");
  const second = endpoint.callbacks.pause();
  endJob();
  await second;
  t.deepEqual(events.splice(0), ["pause", "end 2"], "a device that has a pause is not told to quiesce");
  await write(4, 3);
  await client.reset();
  t.deepEqual(events, ["reset 7 2", "resume"], "a reset ends the pause and drops what waited");
});

test("a job that fails is logged: an address as the driver VM's mistake, the rest as the device's", async (t) => {
  const lines: { level: number; failed?: number }[] = [];
  const log = pino({ level: "warn" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const { device, run } = toy();
  const { connect, endpoint } = await serve(t, device, log);
  const client = await connect();
  run(() => {
    throw new Error("a bug");
  });
  for (let n = 0; n < 6; n++) run(() => Promise.reject(new DmaError(0x1000, 4, "read")));
  run(async () => {
    throw new Error("another");
  });
  await client.reset();
  t.deepEqual(
    lines.map(({ level, failed }) => [level, failed]),
    [
      [50, 1],
      [40, 2],
      [40, 3],
      [40, 4],
      [40, 5],
      [40, 6],
      [40, 7],
      [50, 8],
    ],
  );
  t.like(endpoint.inspect(), { jobs: { running: 0, failed: 8 } });
});

test("jobs are bounded", async (t) => {
  const { device, endJob } = toy();
  const { connect, endpoint } = await serve(t, device);
  const client = await connect();
  const { write } = driver(client);
  for (let n = 0; n < MAX_JOBS + 3; n++) await write(4, n);
  t.like(endpoint.inspect(), { jobs: { running: MAX_JOBS, dropped: 3 }, device: { waiting: MAX_JOBS } });
  for (let n = 0; n < MAX_JOBS; n++) endJob();
  await client.reset();
  t.like(endpoint.inspect(), { jobs: { running: 0 } });
});

test("a reset aborts the jobs of before: their DMA fails, which is no mistake of anybody's", async (t) => {
  const lines: string[] = [];
  const log = pino({ level: "warn" }, { write: (line: string) => void lines.push(line) });
  const { device, run, context } = toy();
  const { connect } = await serve(t, device, log);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: MiB, size: MiB, fd });
  await driver(client).enable();
  const signals: AbortSignal[] = [];
  const untilAborted = async (signal: AbortSignal) => {
    signals.push(signal);
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
  };
  run(async (signal) => {
    await untilAborted(signal);
    await context().dma.write(MiB, new Uint8Array(8));
  });
  run(async (signal) => {
    await untilAborted(signal);
    signal.throwIfAborted();
  });
  await client.reset();
  run((signal) => void signals.push(signal));
  t.deepEqual(
    signals.map(({ aborted }) => aborted),
    [true, true, false],
  );
  t.deepEqual(lines, []);
});

test("a device of registers alone has nothing else to write", async (t) => {
  const registers = new RegisterFile(4, { ID: { offset: 0, size: 4, reset: 0x1234 } });
  const identity = { vendorId: 0xfff4, deviceId: 10, classCode: 0xff0000, bars: { 0: { size: 16 } } };
  const { connect, endpoint } = await serve(t, { identity, registers: { 0: registers } });
  const client = await connect();
  const { read, write } = driver(client);
  await write(0, ALL);
  await write(8, ALL);
  t.is(await read(0), 0x1234);
  t.is(await read(8), 0);
  await client.reset();
  await endpoint.callbacks.pause();
  await endpoint.callbacks.resume();
  await t.throwsAsync(client.regionRead(Region.BAR0, 14, 4), { message: new RegExp(`errno ${Errno.EINVAL}`) });
  t.like(endpoint.inspect(), { registers: { 0: { ID: "0x1234" } } });
});
