/** A device VM whose rings are behind a virtual IOMMU: what it says late, not at all, wrongly, or takes back. */
import { setTimeout as delay } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { KiB, PAGE_SIZE } from "../../../../shared/limits.js";
import { ConfigStatus, LinkCommand, Queue, RegisterMemoryHead } from "../../../../shared/spec/link.js";
import { Region } from "../../../../shared/spec/vfio-user.js";
import { IotlbAccess, IotlbType } from "../../../../shared/spec/vhost-user.js";
import type { FrontEnd } from "../../../fakes/front-end.js";
import type { TestDevice } from "../../../fakes/front-end-device.js";
import type { FakeIommu } from "../../../fakes/front-end-iommu.js";
import { deviceAnswers, readConfig, setUp } from "../set-up.js";
import { registersBody } from "./sharing-set-up.js";

const { SHARE_REGISTERS } = LinkCommand;

async function setUpIommu(t: ExecutionContext, eventIndex = false) {
  const all = await setUp(t, { iommu: true, device: { eventIndex } });
  const iommu = all.frontEnd.iommu as FakeIommu;
  return { ...all, iommu };
}

/** The pages of a queue's ring. */
const pagesOf = (device: TestDevice, queue: number): number[] => {
  const { base, descriptors, end } = device.rings[queue];
  const first = Math.floor((base + descriptors) / PAGE_SIZE);
  const count = Math.floor((base + end - 1) / PAGE_SIZE) - first + 1;
  return Array.from({ length: count }, (_, n) => (first + n) * PAGE_SIZE);
};

/** One page at a time of what the driver has. */
const pagesFrom = (address: number, bytes: number) =>
  Array.from({ length: bytes / PAGE_SIZE }, (_, n) => address + n * PAGE_SIZE);

test.serial("commands, large messages and resets", async (t) => {
  const { frontEnd, device, connect, iommu } = await setUpIommu(t);
  const client = await connect();
  await client.regionWrite(Region.BAR0, 8, Uint8Array.of(1, 2, 3));
  t.deepEqual([...(await client.regionRead(Region.BAR0, 8, 3))], [1, 2, 3]);
  t.is((await client.regionRead(Region.BAR0, 0, 8 * KiB)).length, 8 * KiB);
  const { misses } = iommu;
  for (let n = 0; n < 100; n++) await client.regionRead(Region.BAR0, 8, 3);
  t.true(iommu.misses - misses < 100, "what was asked for once is there");
  await device.request(LinkCommand.QUIESCE);
  await device.startAndGreet();
  await deviceAnswers(client);
  t.deepEqual([...(await client.regionRead(Region.BAR0, 8, 3))], [1, 2, 3]);
  t.deepEqual(frontEnd.complaints, []);
});

for (const eventIndex of [false, true]) {
  test.serial(`memory of running rings is taken back again and again, event indices ${eventIndex}`, async (t) => {
    const { device, connect, iommu } = await setUpIommu(t, eventIndex);
    const client = await connect();
    const pages = [Queue.TO_DEVICE, Queue.FROM_DEVICE].flatMap((queue) => pagesOf(device, queue));
    for (let n = 0; n < 200; n++) {
      device.bar[0] = n;
      const asked = client.regionRead(Region.BAR0, 0, 1);
      if (n % 3 === 0) await new Promise(setImmediate);
      // As intel-iommu says it: a power of two, in which other pages are live.
      const size = PAGE_SIZE << (n % 4);
      const page = pages[n % pages.length];
      iommu.invalidate(page - (page % size), size);
      t.is((await asked)[0], n & 0xff);
    }
  });
}

test.serial("all of it is taken back at once, a thousand times, in the middle of writes", async (t) => {
  const { device, connect, iommu, bridge } = await setUpIommu(t);
  const client = await connect();
  for (let n = 0; n < 1000; n++) {
    const written = client.regionWrite(Region.BAR0, n % 64, Uint8Array.of(n & 0xff));
    iommu.invalidate(0, n % 2 === 0 ? 0 : 2 ** 48);
    await written;
  }
  await client.regionRead(Region.BAR0, 0, 1);
  for (let n = 0; n < 64; n++) t.is(device.bar[n], (960 + n > 999 ? 896 + n : 960 + n) & 0xff);
  t.notRegex(bridge.log, /"level":40/);
});

test.serial("a buffer that is elsewhere by now is asked for, and where it was nothing is written", async (t) => {
  const { frontEnd, device, connect, iommu } = await setUpIommu(t);
  const client = await connect();
  const other = frontEnd.allocate(PAGE_SIZE);
  const bytes = new Uint8Array(other.buffer);
  // The buffers that the bridge has for messages: each is moved to another page while it waits.
  const { base, descriptors, view } = device.rings[Queue.TO_DEVICE];
  const buffers = Array.from({ length: 32 }, (_, n) => Number(view.getBigUint64(descriptors + 16 * n, true)));
  const moved = new Map(buffers.map((address) => [address, iommu.unmap(address) as number]));
  for (const [address, page] of moved) iommu.map(address, page);
  t.not(base, 0);
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  t.true(bytes.every((byte) => byte === 0));
});

test.serial("a buffer that the IOMMU does not have is the driver's mistake, and the link is broken", async (t) => {
  const { frontEnd, device, connect, bridge } = await setUpIommu(t);
  const client = await connect();
  const ring = device.rings[Queue.FROM_DEVICE];
  ring.add(40, { address: 0x7000_0000, length: 16 });
  device.notify(Queue.FROM_DEVICE);
  await bridge.logged(/names memory that its IOMMU does not have/);
  await bridge.logged(/"msg":"the device process broke the link"/);
  while ((readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET) === 0) await delay(1);
  await device.startAndGreet();
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
});

test.serial("answers that come late, not at all, or without what they promise", async (t) => {
  const { device, connect, iommu, bridge } = await setUpIommu(t);
  const client = await connect();
  for (const answer of ["say nothing", "promise"] as const) {
    const asked: number[] = [];
    iommu.onMiss = (iova) => {
      asked.push(iova);
      return answer;
    };
    iommu.invalidate(0, 0);
    const read = client.regionRead(Region.BAR0, 0, 1);
    while (asked.length === 0) await delay(1);
    await delay(50);
    iommu.onMiss = () => "answer";
    // A front-end that says nothing sends it after all.
    if (answer === "say nothing") for (const iova of asked) iommu.update(iova);
    t.is((await read).length, 1);
  }
  await bridge.logged(/has not sent what its IOMMU has: asking again/);
  t.true(device.received.length > 0);
});

test.serial("nothing of what a front-end says wrongly is believed", async (t) => {
  const { connect, iommu, frontEnd } = await setUpIommu(t);
  const client = await connect();
  const { address } = frontEnd.allocate(2 * PAGE_SIZE);
  const access = IotlbAccess.READ_WRITE;
  const type = IotlbType.UPDATE;
  const userAddress = 0x7f12_0010_0000;
  const lies: Parameters<FakeIommu["send"]>[0][] = [
    { iova: address, size: PAGE_SIZE, userAddress: 0x1000, access, type },
    { iova: address, size: PAGE_SIZE, userAddress: 0x7f13_0000_0000, access, type },
    { iova: address, size: 2 ** 40, userAddress, access, type },
    { iova: address, size: 2 ** 63, userAddress, access, type },
    { iova: address + 1, size: PAGE_SIZE, userAddress, access, type },
    { iova: address, size: 100, userAddress, access, type },
    { iova: address, size: PAGE_SIZE, userAddress: userAddress + 8, access, type },
    { iova: 2 ** 63, size: PAGE_SIZE, userAddress, access, type },
    { iova: address, size: 0, userAddress, access, type },
    { iova: address, size: PAGE_SIZE, userAddress, access: 1, type },
    { iova: address, size: PAGE_SIZE, userAddress, access, type: 1 },
    { iova: address, size: PAGE_SIZE, userAddress, access, type: 9 },
  ];
  for (const lie of lies) t.false(iommu.send(lie), JSON.stringify(lie));
  t.true(iommu.send({ iova: 2 ** 63, size: 2 ** 62, type: IotlbType.INVALIDATE }));
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
});

test.serial("a ring whose memory the IOMMU never had does not run, and the others do", async (t) => {
  const { frontEnd, device, iommu, bridge } = await setUpIommu(t);
  frontEnd.reset();
  const doorbell = Queue.FIRST_DOORBELL + 1;
  iommu.onMiss = (iova) => (pagesOf(device, doorbell).includes(iova) ? "refuse" : "answer");
  // Its first update comes unasked.
  const find = iommu.find.bind(iommu);
  iommu.find = (iova) => (pagesOf(device, doorbell).includes(iova) ? undefined : find(iova));
  t.is((await device.startAndGreet()).errno, 0);
  await bridge.logged(/a queue that cannot run/);
});

test.serial("a pause in which its memory is elsewhere afterwards", async (t) => {
  const { frontEnd, device, connect, iommu } = await setUpIommu(t);
  const client = await connect();
  device.bar[0] = 1;
  for (let n = 0; n < 3; n++) {
    frontEnd.pause();
    const read = client.regionRead(Region.BAR0, 0, 1);
    await delay(20);
    iommu.onMiss = n === 1 ? () => "promise" : () => "answer";
    frontEnd.resume();
    await delay(20);
    iommu.onMiss = () => "answer";
    t.is((await read)[0], 1);
  }
  t.is(device.received.filter(({ command }) => command === LinkCommand.CLIENT_CONNECTED).length, 1, "one client");
});

test.serial("a pause while memory is asked for, and its end", async (t) => {
  const { frontEnd, device, connect, iommu, bridge } = await setUpIommu(t);
  const client = await connect();
  device.bar[0] = 5;
  iommu.onMiss = () => "say nothing";
  iommu.invalidate(0, 0);
  const read = client.regionRead(Region.BAR0, 0, 1);
  await delay(20);
  frontEnd.pause();
  await delay(20);
  iommu.onMiss = () => "answer";
  frontEnd.resume();
  t.is((await read)[0], 5);
  t.notRegex(bridge.log, /broke the link/);
});

/** As startWithRegisters of registers.test.ts, in memory whose pages are scattered. */
async function startWithRegisters(frontEnd: FrontEnd, device: TestDevice) {
  device.start();
  const { buffer, address } = frontEnd.allocate(4 * PAGE_SIZE);
  await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(address, Region.BAR0)));
  const memory = new DataView(buffer);
  for (let n = 0; n < 16; n++) memory.setUint8(RegisterMemoryHead.size + n, 0x5a);
  const head = RegisterMemoryHead.view(memory);
  head.valid = 1;
  if ((await device.request(LinkCommand.HELLO, device.hello())).errno !== 0) throw new Error("HELLO");
  return { head, address };
}

test.serial("register memory that is taken back is not read, and no write is lost from its count", async (t) => {
  const { frontEnd, device, connect, iommu } = await setUpIommu(t);
  const { head, address } = await startWithRegisters(frontEnd, device);
  const client = await connect();
  const read = async () => (await client.regionRead(Region.BAR0, 0, 1))[0];
  t.is(await read(), 0x5a);
  iommu.onMiss = (iova) => (iova === address ? "promise" : "answer");
  iommu.invalidate(address, PAGE_SIZE);
  t.is(await read(), 0, "the device's own");
  await client.regionWrite(Region.BAR0, 0, Uint8Array.of(7));
  await client.regionWrite(Region.BAR0, 1, Uint8Array.of(7));
  t.is(await read(), 7);
  t.is(head.writesSent, 0);
  iommu.onMiss = () => "answer";
  iommu.update(address);
  t.is(head.writesSent, 2);
  t.is(await read(), 7, "there are writes on their way");
  head.writesDone = 2;
  t.is(await read(), 0x5a);
  // A client that comes while it is not there.
  iommu.onMiss = (iova) => (iova === address ? "promise" : "answer");
  iommu.invalidate(address, PAGE_SIZE);
  client.close();
  head.writesDone = 5;
  const next = await connect();
  await next.regionWrite(Region.BAR0, 1, Uint8Array.of(8));
  iommu.onMiss = () => "answer";
  iommu.update(address);
  t.is(head.writesSent, 6);
  head.writesDone = 6;
  t.is((await next.regionRead(Region.BAR0, 0, 1))[0], 0x5a);
});

test.serial("register memory that the IOMMU does not have is refused", async (t) => {
  const { device, frontEnd } = await setUpIommu(t);
  device.start();
  const { errno } = await device.request(SHARE_REGISTERS, new Uint8Array(registersBody(0x6000_0000, Region.BAR0)));
  t.is(errno, 14);
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  t.is(frontEnd.fatal, undefined);
});

test.serial("a front-end that floods takes no more than its share of maps, and the link lives", async (t) => {
  const { frontEnd, connect, iommu, bridge } = await setUpIommu(t);
  const client = await connect();
  const page = frontEnd.allocate(PAGE_SIZE);
  const guestAddress = iommu.find(page.address) as number;
  // Never beside one another, in memory or in addresses.
  for (let n = 0; n < 5000; n++) iommu.update(0x1_0000_0000 + 2 * n * PAGE_SIZE, guestAddress);
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  for (const iova of pagesFrom(0x1_0000_0000, 64 * PAGE_SIZE)) iommu.invalidate(iova, PAGE_SIZE);
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  t.true(bridge.alive);
});
