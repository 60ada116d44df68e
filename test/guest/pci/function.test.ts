/** A function with every kind of interrupt, BAR and reset, through a vfio-user socket. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { close, eventfd, eventfdRead } from "../../../native/index.js";
import { quietLog } from "../../../shared/log.js";
import { CommandBits, Header, StatusBits } from "../../../shared/spec/pci.js";
import { Irq, IrqInfoFlags, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { EveryKindDevice, ROM } from "../../fakes/every-kind-device.js";

const PM_CONTROL = 0x44;
const EXPRESS_CONTROL = 0x50;
const MSI = 0x84;

async function setUp(t: ExecutionContext) {
  const directory = mkdtempSync(join(tmpdir(), "vvu-"));
  const link = new LocalLink({ socket: join(directory, "device.sock"), log: quietLog });
  const device = new EveryKindDevice();
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  const client = await Client.connect(join(directory, "device.sock"));
  t.teardown(async () => {
    client.close();
    await link.close();
    await endpoint.close();
    rmSync(directory, { recursive: true });
  });
  const write = (offset: number, ...bytes: number[]) =>
    client.regionWrite(Region.CONFIG, offset, Uint8Array.from(bytes));
  const read = async (offset: number) => Buffer.from(await client.regionRead(Region.CONFIG, offset, 2)).readUInt16LE();
  const trigger = (vector: number) => device.context?.interrupts.trigger(vector);
  return { client, device, endpoint, write, read, trigger };
}

function eventfds(t: ExecutionContext, count: number): number[] {
  const fds = Array.from({ length: count }, () => eventfd(0));
  t.teardown(() => fds.forEach(close));
  return fds;
}

test("regions and interrupts are as declared; only memory is posted", async (t) => {
  const { client, endpoint } = await setUp(t);
  const regions = await Promise.all(Array.from({ length: 9 }, (_, index) => client.getRegionInfo(index)));
  t.deepEqual(
    regions.map(({ size }) => size),
    [0x100, 0x1000, 0x2000, 0, 0, 0, 4096, 4096, 0],
  );
  t.deepEqual(
    regions.map(({ flags }) => flags),
    [3, 3, 3, 0, 0, 0, 1, 3, 0],
  );
  t.is(endpoint.summary.postedRegions, 0b110);
  t.deepEqual(endpoint.summary.irqCounts, [1, 4, 0, 1, 1]);
  t.like(await client.getIrqInfo(Irq.MSI), { count: 4, flags: IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE });
});

test("the ROM is read like memory, ignores writes, and never asks the device", async (t) => {
  const { client, device } = await setUp(t);
  const whole = await client.regionRead(Region.ROM, 0, 4096);
  t.deepEqual(whole.subarray(0, ROM.length), ROM);
  t.true(whole.subarray(ROM.length).every((byte) => byte === 0xff));
  t.deepEqual(await client.regionRead(Region.ROM, 1, 13), ROM.subarray(1, 14));
  await client.regionWrite(Region.ROM, 0, Uint8Array.of(9, 9, 9, 9));
  t.deepEqual(await client.regionRead(Region.ROM, 0, 4), ROM.subarray(0, 4));
  await t.throwsAsync(client.regionRead(Region.ROM, 4095, 2));
  t.deepEqual(device.accesses, []);
});

test("an I/O BAR's accesses are the device's", async (t) => {
  const { client, device } = await setUp(t);
  await client.regionWrite(Region.BAR0, 0xfe, Uint8Array.of(1, 2));
  await client.regionRead(Region.BAR0, 3, 1);
  t.deepEqual(device.accesses, ["w2 0:254=513", "r1 0:3"]);
});

test("MSI: the driver VM has fewer vectors than the device wants, and masks one", async (t) => {
  const { client, write, trigger } = await setUp(t);
  const [first, second] = eventfds(t, 2);
  await write(MSI + 2, 0x11, 0);
  await client.setIrqs({ index: Irq.MSI, eventfds: [first, second] });
  trigger(3);
  t.is(eventfdRead(second), 1);
  await write(MSI + 0x10, 0x02);
  trigger(1);
  t.is(eventfdRead(second), 0);
  const pending = async () => (await client.regionRead(Region.CONFIG, MSI + 0x14, 1))[0];
  t.is(await pending(), 2);
  await write(MSI + 0x10, 0);
  t.is(eventfdRead(second), 1);
  t.is(await pending(), 0);
  t.is(eventfdRead(first), 0);
});

test("INTx: the disable bit holds it back, the status bit tells of it", async (t) => {
  const { client, write, read, trigger } = await setUp(t);
  const [fd] = eventfds(t, 1);
  await client.setIrqs({ index: Irq.INTX, eventfds: [fd] });
  await write(Header.COMMAND, 0, CommandBits.INTX_DISABLE >> 8);
  trigger(0);
  t.is(eventfdRead(fd), 0);
  t.is(await read(Header.STATUS), StatusBits.INTERRUPT | StatusBits.CAPABILITIES_LIST);
  await write(Header.COMMAND + 1, 0);
  t.is(eventfdRead(fd), 1);
  await client.setIrqs({ index: Irq.INTX, action: "unmask", count: 1 });
  t.is(await read(Header.STATUS), StatusBits.CAPABILITIES_LIST);
});

test("function-level reset, and leaving D3hot, reset the device and config space before the reply", async (t) => {
  const { device, write, read } = await setUp(t);
  await write(Header.COMMAND, 7);
  await write(EXPRESS_CONTROL, 0x10, 0xa8);
  t.is(device.resets, 1);
  t.is(await read(Header.COMMAND), 0);
  t.is(await read(EXPRESS_CONTROL), 0x2810);
  await write(Header.COMMAND, 7);
  await write(PM_CONTROL, 3);
  t.is(await read(PM_CONTROL), 3);
  t.is(device.resets, 1);
  await write(PM_CONTROL, 0);
  t.is(device.resets, 2);
  t.is(await read(Header.COMMAND), 0);
});
