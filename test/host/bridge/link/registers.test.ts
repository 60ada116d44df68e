/** Register memory at the bridge: when reads come from it, and device processes that ask for what cannot be. */
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { LinkCommand, RegisterArea, RegisterMemoryHead, ShareRegisters } from "../../../../shared/spec/link.js";
import { Command, Region } from "../../../../shared/spec/vfio-user.js";
import type { Client } from "../../../../shared/vfio-user/client/client.js";
import type { FrontEnd } from "../../../fakes/front-end.js";
import { BAR_SIZE, message, type TestDevice } from "../../../fakes/front-end-device.js";
import { setUp } from "../set-up.js";
import { allocateMemory, PARTS, refusal, registersBody } from "./sharing-set-up.js";

const { SHARE_REGISTERS } = LinkCommand;

/** The device process starts again, with 16 registers of BAR 0, each with 0x5a in memory and 0 in the device. */
async function startWithRegisters(frontEnd: FrontEnd, device: TestDevice) {
  device.start();
  const { buffer, address } = frontEnd.allocate(0x1000);
  await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(address, Region.BAR0)));
  const memory = new DataView(buffer);
  for (let n = 0; n < 16; n++) memory.setUint8(RegisterMemoryHead.size + n, 0x5a);
  const head = RegisterMemoryHead.view(memory);
  head.valid = 1;
  const { errno } = await device.request(LinkCommand.HELLO, device.hello());
  if (errno !== 0) throw new Error(`HELLO: errno ${errno}`);
  return head;
}

const HAS_CLIENT = /"msg":"the device has the client"/;
const readByte = async (client: Client, offset = 0) => (await client.regionRead(Region.BAR0, offset, 1))[0];
const writeByte = (client: Client, offset = 0) => client.regionWrite(Region.BAR0, offset, Uint8Array.of(7));

test("reads come from memory while it is valid, and no write is on its way", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const head = await startWithRegisters(frontEnd, device);
  const client = await connect();
  t.is(await readByte(client), 0x5a);
  t.is(await readByte(client, 15), 0x5a);
  t.is(await readByte(client, 16), 0);
  head.valid = 0;
  t.is(await readByte(client), 0);
  head.valid = 1;
  await writeByte(client);
  t.is(head.writesSent, 1);
  t.is(await readByte(client), 7);
  head.writesDone = 1;
  t.is(await readByte(client), 0x5a);
  // A client that comes anew: all that was sent is dealt with.
  await writeByte(client);
  client.close();
  const next = await connect();
  t.is(head.writesSent, head.writesDone);
  t.is(await readByte(next), 0x5a);
});

test("without the device process they are all ones, and the next one has memory of its own", async (t) => {
  const { frontEnd, device, connect, bridge } = await setUp(t);
  const head = await startWithRegisters(frontEnd, device);
  const client = await connect();
  t.is(await readByte(client), 0x5a);
  await device.request(LinkCommand.QUIESCE);
  head.valid = 1;
  t.is(await readByte(client), 0xff);
  await device.startAndGreet();
  await bridge.logged(HAS_CLIENT, 2);
  t.is(await readByte(client), 0);
  await device.request(LinkCommand.QUIESCE);
  const again = await startWithRegisters(frontEnd, device);
  await bridge.logged(HAS_CLIENT, 3);
  t.deepEqual([again.writesSent, again.writesDone], [0, 0]);
  t.is(await readByte(client), 0x5a);
  const fds = bridge.fds();
  for (let n = 0; n < 5; n++) {
    await device.request(LinkCommand.QUIESCE);
    t.is(await readByte(client), 0xff);
    await startWithRegisters(frontEnd, device);
    await bridge.logged(HAS_CLIENT, 4 + n);
    t.is(await readByte(client), 0x5a);
  }
  t.deepEqual(bridge.fds().length, fds.length);
  // A broken process is not asked, nor is its memory.
  device.sendRaw(message(0, Command.DMA_MAP, 0));
  await bridge.logged(/broke the link/);
  t.is(await readByte(client), 0xff);
});

test("while the VM is paused for long they are as they were, whatever was written or reset meanwhile", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const head = await startWithRegisters(frontEnd, device);
  const client = await connect();
  frontEnd.pause();
  t.is(await readByte(client), 0x5a);
  await writeByte(client);
  t.is(head.writesSent, 1, "promised");
  t.is(await readByte(client), 0x5a, "after a while");
  t.is(await readByte(client, 16), 0xff);
  frontEnd.resume();
  t.is(await readByte(client), 7);
  head.writesDone = 1;
  frontEnd.pause();
  await t.notThrowsAsync(client.reset());
  t.is(await readByte(client), 0x5a, "a driver waits for it to change, and gives up a device that reads as all ones");
  await writeByte(client);
  frontEnd.resume();
  await client.getInfo();
  t.is(head.writesSent, head.writesDone + 1, "the write is behind the reset");
});

const shared = (fields: Parameters<typeof ShareRegisters.encode>[0], areas = 0) =>
  Buffer.concat([
    ShareRegisters.encode({ address: 0x1000, size: 0x1000, areas, ...fields }),
    ...Array.from({ length: areas }, () => RegisterArea.encode({ size: 4, place: 16 })),
  ]);
const refused: Record<string, Buffer> = {
  "an empty body": Buffer.alloc(0),
  "a part of an area": registersBody(0, 0).subarray(0, -1),
  "more areas than there are": shared({ areas: 2 }, 1),
  "too many areas": shared({}, 65),
  "no memory": shared({ size: 0 }),
  "memory without room for its head": shared({ size: 15 }),
  "too much memory": shared({ size: 0x10001 }),
  "memory that is not aligned": shared({ address: 0x1004 }),
  "registers in the head": registersBody(0, 0, { place: 12 }),
  "registers outside of the memory": registersBody(0, 0, { place: 0xff1 }),
  "registers far outside": registersBody(0, 0, { place: 0xffff_fff0 }),
  "registers of 4 GiB": registersBody(0, 0, { size: 0xffff_ffff }),
};
for (const [name, body] of Object.entries(refused)) {
  test(`a device process that asks for ${name} breaks the link, and may start again`, async (t) => {
    const { frontEnd, device, connect, bridge } = await setUp(t);
    device.start();
    device.sendRaw(message(1, SHARE_REGISTERS, 0, new Uint8Array(body)));
    await bridge.logged(/broke the link/);
    await startWithRegisters(frontEnd, device);
    t.is(await readByte(await connect()), 0x5a);
  });
}

for (const [name, fields] of Object.entries({
  "outside of its region": { offset: BAR_SIZE - 8 },
  "of no region": { region: 1 },
  "of a region that cannot be": { region: 0xffff_ffff },
  "at the end of the address space": { offset: 0xffff_fff8 },
})) {
  test(`HELLO with a register ${name} is refused`, async (t) => {
    const { frontEnd, device, connect } = await setUp(t);
    device.start();
    const { address } = frontEnd.allocate(0x1000);
    await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(address, Region.BAR0, fields)));
    const hello = await device.request(LinkCommand.HELLO, device.hello());
    t.is(hello.errno, Errno.EINVAL);
    await startWithRegisters(frontEnd, device);
    t.is(await readByte(await connect()), 0x5a);
  });
}

test("the last register memory counts, until HELLO; and it is beside other memory", async (t) => {
  const { frontEnd, device, connect, bridge } = await setUp(t);
  device.start();
  await allocateMemory(device, Region.BAR0, PARTS);
  const [first, second] = [frontEnd.allocate(0x1000), frontEnd.allocate(0x1000)];
  for (const { address } of [first, second]) {
    t.is((await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(address, 0)))).errno, 0);
  }
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  const client = await connect();
  new Uint8Array(first.buffer, RegisterMemoryHead.size, 16).fill(1);
  new Uint8Array(second.buffer, RegisterMemoryHead.size, 16).fill(2);
  RegisterMemoryHead.view(new DataView(first.buffer)).valid = 1;
  // It is not valid yet.
  t.is(await readByte(client), 0);
  RegisterMemoryHead.view(new DataView(second.buffer)).valid = 1;
  t.is(await readByte(client), 2);
  device.sendRaw(message(1, SHARE_REGISTERS, 0, new Uint8Array(registersBody(first.address, 0))));
  await bridge.logged(/broke the link/);
  t.deepEqual(frontEnd.complaints, []);
});

test("memory that is not there is refused, and the device works all the same", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  const { address } = frontEnd.allocate(0x1000);
  for (const wrong of [2 ** 40, 2 ** 53 - 8, address + 2 ** 30]) {
    device.start();
    t.is((await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(wrong, 0)))).errno, Errno.EFAULT);
  }
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  t.is(await readByte(await connect()), 0);
});

test("a read at the very moment that the device is reset is answered", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  await startWithRegisters(frontEnd, device);
  const client = await connect();
  for (let n = 0; n < 20; n++) {
    const reads = Array.from({ length: 8 }, (_, offset) => readByte(client, offset));
    const restarted = startWithRegisters(frontEnd, device);
    // From memory, from the device, or from nobody.
    for (const value of await Promise.all(reads)) t.true([0x5a, 0, 0xff].includes(value));
    await restarted;
  }
  await t.throwsAsync(client.regionRead(Region.BAR0, BAR_SIZE, 1), refusal(Errno.EINVAL));
});
