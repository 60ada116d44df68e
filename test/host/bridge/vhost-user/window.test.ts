import test, { type ExecutionContext } from "ava";
import { Window } from "../../../../host/bridge/vhost-user/window.js";
import * as native from "../../../../native/index.js";
import { PeerGone, ProtocolError } from "../../../../shared/errors.js";
import { quietLog } from "../../../../shared/log.js";
import { BackendRequest, ShmemMap, U64 } from "../../../../shared/spec/vhost-user.js";
import { closeFd, openFds, RawPeer, turn, uniqueMemory } from "../raw-peer.js";

const SIZE = 0x10_0000;
const REPLY = 5;
const NEED_REPLY = 9;
const ok = U64.encode({ value: 0 });
const failed = U64.encode({ value: 1 });
const { SHMEM_MAP, SHMEM_UNMAP } = BackendRequest;

function setUp(t: ExecutionContext, permit = true) {
  const [ours, theirs] = native.socketPair();
  const window = new Window(SIZE, quietLog);
  window.attach(ours);
  if (permit) window.permit();
  const qemu = new RawPeer(theirs);
  const fd = uniqueMemory(0x10000);
  t.teardown(() => {
    window.detach("the test ends");
    qemu.close();
    closeFd(fd);
  });
  return { window, qemu, fd };
}

/** Whether a promise has settled by now. */
async function settled(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  promise.then(
    () => {
      done = true;
    },
    () => {
      done = true;
    },
  );
  await turn();
  return done;
}

test("a map is one message of known bytes with one fd, and live only after the next memory table", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const mapped = window.map(fd, 0x1000, 0x2000, 0x3000);
  const message = await qemu.receive();
  t.is(message.request, SHMEM_MAP);
  t.is(message.flags, NEED_REPLY);
  t.deepEqual(
    [...message.payload],
    [
      [0, 0, 0, 0, 0, 0, 0, 0],
      [0, 0x10, 0, 0, 0, 0, 0, 0],
      [0, 0x20, 0, 0, 0, 0, 0, 0],
      [0, 0x30, 0, 0, 0, 0, 0, 0],
      [1, 0, 0, 0, 0, 0, 0, 0],
    ].flat(),
  );
  t.is(message.fds.length, 1);
  t.is(native.fileStatus(message.fds[0]).inode, native.fileStatus(fd).inode);
  closeFd(message.fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  t.false(await settled(mapped));
  window.beforeTable();
  window.afterTable(2);
  await mapped;
  t.is(window.maps, 1);

  const unmapped = window.unmap(0x2000, 0x3000);
  const unmap = await qemu.receive();
  t.is(unmap.request, SHMEM_UNMAP);
  t.deepEqual(unmap.fds, []);
  t.like(ShmemMap.view(new DataView(unmap.payload.buffer)), { shmOffset: 0x2000, length: 0x3000, fdOffset: 0 });
  qemu.send(SHMEM_UNMAP, REPLY, ok);
  t.false(await settled(unmapped));
  window.beforeTable();
  window.afterTable(2);
  await unmapped;
  t.is(window.unmaps, 1);
});

test("a table that was sent before the reply says nothing about the map", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  window.beforeTable();
  window.afterTable(2);
  t.false(await settled(mapped));
  // The reply is there but was not looked at yet: the table comes after it.
  qemu.send(SHMEM_MAP, REPLY, ok);
  window.beforeTable();
  window.afterTable(2);
  await mapped;
  t.pass();
});

test("one request is in flight at a time", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const first = window.map(fd, 0, 0, 0x1000);
  const second = window.map(fd, 0, 0x1000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  await turn();
  t.is(qemu.pending, 0);
  qemu.send(SHMEM_MAP, REPLY, ok);
  await turn();
  t.is(qemu.pending, 0, "not before the first is committed");
  window.beforeTable();
  window.afterTable(2);
  await first;
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  await turn();
  window.afterTable(2);
  await second;
  t.is(window.maps, 2);
});

test("without a table, the reply to a request that does nothing tells that the map is committed", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  const probe = await qemu.receive();
  t.is(probe.request, SHMEM_UNMAP);
  const { shmOffset, length } = ShmemMap.view(new DataView(probe.payload.buffer));
  t.true(shmOffset % 4096 !== 0 && shmOffset + length <= SIZE, "a place where nothing is ever mapped");
  t.false(await settled(mapped));
  qemu.send(SHMEM_UNMAP, REPLY, failed);
  await mapped;

  // From now on the next request does it, if there is one.
  const second = window.map(fd, 0, 0x1000, 0x1000);
  const third = window.map(fd, 0, 0x2000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  const next = await qemu.receive();
  t.is(next.request, SHMEM_MAP);
  closeFd(next.fds[0]);
  t.false(await settled(second));
  qemu.send(SHMEM_MAP, REPLY, ok);
  await second;
  t.is((await qemu.receive()).request, SHMEM_UNMAP);
  qemu.send(SHMEM_UNMAP, REPLY, failed);
  await third;
  t.is(window.maps, 3);
});

test("a table that is due is waited for longer: QEMU is not asked what it would complain about", async (t) => {
  const { window, qemu, fd } = setUp(t);
  window.afterTable(7);
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  // Much later than the wait for a table that may never come.
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.is(qemu.pending, 0);
  window.afterTable(8);
  await mapped;
  // The next one has no place in the table.
  const next = window.map(fd, 0, 0x1000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  t.is((await qemu.receive()).request, SHMEM_UNMAP);
  qemu.send(SHMEM_UNMAP, REPLY, failed);
  await next;
});

test("idle: the request of the window's own is waited for, too", async (t) => {
  const { window, qemu, fd } = setUp(t);
  await window.idle();
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  t.is((await qemu.receive()).request, SHMEM_UNMAP);
  // The table comes after all, and the map is live, while the question is still on its way.
  window.afterTable(8);
  await mapped;
  const idle = window.idle();
  t.false(await settled(idle));
  qemu.send(SHMEM_UNMAP, REPLY, failed);
  await idle;
  // What ends the channel ends the wait.
  const other = window.map(fd, 0, 0x1000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  const second = window.idle();
  window.forbid("stopped");
  await t.throwsAsync(other, { instanceOf: PeerGone });
  await second;
});

test("what QEMU refuses is rejected, and the next request goes on", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const refused = window.map(fd, 0, 0, 0x1000);
  const other = window.map(fd, 0, 0x1000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, failed);
  await t.throwsAsync(refused, { instanceOf: ProtocolError, message: /refused/ });
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  await turn();
  window.afterTable(2);
  await other;
  t.is(window.maps, 1);
});

test("requests that QEMU would not check are refused here", async (t) => {
  const { window, qemu, fd } = setUp(t);
  for (const [fdOffset, offset, size] of [
    [0, 0x800, 0x1000],
    [0, 0, 0x800],
    [0x800, 0, 0x1000],
    [0, 0, 0],
    [0, SIZE, 0x1000],
    [0, SIZE - 0x1000, 0x2000],
    [0, -0x1000, 0x1000],
    [0, 0, 2 ** 60],
    [0, Number.NaN, 0x1000],
  ]) {
    await t.throwsAsync(window.map(fd, fdOffset, offset, size), { instanceOf: ProtocolError }, `${offset} ${size}`);
  }
  await turn();
  t.is(qemu.pending, 0);
});

test("nothing is sent before the device runs, and nothing after it stopped", async (t) => {
  const { window, qemu, fd } = setUp(t, false);
  await t.throwsAsync(window.map(fd, 0, 0, 0x1000), { instanceOf: PeerGone });
  window.permit();
  const sent = window.map(fd, 0, 0, 0x1000);
  const queued = window.map(fd, 0, 0x1000, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  window.forbid("stopped");
  await t.throwsAsync(sent, { instanceOf: PeerGone, message: "stopped" });
  await t.throwsAsync(queued, { instanceOf: PeerGone, message: "stopped" });
  await t.throwsAsync(window.unmap(0, 0x1000), { instanceOf: PeerGone });
  await turn();
  t.is(qemu.pending, 0);

  // The late reply is nobody's, the next one is the next request's.
  window.permit();
  const next = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, failed);
  t.false(await settled(next));
  qemu.send(SHMEM_MAP, REPLY, ok);
  await turn();
  window.afterTable(2);
  await next;
  t.is(window.maps, 1);
});

const garbage: Record<string, (qemu: RawPeer) => void> = {
  "a reply to something else": (qemu) => qemu.send(SHMEM_UNMAP, REPLY, ok),
  "a reply that is a request": (qemu) => qemu.send(SHMEM_MAP, 1, ok),
  "a reply without a value": (qemu) => qemu.send(SHMEM_MAP, REPLY),
  "a reply of a wrong version": (qemu) => qemu.send(SHMEM_MAP, 6, ok),
  "a huge reply": (qemu) => qemu.sendBytes(Uint8Array.of(9, 0, 0, 0, 5, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f)),
};
for (const [name, act] of Object.entries(garbage)) {
  test(`${name} ends the channel and rejects what waits`, async (t) => {
    const { window, qemu, fd } = setUp(t);
    const mapped = window.map(fd, 0, 0, 0x1000);
    closeFd((await qemu.receive()).fds[0]);
    act(qemu);
    await t.throwsAsync(mapped, { instanceOf: PeerGone });
    await qemu.end();
    t.false(window.permitted);
    await t.throwsAsync(window.map(fd, 0, 0, 0x1000), { instanceOf: PeerGone });
  });
}

test("a new channel replaces the old one", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const old = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  const [ours, theirs] = native.socketPair();
  window.attach(ours);
  await t.throwsAsync(old, { instanceOf: PeerGone });
  await qemu.end();
  window.permit();
  const second = new RawPeer(theirs);
  t.teardown(() => second.close());
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await second.receive()).fds[0]);
  second.send(SHMEM_MAP, REPLY, ok);
  await turn();
  window.afterTable(2);
  await mapped;
  t.pass();
});

test("a size that is no power of two cannot be", (t) => {
  for (const size of [0, 0x1800, 0x30000, 2048, -4096, Number.NaN]) {
    t.throws(() => new Window(size, quietLog), { instanceOf: RangeError });
  }
});

test("no fd is left behind", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const mapped = window.map(fd, 0, 0, 0x1000);
  const rejected = t.throwsAsync(mapped, { instanceOf: PeerGone });
  const message = await qemu.receive();
  t.is(openFds(fd), 2);
  closeFd(message.fds[0]);
  window.detach("the test says so");
  await rejected;
  t.is(openFds(fd), 1);
});

test("fds that come with a reply are closed", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const mapped = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok, [fd, fd, fd]);
  await turn();
  window.afterTable(2);
  await mapped;
  t.is(openFds(fd), 1);
});

test("a map that is made while the device VM is paused has its file, whatever becomes of the fd", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const own = native.duplicate(fd);
  const { inode } = native.fileStatus(fd);
  window.hold();
  const mapped = window.map(own, 0, 0, 0x1000);
  native.close(own);
  const other = native.createMemory("other", 0x1000, false);
  t.teardown(() => native.close(other));
  window.release();
  const { fds } = await qemu.receive();
  t.is(native.fileStatus(fds[0]).inode, inode);
  closeFd(fds[0]);
  qemu.send(SHMEM_MAP, REPLY, ok);
  await turn();
  window.afterTable(2);
  await mapped;
});

test("nothing is left of a map that waited for the end of a pause, and then for a front-end in vain", async (t) => {
  const { window, qemu, fd } = setUp(t);
  const first = window.map(fd, 0, 0, 0x1000);
  closeFd((await qemu.receive()).fds[0]);
  const second = window.map(fd, 0, 0x1000, 0x1000);
  window.hold();
  window.release();
  await t.throwsAsync(first, { message: /does not answer/ });
  await t.throwsAsync(second, { message: /does not answer/ });
  t.is(openFds(fd), 1);
});
