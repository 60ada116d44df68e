/** Register memory at the bridge: when reads come from it, and device processes that ask for what cannot be. */
import test from "ava";
import { Errno } from "../../shared/errors.js";
import { MiB } from "../../shared/limits.js";
import {
  AllocateRegisters,
  LinkCommand,
  NO_REGION,
  RegisterArea,
  RegisterMemoryHead,
  RegistersAllocated,
} from "../../shared/spec/link.js";
import { Command, Region } from "../../shared/spec/vfio-user.js";
import type { Client } from "../../shared/vfio-user/client.js";
import type { FrontEnd } from "../fakes/front-end.js";
import { WINDOW_BAR } from "../fakes/front-end-config.js";
import { BAR_SIZE, message, type TestDevice } from "../fakes/front-end-device.js";
import { setUp } from "./set-up.js";
import { allocateMemory, PARTS, refusal, registersBody } from "./sharing-set-up.js";

const { ALLOCATE_REGISTERS } = LinkCommand;

/** The device process starts again, with 16 registers of BAR 0, each with 0x5a in memory and 0 in the device. */
async function startWithRegisters(frontEnd: FrontEnd, device: TestDevice) {
  device.start();
  const reply = await device.request(ALLOCATE_REGISTERS, new Uint8Array(registersBody(Region.BAR0)));
  const window = frontEnd.memory(WINDOW_BAR, 0, frontEnd.windowSize);
  const memory = new DataView(window, RegistersAllocated.view(reply.data).windowOffset, 0x1000);
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

const refused: Record<string, Buffer> = {
  "an empty body": Buffer.alloc(0),
  "a part of an area": registersBody(0).subarray(0, -1),
  "more areas than there are": Buffer.concat([
    AllocateRegisters.encode({ size: 0x1000, areas: 2 }),
    RegisterArea.encode({ size: 4, place: 16 }),
  ]),
  "too many areas": Buffer.concat([
    AllocateRegisters.encode({ size: 0x1000, areas: 65 }),
    ...Array.from({ length: 65 }, () => RegisterArea.encode({ size: 4, place: 16 })),
  ]),
  "no memory": Buffer.from(AllocateRegisters.encode({ size: 0, areas: 0 })),
  "memory that is not in pages": Buffer.from(AllocateRegisters.encode({ size: 0x1001, areas: 0 })),
  "too much memory": Buffer.from(AllocateRegisters.encode({ size: 0x11000, areas: 0 })),
  "registers in the head": registersBody(0, { place: 12 }),
  "registers outside of the memory": registersBody(0, { place: 0xff1 }),
  "registers far outside": registersBody(0, { place: 0xffff_fff0 }),
  "registers of 4 GiB": registersBody(0, { size: 0xffff_ffff }),
};
for (const [name, body] of Object.entries(refused)) {
  test(`a device process that asks for ${name} breaks the link, and may start again`, async (t) => {
    const { frontEnd, device, connect, bridge } = await setUp(t);
    device.start();
    device.sendRaw(message(1, ALLOCATE_REGISTERS, 0, new Uint8Array(body)));
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
    await device.request(ALLOCATE_REGISTERS, new Uint8Array(registersBody(Region.BAR0, fields)));
    const hello = await device.request(LinkCommand.HELLO, device.hello());
    t.is(hello.errno, Errno.EINVAL);
    await startWithRegisters(frontEnd, device);
    t.is(await readByte(await connect()), 0x5a);
  });
}

test("there is register memory once, and beside other memory", async (t) => {
  const { frontEnd, device, connect } = await setUp(t);
  device.start();
  await allocateMemory(device, Region.BAR0, PARTS);
  t.is((await device.request(ALLOCATE_REGISTERS, new Uint8Array(registersBody(0)))).errno, 0);
  t.is((await device.request(ALLOCATE_REGISTERS, new Uint8Array(registersBody(0)))).errno, Errno.EEXIST);
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  const client = await connect();
  // It is not valid yet.
  t.is(await readByte(client), 0);
  t.deepEqual(frontEnd.complaints, []);
});

test("a window without room has none, and the device works all the same", async (t) => {
  const { device, connect } = await setUp(t, { windowSize: "1M" });
  device.start();
  await allocateMemory(device, NO_REGION, [{ offset: 0, size: MiB }]);
  t.is((await device.request(ALLOCATE_REGISTERS, new Uint8Array(registersBody(0)))).errno, Errno.ENOSPC);
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
