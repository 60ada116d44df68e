/** edu against its data sheet, over a vfio-user socket: what QEMU's docs/specs/edu.rst says a driver sees. */
import { readFileSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { createEdu } from "../../../guest/devices/edu/index.js";
import { DEVICES } from "../../../guest/devices/index.js";
import { UserError } from "../../../shared/errors.js";
import { MiB } from "../../../shared/limits.js";
import { StatusBits } from "../../../shared/spec/pci.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { memory } from "../link/machine.js";
import { driver, interrupt, serve } from "./serve.js";

const [IDENTIFICATION, LIVENESS, FACTORIAL, STATUS] = [0x00, 0x04, 0x08, 0x20];
const [INTERRUPT_STATUS, RAISE, ACK] = [0x24, 0x60, 0x64];
const [SOURCE, TARGET, COUNT, COMMAND] = [0x80, 0x88, 0x90, 0x98];
const [COMPUTING, INTERRUPT_WHEN_DONE] = [0x01, 0x80];
const [RUN, TO_MEMORY, INTERRUPT] = [1, 2, 4];
const BUFFER = 0x40000;
const BASE = 1 * MiB;
const SIZE = 1 * MiB;
const STATUS_REGISTER = 6;

/** The device takes its time until the test says so: `finish` ends what is in flight. */
async function setUp(t: ExecutionContext, dmaBits?: number) {
  const delays: (() => void)[] = [];
  const delay = () =>
    new Promise<void>((resolve) => {
      delays.push(resolve);
    });
  const { connect, endpoint } = await serve(t, createEdu(dmaBits, delay));
  // Before serve's own teardown: a reset waits for what is in flight.
  t.teardown(() => finish());
  const client = await connect();
  const { fd, bytes } = memory(t, SIZE);
  await client.mapMemory({ address: BASE, size: SIZE, fd });
  const { read, write, enable } = driver(client);
  await enable();
  const finish = () => {
    for (const resolve of delays.splice(0)) resolve();
  };
  /** Resolves when the bits of a register are clear. */
  const clear = async (register: number, bits: number) => {
    while ((await read(register)) & bits) finish();
  };
  const write64 = (offset: number, value: number) =>
    client.regionWrite(Region.BAR0, offset, new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  const transfer = async (source: number, target: number, count: number, command: number) => {
    await write64(SOURCE, source);
    await write64(TARGET, target);
    await write64(COUNT, count);
    await write(COMMAND, command | RUN);
    await clear(COMMAND, RUN);
  };
  return { client, endpoint, bytes, read, write, write64, finish, clear, transfer };
}

const source = (path: string) => readFileSync(new URL(`../../../../${path}`, import.meta.url), "utf8");

test("it is as short as it says", (t) => {
  const lines = (text: string) => text.split("\n").length;
  const entry = source("guest/devices/index.ts").match(/^ {2}edu: \{\n.*?^ {2}\},$/ms);
  if (entry === null) return t.fail();
  t.true(lines(source("guest/devices/edu/index.ts").trimEnd()) + lines(entry[0]) <= 100);
});

test("config space: QEMU's numbers, one memory BAR of 1 MiB, INTx and one MSI vector", async (t) => {
  const { client } = await setUp(t);
  const config = Buffer.from(await client.regionRead(Region.CONFIG, 0, 64));
  t.is(config.readUInt32LE(0), 0x11e81234);
  t.is(config.readUInt32LE(8), 0x00ff0010);
  t.is(config[0x3d], 1);
  const regions = await Promise.all([0, 1, 2, 3, 4, 5, 6].map((index) => client.getRegionInfo(index)));
  t.deepEqual(
    regions.map(({ size }) => size),
    [MiB, 0, 0, 0, 0, 0, 0],
  );
  const counts = await Promise.all([Irq.INTX, Irq.MSI, Irq.MSIX].map((index) => client.getIrqInfo(index)));
  t.deepEqual(
    counts.map(({ count }) => count),
    [1, 1, 0],
  );
});

test("identification is read-only, liveness inverts", async (t) => {
  const { read, write } = await setUp(t);
  await write(IDENTIFICATION, 0);
  t.is(await read(IDENTIFICATION), 0x010000ed);
  t.is(await read(LIVENESS), 0);
  for (const value of [0, 0x12345678, 0xffffffff]) {
    await write(LIVENESS, value);
    t.is(await read(LIVENESS), ~value >>> 0);
  }
});

test("a factorial: the status says that it is in progress, and nothing disturbs it", async (t) => {
  const { read, write, finish, clear } = await setUp(t);
  await write(FACTORIAL, 5);
  t.is(await read(STATUS), COMPUTING);
  await write(FACTORIAL, 7);
  await write(STATUS, 0);
  t.is(await read(STATUS), COMPUTING);
  t.is(await read(FACTORIAL), 5);
  finish();
  await clear(STATUS, COMPUTING);
  t.is(await read(FACTORIAL), 120);
  t.is(await read(INTERRUPT_STATUS), 0);
});

test("factorials modulo 2^32, the largest too", async (t) => {
  const { read, write, clear } = await setUp(t);
  for (const [n, expected] of [
    [0, 1],
    [1, 1],
    [12, 479001600],
    [13, 1932053504],
    [33, 2147483648],
    [34, 0],
    [0xffffffff, 0],
  ]) {
    await write(FACTORIAL, n);
    await clear(STATUS, COMPUTING);
    t.is(await read(FACTORIAL), expected, `${n}!`);
  }
});

test("MSI: raised, acknowledged, and at the end of a factorial", async (t) => {
  const { client, read, write, finish } = await setUp(t);
  const msi = interrupt(t);
  await client.setIrqs({ index: Irq.MSI, eventfds: [msi.fd] });
  await write(RAISE, 0x10);
  t.is(await msi.next(), 1);
  await write(RAISE, 0x02);
  t.is(await msi.next(), 1);
  t.is(await read(INTERRUPT_STATUS), 0x12);
  t.is(await read(RAISE), 0);
  await write(ACK, 0x10);
  t.is(await read(INTERRUPT_STATUS), 0x02);
  await write(ACK, 0xffffffff);
  t.is(await read(INTERRUPT_STATUS), 0);
  t.is(msi.count(), 0);
  await write(STATUS, 0xff);
  t.is(await read(STATUS), INTERRUPT_WHEN_DONE);
  await write(FACTORIAL, 4);
  t.is(await read(STATUS), INTERRUPT_WHEN_DONE | COMPUTING);
  finish();
  t.is(await msi.next(), 1);
  t.is(await read(INTERRUPT_STATUS), 1);
  t.is(await read(FACTORIAL), 24);
});

test("INTx: a level, up until every cause is acknowledged", async (t) => {
  const { client, write } = await setUp(t);
  const intx = interrupt(t);
  const asserted = async () => {
    const status = Buffer.from(await client.regionRead(Region.CONFIG, STATUS_REGISTER, 2)).readUInt16LE();
    return (status & StatusBits.INTERRUPT) !== 0;
  };
  const unmask = () => client.setIrqs({ index: Irq.INTX, action: "unmask", count: 1 });
  await client.setIrqs({ index: Irq.INTX, eventfds: [intx.fd] });
  await write(RAISE, 0x3);
  t.is(await intx.next(), 1);
  await write(ACK, 0x1);
  t.true(await asserted());
  await unmask();
  t.is(await intx.next(), 1, "one cause is left");
  await write(ACK, 0x2);
  t.false(await asserted());
  await unmask();
  t.is(intx.count(), 0);
  await write(RAISE, 0);
  t.is(intx.count(), 0);
});

test("DMA to the buffer and back, with an interrupt", async (t) => {
  const { client, bytes, read, write, transfer } = await setUp(t);
  const msi = interrupt(t);
  await client.setIrqs({ index: Irq.MSI, eventfds: [msi.fd] });
  for (let n = 0; n < 4096; n++) bytes[n + 5] = n * 11;
  await transfer(BASE + 5, BUFFER, 4096, 0);
  t.is(msi.count(), 0);
  await transfer(BUFFER, BASE + 0x8003, 4096, TO_MEMORY | INTERRUPT);
  t.is(await msi.next(), 1);
  t.is(await read(INTERRUPT_STATUS), 0x100);
  t.is(await read(COMMAND), TO_MEMORY | INTERRUPT);
  t.deepEqual(bytes.subarray(0x8003, 0x9003), bytes.subarray(5, 4101));
  await write(ACK, 0x100);
  await transfer(BUFFER + 100, BASE, 3, TO_MEMORY);
  t.deepEqual(bytes.slice(0, 4), Uint8Array.of(...bytes.subarray(105, 108), 0));
});

test("the buffer and the DMA registers are left alone while a DMA is in flight", async (t) => {
  const { bytes, read, write, write64, clear } = await setUp(t);
  bytes.set([1, 2, 3, 4]);
  await write64(SOURCE, BASE);
  await write64(TARGET, BUFFER);
  await write64(COUNT, 4);
  await write(COMMAND, RUN);
  await write64(SOURCE, 0);
  await write(COUNT, 0);
  await write(COMMAND, RUN | TO_MEMORY);
  t.deepEqual([await read(SOURCE), await read(COUNT), await read(COMMAND)], [BASE, 4, RUN]);
  await clear(COMMAND, RUN);
  await write64(SOURCE, BUFFER);
  await write64(TARGET, BASE + 0x100);
  await write(COMMAND, RUN | TO_MEMORY);
  await clear(COMMAND, RUN);
  t.deepEqual([...bytes.subarray(0x100, 0x105)], [1, 2, 3, 4, 0]);
});

test("DMA that cannot be: it ends, with its interrupt, and moves nothing", async (t) => {
  const { client, bytes, read, transfer, endpoint } = await setUp(t);
  const msi = interrupt(t);
  await client.setIrqs({ index: Irq.MSI, eventfds: [msi.fd] });
  bytes.fill(7);
  const buffer = async () => {
    await transfer(BUFFER, BASE + 0x1000, 4096, TO_MEMORY);
    return bytes.slice(0x1000, 0x2000);
  };
  for (const [what, source, target, count, command] of [
    ["memory that is not mapped", 0x10_0000_00, BUFFER, 16, 0],
    ["memory that is not mapped", BUFFER, BASE + SIZE, 16, TO_MEMORY],
    ["before the buffer", BASE, BUFFER - 1, 16, 0],
    ["past the buffer", BASE, BUFFER + 4090, 7, 0],
    ["past the buffer", BUFFER + 1, BASE, 4096, TO_MEMORY],
    ["far past the buffer", BASE, 2 ** 52, 16, 0],
    ["too much", BASE, BUFFER, 2 ** 52, 0],
    ["both in memory", BASE, BASE + 0x100, 16, 0],
  ] as const) {
    await transfer(source, target, count, command | INTERRUPT);
    t.is(await msi.next(), 1, what);
    t.is(await read(COMMAND), command | INTERRUPT, what);
  }
  t.true(bytes.every((byte) => byte === 7));
  t.deepEqual(await buffer(), new Uint8Array(4096));
  t.like(endpoint.inspect(), { jobs: { failed: 2, running: 0 } });
});

test("a DMA that reaches into unmapped memory, by its last byte", async (t) => {
  const { read, transfer, endpoint } = await setUp(t);
  await transfer(BASE + SIZE - 15, BUFFER, 16, 0);
  t.is(await read(COMMAND), 0);
  t.like(endpoint.inspect(), { jobs: { failed: 1 } });
});

test("address bits above the 28th do not count, unless it is made with more", async (t) => {
  const high = 0x3_0000_0000;
  const narrow = await setUp(t);
  narrow.bytes.set([9, 8, 7]);
  await narrow.transfer(high + BASE, BUFFER, 3, 0);
  await narrow.transfer(BUFFER, BASE + 0x100, 3, TO_MEMORY);
  t.deepEqual([...narrow.bytes.subarray(0x100, 0x103)], [9, 8, 7]);
  const wide = await setUp(t, 40);
  await wide.transfer(high + BASE, BUFFER, 3, 0);
  t.like(wide.endpoint.inspect(), { jobs: { failed: 1 } });
});

test("a reset in the middle of everything: it waits, and all is as at power-on", async (t) => {
  const { client, bytes, read, write, write64, finish, transfer, endpoint } = await setUp(t);
  bytes.fill(3);
  await transfer(BASE, BUFFER, 4096, 0);
  const msi = interrupt(t);
  await client.setIrqs({ index: Irq.MSI, eventfds: [msi.fd] });
  await write(STATUS, INTERRUPT_WHEN_DONE);
  await write(FACTORIAL, 3);
  await write64(SOURCE, BASE);
  await write64(TARGET, BUFFER);
  await write64(COUNT, 16);
  await write(COMMAND, RUN);
  t.like(endpoint.inspect(), { jobs: { running: 2 }, registers: { 0: { STATUS: "0x81", COMMAND: "0x1" } } });
  const reset = client.reset();
  finish();
  await reset;
  for (const register of [LIVENESS, FACTORIAL, STATUS, INTERRUPT_STATUS, SOURCE, TARGET, COUNT, COMMAND]) {
    t.is(await read(register), 0);
  }
  const { enable } = driver(client);
  await enable();
  await transfer(BUFFER, BASE + 0x1000, 4096, TO_MEMORY);
  t.deepEqual(bytes.slice(0x1000, 0x2000), new Uint8Array(4096));
});

test("the command line makes it, and takes numbers only", async (t) => {
  const { edu } = DEVICES;
  t.is((await edu.create({ "dma-bits": "0x20" })).identity.deviceId, 0x11e8);
  await t.throwsAsync(edu.create({ "dma-bits": "many" }), { instanceOf: UserError });
});
