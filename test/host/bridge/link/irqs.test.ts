/** Interrupts that a client sets up: kept by the bridge while there is no device process, and told to the next one. */
import test, { type ExecutionContext } from "ava";
import * as native from "../../../../native/index.js";
import { Errno, ProtocolError } from "../../../../shared/errors.js";
import { LinkCommand, NO_DOORBELL } from "../../../../shared/spec/link.js";
import { Command, IrqSetFlags as Flags, Irq, IrqSet, Region } from "../../../../shared/spec/vfio-user.js";
import { type LinkMessage, TestDevice } from "../../../fakes/front-end-device.js";
import { doorbellsOf, eventfd, ones, setUp } from "../set-up.js";

const QUEUES = 3 + 8;

/** An eventfd that the client signals. */
function signal(t: ExecutionContext): number {
  const fd = native.eventfd(0);
  t.teardown(() => native.close(fd));
  return fd;
}

interface Told {
  index: number;
  flags: number;
  start: number;
  count: number;
  /** Doorbells, or bytes. */
  tail: number[];
}

function told({ body, data }: LinkMessage): Told {
  const { index, flags, start, count } = IrqSet.view(data);
  const tail = flags & Flags.DATA_EVENTFD ? doorbellsOf(body) : [...body.subarray(IrqSet.size)];
  return { index, flags, start, count, tail };
}

const irqs = (device: TestDevice, after = 0) =>
  device.received
    .slice(after)
    .filter(({ command }) => command === Command.DEVICE_SET_IRQS)
    .map(told);

const BIND = Flags.DATA_EVENTFD | Flags.ACTION_TRIGGER;
const MASK_BYTES = Flags.DATA_BOOL | Flags.ACTION_MASK;

test.serial("set up while no device process is there: the next one hears of it, and its doorbells ring", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t, { queues: QUEUES });
  const client = await connect();
  const [first, second, error, old] = [eventfd(t), eventfd(t), eventfd(t), eventfd(t)];
  await client.setIrqs({ index: Irq.INTX, eventfds: [old.fd] });
  frontEnd.reset();
  await bridge.logged(/"msg":"the device VM is paused, or the device was reset"/);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));

  await client.setIrqs({ index: Irq.INTX, count: 0 });
  await client.setIrqs({ index: Irq.MSIX, start: 0, count: 1, eventfds: [] });
  await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [first.fd, second.fd] });
  await client.setIrqs({ index: Irq.MSIX, action: "mask", count: 4 });
  await client.setIrqs({ index: Irq.MSIX, action: "unmask", bools: [false, true, true] });
  await client.setIrqs({ index: Irq.ERR, eventfds: [error.fd] });
  await client.setIrqs({ index: Irq.ERR, count: 1 });
  // What is wrong is wrong without a device, too.
  for (const wrong of [
    { index: Irq.MSIX, start: 3, count: 2 },
    { index: Irq.MSI, count: 1 },
    { index: Irq.REQ, action: "mask", count: 1 },
  ] as const) {
    const refused = await t.throwsAsync(client.setIrqs(wrong), { instanceOf: ProtocolError });
    t.is((refused as ProtocolError).errno, Errno.EINVAL);
  }

  const after = device.received.length;
  await device.startAndGreet();
  await bridge.logged(/"msg":"the device has the client"/, 2);
  const [masks, msix, err, ...more] = irqs(device, after);
  t.deepEqual(more, []);
  t.deepEqual(masks, { index: Irq.MSIX, flags: MASK_BYTES, start: 0, count: 4, tail: [1, 0, 0, 1] });
  t.like(msix, { index: Irq.MSIX, flags: BIND, start: 0, count: 3 });
  t.like(err, { index: Irq.ERR, flags: BIND, start: 0, count: 1 });
  const [none, a, b] = msix.tail;
  t.is(none, NO_DOORBELL);
  device.ring(b);
  await second.signalled(1);
  device.ring(a);
  await first.signalled(1);
  device.ring(err.tail[0]);
  await error.signalled(1);
});

test.serial("an eventfd that unmasks reaches the device process, and the next one's state", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t, { queues: QUEUES });
  const client = await connect();
  const [unmask, mask] = [signal(t), signal(t)];
  await client.setIrqs({ index: Irq.INTX, eventfds: [eventfd(t).fd] });
  await client.setIrqs({ index: Irq.INTX, action: "unmask", eventfds: [unmask] });
  await client.setIrqs({ index: Irq.MSIX, start: 2, action: "mask", eventfds: [mask] });
  t.is(irqs(device).length, 1, "the eventfds are the bridge's affair");

  // As long as it deals with one signal, others wait and become one.
  let held: LinkMessage | undefined;
  device.onCommand = (received) => {
    if (held || received.command !== Command.DEVICE_SET_IRQS) return false;
    held = received;
    return true;
  };
  let after = device.received.length;
  native.eventfdWrite(unmask);
  await device.waitFor(Command.DEVICE_SET_IRQS, after);
  for (let n = 0; n < 10; n++) native.eventfdWrite(unmask);
  if (held) device.reply(held);
  await device.waitFor(Command.DEVICE_SET_IRQS, after + 1);
  await client.getInfo();
  const unmasked = { index: Irq.INTX, flags: Flags.DATA_NONE | Flags.ACTION_UNMASK, start: 0, count: 1, tail: [] };
  t.deepEqual(irqs(device, after), [unmasked, unmasked]);

  after = device.received.length;
  native.eventfdWrite(mask);
  await device.waitFor(Command.DEVICE_SET_IRQS, after);
  t.like(irqs(device, after)[0], { index: Irq.MSIX, flags: Flags.DATA_NONE | Flags.ACTION_MASK, start: 2, count: 1 });

  // Without a device process they do their work all the same.
  await client.setIrqs({ index: Irq.INTX, action: "mask", count: 1 });
  for (let restart = 1; restart <= 2; restart++) {
    frontEnd.reset();
    await bridge.logged(/"msg":"the device VM is paused, or the device was reset"/, restart);
    if (restart === 2) {
      native.eventfdWrite(unmask);
      // It is the bridge that takes the count.
      while (isSignalled(unmask)) await new Promise((resolve) => setImmediate(resolve));
      await client.setIrqs({ index: Irq.REQ, count: 0 });
    }
    after = device.received.length;
    await device.startAndGreet();
    await bridge.logged(/"msg":"the device has the client"/, 1 + restart);
    const masked = irqs(device, after).filter(({ flags }) => flags === MASK_BYTES);
    t.deepEqual(
      masked.map(({ index, tail }) => [index, tail]),
      [...(restart === 1 ? [[Irq.INTX, [1]]] : []), [Irq.MSIX, [0, 0, 1]]],
    );
  }
  await client.setIrqs({ index: Irq.INTX, count: 0 });
  after = device.received.length;
  native.eventfdWrite(unmask);
  await client.getInfo();
  t.deepEqual(irqs(device, after), [], "gone with the interrupt");
});

test.serial("a doorbell goes to another vector only when the device process knows of it", async (t) => {
  const { device, connect } = await setUp(t, { queues: 3 + 2 });
  const client = await connect();
  const [a, b, c] = [eventfd(t), eventfd(t), eventfd(t)];
  await client.setIrqs({ index: Irq.MSIX, eventfds: [a.fd, b.fd] });
  t.deepEqual(irqs(device)[0].tail, [0, 1]);
  const held: LinkMessage[] = [];
  device.onCommand = (received) => {
    if (received.command !== Command.DEVICE_SET_IRQS) return false;
    held.push(received);
    return true;
  };
  const answered = (count: number) => device.waitFor(() => held.length === count);
  const unbound = client.setIrqs({ index: Irq.MSIX, count: 1, eventfds: [] });
  const bound = client.setIrqs({ index: Irq.MSIX, start: 2, eventfds: [c.fd] });
  await answered(1);
  // It still takes vector 0 for bound.
  device.ring(0);
  await a.signalled(1);
  device.reply(held[0]);
  await answered(2);
  t.like(told(held[1]), { start: 2, tail: [0] });
  device.reply(held[1]);
  await Promise.all([unbound, bound]);
  device.ring(0);
  await c.signalled(1);
  t.is(a.signals, 1);

  // Another eventfd, and the same doorbell.
  const d = eventfd(t);
  const bound2 = client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [d.fd] });
  await answered(3);
  device.ring(1);
  await d.signalled(1);
  t.like(told(held[2]), { start: 1, tail: [1] });
  device.reply(held[2]);
  await bound2;

  // A device process that refuses has no doorbell for them.
  const refusedBind = client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: [d.fd] });
  await answered(4);
  device.reply(held[3], undefined, Errno.EIO);
  await t.throwsAsync(refusedBind, { instanceOf: ProtocolError });
  const refusedDisable = client.setIrqs({ index: Irq.MSIX, count: 0 });
  await answered(5);
  device.reply(held[4], undefined, Errno.EIO);
  await t.throwsAsync(refusedDisable, { instanceOf: ProtocolError });
  device.onCommand = undefined;
  await client.setIrqs({ index: Irq.MSIX, eventfds: [a.fd, b.fd] });
  device.ring(0);
  await a.signalled(2);
});

test.serial("another device with fewer vectors is told of those that it has", async (t) => {
  const { bridge, frontEnd, connect } = await setUp(t, { queues: QUEUES });
  const client = await connect();
  const bells = Array.from({ length: 4 }, () => eventfd(t));
  await client.setIrqs({ index: Irq.MSIX, eventfds: bells.map(({ fd }) => fd) });
  await client.setIrqs({ index: Irq.MSIX, action: "mask", start: 1, count: 3 });
  frontEnd.reset();
  await bridge.logged(/"msg":"the device VM is paused, or the device was reset"/);
  const other = new TestDevice(frontEnd, { msixVectors: 2 });
  await other.startAndGreet();
  await bridge.logged(/"msg":"the device has the client"/, 2);
  t.deepEqual(
    irqs(other).map(({ flags, start, count }) => [flags, start, count]),
    [
      [MASK_BYTES, 0, 2],
      [BIND, 0, 2],
    ],
  );
  const refused = await t.throwsAsync(client.setIrqs({ index: Irq.MSIX, count: 3 }), { instanceOf: ProtocolError });
  t.is((refused as ProtocolError).errno, Errno.EINVAL);
});

test.serial("eventfds of every kind are closed when the client leaves, with a device process or without", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t, { queues: QUEUES });
  let idle: string[] | undefined;
  for (let turn = 1; turn <= 5; turn++) {
    const client = await connect();
    const now = bridge.fds();
    // The relay's own come with the first binding, and stay.
    if (turn === 2) idle = now;
    if (turn > 2) t.deepEqual(now, idle);
    const fds = [signal(t), signal(t)];
    await client.setIrqs({ index: Irq.MSIX, eventfds: fds });
    if (turn % 2 === 0) {
      frontEnd.reset();
      await bridge.logged(/"msg":"the device VM is paused, or the device was reset"/, turn / 2);
    }
    await client.setIrqs({ index: Irq.MSIX, start: 2, eventfds: fds });
    for (const action of ["mask", "unmask", "unmask"] as const) {
      await client.setIrqs({ index: Irq.MSIX, start: 1, action, eventfds: fds });
    }
    client.close();
    await bridge.logged(/"msg":"client gone"/, turn);
    if (turn % 2 === 0) await device.startAndGreet();
    else await device.waitFor(LinkCommand.CLIENT_GONE);
  }
});

/** Whether an eventfd has a count that nobody took. */
function isSignalled(fd: number): boolean {
  const count = native.eventfdRead(fd);
  if (count > 0) native.eventfdWrite(fd);
  return count > 0;
}
