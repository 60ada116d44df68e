/**
 * Doorbells: which doorbell each vector has, and that no interrupt is lost or goes astray when vectors are bound anew.
 */
import { readdirSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { Doorbells } from "../../../../host/bridge/link/doorbells.js";
import * as native from "../../../../native/index.js";
import { Errno } from "../../../../shared/errors.js";
import { FdShare } from "../../../../shared/peer-fds.js";
import { NO_DOORBELL, Queue } from "../../../../shared/spec/link.js";
import { Irq } from "../../../../shared/spec/vfio-user.js";

const NONE = NO_DOORBELL;

function setUp(t: ExecutionContext, count: number, fds?: FdShare) {
  const doorbells = new Doorbells(fds);
  const kicks = Array.from({ length: count }, () => native.eventfd(0));
  t.teardown(() => {
    doorbells.close();
    for (const fd of kicks) native.close(fd);
  });
  doorbells.attach(count, (queue) => kicks[queue - Queue.FIRST_DOORBELL] ?? -1);
  const event = () => {
    const fd = native.eventfd(0);
    t.teardown(() => native.close(fd));
    return fd;
  };
  const bind = (start: number, ...fds: number[]) =>
    doorbells.bind(
      Irq.MSIX,
      start,
      fds.map((fd) => (fd < 0 ? fd : native.duplicate(fd))),
    );
  const numbers = (length: number) => doorbells.numbers(Irq.MSIX, 0, length);
  return { doorbells, kicks, event, bind, numbers };
}

/** Waits for a signal of any of them. */
async function signalled(...fds: number[]): Promise<void> {
  while (fds.reduce((sum, fd) => sum + native.eventfdRead(fd), 0) === 0)
    await new Promise((resolve) => setImmediate(resolve));
}

test.serial("an interrupt while its vector gets another eventfd reaches the one or the other", async (t) => {
  const { kicks, event, bind } = setUp(t, 1);
  const [a, b] = [event(), event()];
  for (let round = 0; round < 1000; round++) {
    bind(0, a);
    native.eventfdWrite(kicks[0]);
    bind(0, b);
    await signalled(a, b);
  }
  t.pass();
});

test.serial("an interrupt while its vector has no eventfd for a while comes when it has one", async (t) => {
  const { doorbells, kicks, event, bind } = setUp(t, 1);
  const [a, b] = [event(), event()];
  for (let round = 0; round < 200; round++) {
    bind(0, a);
    native.eventfdRead(a);
    native.eventfdWrite(kicks[0]);
    if (round % 2 === 0) bind(0, -1);
    else doorbells.unbindAll(Irq.MSIX);
    bind(0, b);
    await signalled(b);
  }
  bind(0, a);
  native.eventfdWrite(kicks[0]);
  bind(0, -1);
  doorbells.forgetPending();
  bind(0, b);
  t.is(native.eventfdRead(b), 0, "but for a reset");
});

test.serial("a device process that leaves: what it rang before has reached the client", (t) => {
  const { doorbells, kicks, event, bind } = setUp(t, 1);
  const a = event();
  bind(0, a);
  native.eventfdWrite(kicks[0]);
  doorbells.detach();
  t.true(native.eventfdRead(a) > 0);
});

test.serial("a vector keeps its doorbell; those that lose theirs leave them to others", (t) => {
  const { doorbells, event, bind, numbers } = setUp(t, 3);
  const fds = [event(), event(), event(), event()];
  bind(0, fds[0], fds[1], fds[2]);
  t.deepEqual(numbers(3), [0, 1, 2]);
  bind(0, fds[1], fds[2], fds[0]);
  t.deepEqual(numbers(3), [0, 1, 2]);
  t.true(doorbells.unbinds(Irq.MSIX, 0, [-1, fds[0], fds[1]]));
  t.false(doorbells.unbinds(Irq.MSIX, 1, [fds[0], fds[1], -1]));
  bind(0, -1, fds[0], fds[1], fds[2]);
  t.deepEqual(numbers(4), [NONE, 1, 2, 0]);
  const error = t.throws(() => bind(0, fds[0], fds[1]));
  t.like(error, { name: "ProtocolError", errno: Errno.ENOSPC });
  t.deepEqual(numbers(4), [NONE, 1, 2, 0]);
});

test.serial("a request that fails half way leaves no fd behind, and what was bound stays bound", async (t) => {
  const { kicks, event, bind, numbers } = setUp(t, 4);
  const [a, b] = [event(), event()];
  bind(0, a);
  // Of the third doorbell nothing can be relayed.
  const good = kicks[2];
  const [socket, other] = native.socketPair();
  t.teardown(() => [good, other].forEach(native.close));
  kicks[2] = socket;
  const fds = () => readdirSync("/proc/self/fd").length;
  const before = fds();
  for (let round = 0; round < 5; round++) {
    t.throws(() => bind(0, b, b, b, b), { code: "EINVAL" });
    t.is(fds(), before);
  }
  t.deepEqual(numbers(4), [0, NONE, NONE, NONE]);
  native.eventfdWrite(kicks[0]);
  await signalled(a);
  t.is(native.eventfdRead(b), 0);
});

test.serial("a doorbell that has no kick after a pause is silent, and the others go on", async (t) => {
  const { doorbells, kicks, event, bind, numbers } = setUp(t, 2);
  const [a, b] = [event(), event()];
  bind(0, a, b);
  doorbells.halt();
  const gone = kicks[0];
  t.teardown(() => native.close(gone));
  kicks[0] = -1;
  doorbells.goOn();
  native.eventfdRead(b);
  native.eventfdWrite(kicks[1]);
  await signalled(b);
  doorbells.halt();
  doorbells.goOn();
  t.deepEqual(numbers(2), [0, 1]);
  kicks.shift();
});

test.serial(
  "the relay's descriptors are the session's: counted as long as a vector is bound, refused where none are left",
  (t) => {
    const fds = new FdShare(() => 5);
    const { doorbells, event, bind, numbers } = setUp(t, 4, fds);
    const [a, b, c] = [event(), event(), event()];
    bind(0, a, b);
    t.is(fds.used, 4);
    t.like(
      t.throws(() => bind(2, c)),
      { name: "ProtocolError", errno: Errno.EMFILE },
    );
    t.deepEqual(numbers(3), [0, 1, NONE]);
    bind(0, b, a);
    t.is(fds.used, 4, "another eventfd takes the place of the one before");
    doorbells.detach();
    t.is(fds.used, 4, "the next device is to have them, too");
    bind(0, -1, a);
    t.is(fds.used, 2);
    doorbells.clear();
    t.is(fds.used, 0);
  },
);
