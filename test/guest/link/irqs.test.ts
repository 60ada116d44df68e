/** SET_IRQS over both links: every kind of data with every action, by the eventfds that a client sees signalled. */
import type { ExecutionContext } from "ava";
import { close, eventfd, eventfdRead, eventfdWrite } from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { Header } from "../../../shared/spec/pci.js";
import { Irq, IrqInfoFlags, Region } from "../../../shared/spec/vfio-user.js";
import type { IrqSetting } from "../../../shared/vfio-user/client/client.js";
import { Commands, Registers } from "../../fakes/copy-device.js";
import { until } from "../../shared/vfio-user/fixture.js";
import { both, doorbell, type Machine, over } from "./machine.js";

/** MSI beside INTx and MSI-X, and doorbells for all. */
const OPTIONS = { capabilities: { msi: { vectors: 4 } }, queues: 3 + 8 } as const;

/** An eventfd for the client to signal. */
function signal(t: ExecutionContext): number {
  const fd = eventfd(0);
  t.teardown(() => close(fd));
  return fd;
}

/** The device signals vector `vector` of whatever is enabled. Resolves when it did. */
async function trigger({ write32, read32 }: Machine, vector: number): Promise<void> {
  await write32(Registers.LENGTH, vector);
  await write32(Registers.COMMAND, Commands.TRIGGER);
  await read32(Registers.STATUS);
}

const refused = { instanceOf: ProtocolError, message: new RegExp(`errno ${Errno.EINVAL}`) };

both(
  "what interrupts there are",
  async (t, { client }) => {
    const infos = await Promise.all([0, 1, 2, 3, 4].map((index) => client.getIrqInfo(index)));
    const { EVENTFD, MASKABLE, AUTOMASKED } = IrqInfoFlags;
    t.deepEqual(infos, [
      { flags: EVENTFD | MASKABLE | AUTOMASKED, count: 1 },
      { flags: EVENTFD | MASKABLE, count: 4 },
      { flags: EVENTFD | MASKABLE, count: 4 },
      { flags: EVENTFD, count: 1 },
      { flags: EVENTFD, count: 1 },
    ]);
  },
  OPTIONS,
);

for (const [name, index] of [
  ["MSI", Irq.MSI],
  ["MSI-X", Irq.MSIX],
] as const) {
  both(
    `${name}: ranges, and masks by no data, by bytes and by eventfds`,
    async (t, machine) => {
      const { client, endpoint } = machine;
      const bells = Array.from({ length: 4 }, () => doorbell(t));
      const set = (setting: Omit<IrqSetting, "index">) => client.setIrqs({ index, ...setting });
      const masked = () => endpoint.interrupts.inspect().masked[index].length;
      await set({ start: 0, eventfds: [bells[0].fd] });
      await set({ start: 1, eventfds: bells.slice(1, 3).map(({ fd }) => fd) });
      await set({ start: 3, eventfds: [bells[3].fd] });
      // Each arrives at its own eventfd.
      for (const [vector, bell] of bells.entries()) {
        const rung = bell.next();
        await trigger(machine, vector);
        await rung;
      }

      await set({ action: "mask", start: 2, count: 2 });
      t.is(masked(), 2);
      await trigger(machine, 3);
      await trigger(machine, 2);
      const [second, third] = [bells[2].next(), bells[3].next()];
      await set({ action: "unmask", bools: [true, true, false, true] });
      await third;
      t.is(masked(), 1);
      await set({ action: "unmask", start: 2, count: 1 });
      await second;

      await set({ action: "mask", start: 1, bools: [false, true] });
      await trigger(machine, 2);
      t.is(masked(), 1);
      const [mask, unmask] = [signal(t), signal(t)];
      await set({ action: "unmask", start: 2, eventfds: [unmask] });
      await set({ action: "mask", start: 2, eventfds: [mask] });
      const unmasked = bells[2].next();
      eventfdWrite(unmask);
      await unmasked;
      eventfdWrite(mask);
      await until(() => masked() === 1);

      // The client's own triggers go the same way.
      const own = bells[3].next();
      await set({ bools: [false, false, true, true] });
      await own;
      const waited = bells[2].next();
      eventfdWrite(unmask);
      await waited;
      const all = bells.map(({ next }) => next());
      await set({ count: 4 });
      await Promise.all(all);
    },
    OPTIONS,
  );
}

both(
  "INTx: quiet until it is unmasked, by a command or by an eventfd as KVM does it",
  async (t, machine) => {
    const { client, endpoint } = machine;
    const intx = (setting: Omit<IrqSetting, "index">) => client.setIrqs({ index: Irq.INTX, ...setting });
    const bell = doorbell(t);
    let count = 0;
    const rings = async () => {
      const rung = bell.next();
      count++;
      return rung;
    };
    let rung = rings();
    await intx({ eventfds: [bell.fd] });
    await trigger(machine, 0);
    await rung;
    // What comes now waits.
    await trigger(machine, 0);
    t.is(endpoint.interrupts.count, count);
    rung = rings();
    await intx({ action: "unmask", count: 1 });
    await rung;
    await intx({ action: "unmask", bools: [false] });
    await trigger(machine, 0);
    t.is(endpoint.interrupts.count, count);
    rung = rings();
    await intx({ action: "unmask", bools: [true] });
    await rung;

    // KVM takes over while the level is up: it has not heard of it, and must.
    await intx({ action: "mask", count: 1 });
    const resample = signal(t);
    await intx({ action: "unmask", eventfds: [resample] });
    rung = rings();
    await intx({ action: "unmask", count: 1 });
    await rung;
    for (let n = 0; n < 20; n++) {
      await trigger(machine, 0);
      t.is(endpoint.interrupts.count, count);
      rung = rings();
      eventfdWrite(resample);
      await rung;
    }
    // Nothing new: the line goes down.
    eventfdWrite(resample);
    await until(() => endpoint.interrupts.inspect().masked[Irq.INTX].length === 0);
    t.is(endpoint.interrupts.count, count);

    // Replaced; taken away; and gone with the interrupt.
    const other = signal(t);
    await intx({ action: "unmask", eventfds: [other] });
    rung = rings();
    await trigger(machine, 0);
    await rung;
    eventfdWrite(resample);
    eventfdWrite(other);
    await until(() => endpoint.interrupts.inspect().masked[Irq.INTX].length === 0);
    await intx({ action: "unmask", count: 1, eventfds: [] });
    rung = rings();
    await trigger(machine, 0);
    await rung;
    eventfdWrite(other);
    t.deepEqual(endpoint.interrupts.inspect().masked[Irq.INTX], [0]);
    await intx({ action: "mask", eventfds: [other] });
    await intx({ count: 0 });
    t.like(endpoint.interrupts.inspect(), { intx: false, bound: [[], [], [], [], []], masked: [[], [], [], [], []] });
  },
  OPTIONS,
);

both(
  "errors and requests: signalled by the device, and by the client",
  async (t, { client, device }) => {
    const { interrupts } = device.context;
    t.false(interrupts.reportError());
    t.false(interrupts.requestRelease());
    const [error, request] = [doorbell(t), doorbell(t)];
    await client.setIrqs({ index: Irq.ERR, eventfds: [error.fd] });
    await client.setIrqs({ index: Irq.REQ, eventfds: [request.fd] });
    let rung = error.next();
    t.true(interrupts.reportError());
    await rung;
    rung = request.next();
    t.true(interrupts.requestRelease());
    await rung;
    for (const [index, bell] of [
      [Irq.ERR, error],
      [Irq.REQ, request],
    ] as const) {
      rung = bell.next();
      await client.setIrqs({ index, count: 1 });
      await rung;
      rung = bell.next();
      await client.setIrqs({ index, bools: [true] });
      await rung;
      await t.throwsAsync(client.setIrqs({ index, action: "mask", count: 1 }), refused);
      await t.throwsAsync(client.setIrqs({ index, action: "unmask", eventfds: [bell.fd] }), refused);
    }
    await client.setIrqs({ index: Irq.ERR, count: 1, eventfds: [] });
    await client.setIrqs({ index: Irq.REQ, count: 0 });
    t.false(interrupts.reportError());
    t.false(interrupts.requestRelease());
  },
  OPTIONS,
);

both(
  "a trigger of what nobody is bound to goes nowhere, also later",
  async (t, { client, endpoint, device }) => {
    for (const index of [Irq.INTX, Irq.MSI, Irq.MSIX, Irq.ERR, Irq.REQ]) {
      await client.setIrqs({ index, count: 1 });
      await client.setIrqs({ index, bools: [true] });
      const bell = doorbell(t);
      await client.setIrqs({ index, eventfds: [bell.fd] });
    }
    t.is(endpoint.interrupts.count, 0);
    t.false(endpoint.interrupts.intxPending);
    t.true(device.context.interrupts.requestRelease());
  },
  OPTIONS,
);

both(
  "a client that leaves takes its eventfds along, those that mask included",
  async (t, { client, endpoint, device }) => {
    const fds = [signal(t), signal(t), signal(t)];
    await client.setIrqs({ index: Irq.MSIX, start: 1, eventfds: fds });
    await client.setIrqs({ index: Irq.MSIX, start: 1, action: "mask", eventfds: fds });
    await client.setIrqs({ index: Irq.MSIX, start: 1, action: "unmask", eventfds: fds });
    client.close();
    await until(() => device.events.includes("reset"));
    for (const fd of fds) eventfdWrite(fd);
    t.like(endpoint.interrupts.inspect(), { bound: [[], [], [], [], []], masked: [[], [], [], [], []] });
  },
  OPTIONS,
);

const turn = () => new Promise((resolve) => setImmediate(resolve));

for (const [name, index] of [
  ["MSI", Irq.MSI],
  ["MSI-X", Irq.MSIX],
] as const) {
  both(
    `${name}: no interrupt is lost while its vector gets another eventfd, none for a while, or all are disabled`,
    async (t, { client, device }) => {
      const eventfds = [signal(t), signal(t)];
      const [a, b] = eventfds;
      const bind = (fd: number) => client.setIrqs({ index, start: 1, eventfds: [fd] });
      const unbind = () => client.setIrqs({ index, start: 1, count: 1, eventfds: [] });
      const disable = () => client.setIrqs({ index, count: 0 });
      const mask = () => client.setIrqs({ index, start: 1, count: 1, action: "mask" });
      const unmask = () => client.setIrqs({ index, start: 1, count: 1, action: "unmask" });
      const changes: (() => Promise<unknown>)[] = [
        () => Promise.all([bind(b), bind(a)]),
        () => Promise.all([unbind(), bind(b)]),
        () => Promise.all([disable(), bind(a)]),
        () => Promise.all([mask(), bind(b), unmask()]),
        () => Promise.all([bind(b), unbind(), disable(), bind(a), bind(b)]),
      ];
      await bind(a);
      for (let round = 0; round < 120; round++) {
        const changed = changes[round % changes.length]();
        // At every stage of it, over the rounds.
        for (let turns = Math.floor(round / changes.length) % 12; turns > 0; turns--) await turn();
        for (const fd of eventfds) eventfdRead(fd);
        device.context.interrupts.trigger(1);
        await changed;
        let heard = 0;
        while (heard === 0) {
          await turn();
          heard = eventfds.reduce((sum, fd) => sum + eventfdRead(fd), 0);
        }
      }
      t.pass();
    },
    OPTIONS,
  );

  both(
    `${name}: a signal that the client has not taken goes to the vector's next eventfd, but for a reset`,
    async (t, { client, device, endpoint }) => {
      const [a, b, c] = [signal(t), signal(t), signal(t)];
      const bind = (fd: number) => client.setIrqs({ index, eventfds: [fd] });
      const signalled = async (fd: number) => {
        while (eventfdRead(fd) === 0) await turn();
      };
      await bind(a);
      device.context.interrupts.trigger(0);
      await until(() => endpoint.interrupts.count === 1);
      await bind(b);
      await signalled(b);
      device.context.interrupts.trigger(0);
      await client.setIrqs({ index, count: 1, eventfds: [] });
      await client.setIrqs({ index, count: 0 });
      await bind(c);
      await signalled(c);
      device.context.interrupts.trigger(0);
      await client.setIrqs({ index, count: 0 });
      await client.reset();
      eventfdRead(b);
      await bind(b);
      await client.getInfo();
      t.is(eventfdRead(b), 0);
    },
    OPTIONS,
  );
}

over(
  ["local"],
  "a signal that the client has not taken ends with a function-level reset by config space",
  async (t, { client, device }) => {
    const [a, b] = [signal(t), signal(t)];
    await client.setIrqs({ index: Irq.MSIX, eventfds: [a] });
    device.context.interrupts.trigger(0);
    await client.setIrqs({ index: Irq.MSIX, count: 0 });
    const config = await client.regionRead(Region.CONFIG, 0, 256);
    let express = config[Header.CAPABILITIES];
    while (config[express] !== 0x10) express = config[express + 1];
    await client.regionWrite(Region.CONFIG, express + 8, Uint8Array.of(0, 0x80));
    await client.setIrqs({ index: Irq.MSIX, eventfds: [b] });
    await client.getInfo();
    t.is(eventfdRead(b), 0);
  },
);

both(
  "an interrupt while nothing is enabled comes with the first message",
  async (t, machine) => {
    const { client } = machine;
    const [pin, message] = [doorbell(t), doorbell(t)];
    await client.setIrqs({ index: Irq.INTX, eventfds: [pin.fd] });
    await client.setIrqs({ index: Irq.INTX, count: 0 });
    await trigger(machine, 2);
    const rung = message.next();
    await client.setIrqs({ index: Irq.MSIX, start: 2, eventfds: [message.fd] });
    await rung;
    t.pass();
  },
  OPTIONS,
);
