/** The copy queue, from the device process's rings to the driver VM's memory. */
import { ftruncateSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import * as native from "../../../../native/index.js";
import { Errno } from "../../../../shared/errors.js";
import { MAX_COPY_SIZE, MAX_WINDOW_MAPS, MiB } from "../../../../shared/limits.js";
import { CopyFlags, LinkCommand, Queue } from "../../../../shared/spec/link.js";
import { Command, DmaMapFlags } from "../../../../shared/spec/vfio-user.js";
import type { TestDevice } from "../../../fakes/front-end-device.js";
import { closeFd } from "../raw-peer.js";
import { deviceAnswers, eventfd, mapFlags, memory, pattern, setUp } from "../set-up.js";
import { type Ask, BASE, copier, SLOTS } from "./copier.js";

const WHOLE = DmaMapFlags.READ | DmaMapFlags.WRITE;

async function start(t: ExecutionContext, isolated = true) {
  const machine = await setUp(t, { device: { isolated } });
  const client = await machine.connect();
  return { ...machine, client, copier: copier(machine.frontEnd, machine.device) };
}

const flagsOf = (device: TestDevice) =>
  device.received.filter(({ command }) => command === Command.DMA_MAP).map(({ data }) => mapFlags(data));

test.serial("an isolated device process has nothing in its window, and copies both ways", async (t) => {
  const { frontEnd, device, client, copier } = await start(t);
  const { fd, bytes } = memory(t, 4 * MiB);
  await client.mapMemory({ address: BASE, size: 4 * MiB, fd });
  await client.mapMemory({ address: 0, size: MiB });
  t.deepEqual(flagsOf(device), [WHOLE | DmaMapFlags.FILE_IO, WHOLE], "copies; messages where there is no fd");
  t.is(frontEnd.maps.length, 0);
  const expected = pattern(MAX_COPY_SIZE);
  bytes.set(expected, 5);
  copier.add(3, { address: BASE + 5, length: MAX_COPY_SIZE });
  copier.kick();
  t.deepEqual(await copier.done(), { slot: 3, status: 0, length: 4 + MAX_COPY_SIZE });
  t.true(Buffer.from(copier.data.subarray(0, MAX_COPY_SIZE)).equals(expected));
  copier.data.set(pattern(1000, 9));
  copier.add(0, { address: BASE + 3 * MiB + 1, length: 999, flags: CopyFlags.WRITE });
  copier.kick();
  t.deepEqual(await copier.done(), { slot: 0, status: 0, length: 4 });
  t.deepEqual(bytes.slice(3 * MiB, 3 * MiB + 1001), Uint8Array.of(0, ...pattern(999, 9), 0));
  t.is(await copier.ask({ address: 0, length: 16 }), Errno.EFAULT, "it is reached by messages alone");
});

test.serial("data in several parts, one of a byte", async (t) => {
  const { client, copier } = await start(t);
  const { fd, bytes } = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  bytes.set(pattern(300));
  const room = [
    { at: 0, length: 1 },
    { at: 1000, length: 200 },
    { at: 2000, length: 99 },
  ];
  t.is(await copier.ask({ length: 300, room }), 0);
  t.true(Buffer.concat(room.map(({ at, length }) => copier.data.subarray(at, at + length))).equals(pattern(300)));
});

test.serial("requests that make no sense, or ask for what is not there, get a status and change nothing", async (t) => {
  const { client, copier } = await start(t);
  const { fd, bytes } = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  const { WRITE } = CopyFlags;
  copier.data.fill(7);
  const bad: [string, Ask, number][] = [
    ["no bytes", { length: 0 }, Errno.EINVAL],
    ["too many bytes", { length: MAX_COPY_SIZE + 1 }, Errno.EINVAL],
    ["2^32 - 1 bytes", { length: 0xffff_ffff, writable: 4096 }, Errno.EINVAL],
    ["a flag that nobody knows", { flags: 2 }, Errno.EINVAL],
    ["less room than bytes", { writable: 4095 }, Errno.EINVAL],
    ["more room than bytes", { writable: 4097 }, Errno.EINVAL],
    ["data for a read", { readable: 1 }, Errno.EINVAL],
    ["less data than bytes", { flags: WRITE, readable: 4095 }, Errno.EINVAL],
    ["more data than bytes", { flags: WRITE, readable: 4097 }, Errno.EINVAL],
    ["room for a write", { flags: WRITE, writable: 1 }, Errno.EINVAL],
    ["an address in front of the map", { address: BASE - 1 }, Errno.EFAULT],
    ["a byte behind the map", { address: BASE + MiB - 4095, flags: WRITE }, Errno.EFAULT],
    ["an address of nothing", { address: 0x5000 }, Errno.EFAULT],
    ["the largest address", { address: Number.MAX_SAFE_INTEGER }, Errno.EFAULT],
    ["an address of 2^64 - 1", { address: -1 }, Errno.EFAULT],
  ];
  for (const [what, request, errno] of bad) t.is(await copier.ask(request), errno, what);
  t.true(bytes.every((byte) => byte === 0));
  t.true(copier.data.every((byte) => byte === 7));
  t.is(await copier.ask({ address: BASE + MiB - 4096, flags: WRITE }), 0, "the last bytes of it");
});

test.serial("read-only memory, and memory that can shrink, is copied too", async (t) => {
  const { frontEnd, device, client, copier } = await start(t, false);
  const { WRITE } = CopyFlags;
  const [shown, readOnly] = [memory(t, MiB), memory(t, MiB)];
  const fd = native.createMemory("unsealed", 2 * MiB, false);
  t.teardown(() => closeFd(fd));
  const bytes = new Uint8Array(native.mapFile(fd, 0, 2 * MiB, native.PROT_READ | native.PROT_WRITE));
  await client.mapMemory({ address: BASE, size: MiB, fd: shown.fd });
  await client.mapMemory({ address: 2 * BASE, size: MiB, fd: readOnly.fd, writable: false });
  await client.mapMemory({ address: 3 * BASE, size: 2 * MiB, fd });
  copier.data.fill(4);
  t.is(await copier.ask({ address: 3 * BASE, flags: WRITE }), 0);
  t.is(bytes[4095], 4);
  // A memfd without MFD_ALLOW_SEALING, and a file of tmpfs, have this seal from the beginning.
  native.addSeals(fd, native.F_SEAL_SEAL);
  await client.mapMemory({ address: 4 * BASE, size: 2 * MiB, fd });
  const { MMAP, FILE_IO, READ } = DmaMapFlags;
  t.deepEqual(flagsOf(device), [WHOLE | MMAP, READ | FILE_IO, WHOLE | FILE_IO, WHOLE | FILE_IO]);
  t.is(frontEnd.maps.length, 1);
  t.is(await copier.ask({ address: BASE }), Errno.EFAULT, "what is in the window is not copied");

  readOnly.bytes.fill(5);
  t.is(await copier.ask({ address: 2 * BASE }), 0);
  t.is(copier.data[4095], 5);
  t.is(await copier.ask({ address: 2 * BASE, flags: WRITE }), Errno.EFAULT, "it is read-only");
  copier.data.fill(6);
  t.is(await copier.ask({ address: 4 * BASE + MiB, flags: WRITE }), 0);
  t.is(bytes[MiB + 4095], 6);

  // Its owner cuts it short: no zeros are passed off as his, and the bridge lives.
  ftruncateSync(fd, MiB);
  for (const flags of [0, WRITE, 0]) t.is(await copier.ask({ address: 4 * BASE + MiB, flags }), Errno.EFAULT);
  t.is(await copier.ask({ address: 4 * BASE + MiB - 4096 }), 0);
  t.is((await client.getInfo()).numIrqs, 5);
});

test.serial("more maps than QEMU has time for: those beyond are copied", async (t) => {
  const { device, frontEnd, client, copier } = await start(t, false);
  const { fd, bytes } = memory(t, 4096);
  const copied = () => flagsOf(device).filter((flags) => flags & DmaMapFlags.FILE_IO).length;
  for (let n = 0; n < MAX_WINDOW_MAPS + 3; n++) await client.mapMemory({ address: n * 8192, size: 4096, fd });
  t.deepEqual([frontEnd.maps.length, copied()], [MAX_WINDOW_MAPS, 3]);
  bytes.fill(2);
  t.is(await copier.ask({ address: (MAX_WINDOW_MAPS + 2) * 8192 }), 0);
  t.is(copier.data[4095], 2);
  await client.unmapMemory(0, 4096);
  await client.mapMemory({ address: BASE, size: 4096, fd });
  t.deepEqual([frontEnd.maps.length, copied()], [MAX_WINDOW_MAPS, 3]);
});

test.serial("memory that may only be written is not read", async (t) => {
  const { client, copier } = await start(t);
  const { fd, bytes } = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd, readable: false });
  copier.data.fill(3);
  t.is(await copier.ask({ flags: CopyFlags.WRITE }), 0);
  t.is(bytes[0], 3);
  t.is(await copier.ask({}), Errno.EFAULT);
});

test.serial("an unmap that comes while copies are queued: none of them is carried out after it", async (t) => {
  const { device, client, copier } = await start(t);
  const { fd, bytes } = memory(t, MAX_COPY_SIZE);
  await client.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd });
  copier.data.fill(1);
  const write = { length: MAX_COPY_SIZE, flags: CopyFlags.WRITE };
  for (let slot = 0; slot < SLOTS; slot++) copier.add(slot, write);
  // It says that it let go, and has not.
  const unmapped = client.unmapMemory(BASE, MAX_COPY_SIZE);
  copier.kick();
  await unmapped;
  bytes.fill(0);
  for (let slot = 0; slot < SLOTS; slot++) {
    const { status } = await copier.done();
    t.true(status === 0 || status === Errno.EFAULT);
  }
  t.is(await copier.ask(write), Errno.EFAULT);
  t.true(bytes.every((byte) => byte === 0));
  t.is(device.received.filter(({ command }) => command === Command.DMA_UNMAP).length, 1);
});

test.serial("a client that goes while copies are queued takes its memory along", async (t) => {
  const { bridge, device, client, connect, copier } = await start(t);
  const before = bridge.fds().filter((name) => name.includes("memfd:driver-vm")).length;
  const [first, second] = [memory(t, MAX_COPY_SIZE), memory(t, MAX_COPY_SIZE)];
  await client.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd: first.fd });
  copier.data.fill(1);
  const write = { length: MAX_COPY_SIZE, flags: CopyFlags.WRITE };
  for (let slot = 0; slot < SLOTS; slot++) copier.add(slot, write);
  copier.kick();
  client.close();
  for (let slot = 0; slot < SLOTS; slot++) t.true([0, Errno.EFAULT].includes((await copier.done()).status));
  await device.waitFor(LinkCommand.CLIENT_GONE);
  const next = await connect();
  t.is(await copier.ask(write), Errno.EFAULT);
  t.is(bridge.fds().filter((name) => name.includes("memfd:driver-vm")).length, before);
  await next.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd: second.fd });
  first.bytes.fill(0);
  t.is(await copier.ask(write), 0);
  t.is(second.bytes[MAX_COPY_SIZE - 1], 1);
  t.is(first.bytes[0], 0);
});

test.serial("a device process that stops in the middle, and one that comes back with the window", async (t) => {
  const { bridge, frontEnd, device, client, copier: old } = await start(t);
  const { fd, bytes } = memory(t, MAX_COPY_SIZE);
  await client.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd });
  for (let slot = 0; slot < SLOTS; slot++) old.add(slot, { length: MAX_COPY_SIZE, flags: CopyFlags.WRITE });
  old.kick();
  frontEnd.reset();
  bytes.fill(0);
  await device.startAndGreet();
  await deviceAnswers(client);
  t.is(bytes[0], 0, "nothing of before is carried out");
  const { ask, data } = copier(frontEnd, device);
  data.fill(8);
  t.is(await ask({ flags: CopyFlags.WRITE }), 0);
  t.is(bytes[4095], 8);
  // QUIESCE takes the memory back before it is answered.
  await device.request(LinkCommand.QUIESCE);
  t.is(await ask({}), Errno.EFAULT);
  t.notRegex(bridge.log, /broke the link/);
});

test.serial("no memory without a client; requests are answered all the same", async (t) => {
  const { frontEnd, device } = await setUp(t, { device: { isolated: true } });
  t.is(await copier(frontEnd, device).ask({}), Errno.EFAULT);
});

test.serial("the driver is asked for no notifications while there is work, and for them afterwards", async (t) => {
  const { device, client, copier } = await start(t);
  const { fd } = memory(t, MAX_COPY_SIZE);
  await client.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd });
  const ring = device.rings[Queue.COPY];
  for (let slot = 0; slot < SLOTS; slot++) copier.add(slot, { length: MAX_COPY_SIZE });
  copier.kick();
  for (let slot = 0; slot < SLOTS; slot++) t.is((await copier.done()).slot, slot, "in order");
  t.is(await copier.ask({}), 0);
  t.is(ring.view.getUint16(ring.used, true), 0);
});

test.serial("copies go on beside what else the bridge does", async (t) => {
  const { client, copier, frontEnd, device } = await start(t);
  const { fd } = memory(t, MAX_COPY_SIZE);
  const doorbell = eventfd(t);
  await client.mapMemory({ address: BASE, size: MAX_COPY_SIZE, fd });
  await client.setIrqs({ index: 2, eventfds: [doorbell.fd] });
  for (let slot = 0; slot < SLOTS; slot++) copier.add(slot, { length: MAX_COPY_SIZE });
  copier.kick();
  device.ring(0);
  await doorbell.signalled(1);
  t.is((await client.getInfo()).numIrqs, 5);
  for (let slot = 0; slot < SLOTS; slot++) t.is((await copier.done()).status, 0);
  t.is(frontEnd.maps.length, 0);
});
