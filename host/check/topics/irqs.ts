/**
 * GET_IRQ_INFO, and SET_IRQS when all is well: an eventfd that is bound is signalled by a trigger of the client's own
 * (loopback), and no longer when it was replaced or taken away.
 */
import { eventfdRead, POLL_READABLE } from "../../../native/index.js";
import { Command, Irq, IrqInfo, IrqInfoFlags, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectThat, Failure, Skip } from "../expect.js";
import { encodeIrqSet, type IrqSetFields, NO_BYTES } from "../messages.js";
import { type CheckerSession, waitFor } from "../session.js";

const { DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS } = Command;
const INFO = { section: vfioUser("VFIO_USER_DEVICE_GET_IRQ_INFO"), command: DEVICE_GET_IRQ_INFO };
const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_TRIGGER, ACTION_MASK, ACTION_UNMASK } = IrqSetFlags;
const TRIGGER = DATA_NONE | ACTION_TRIGGER;
const BIND = DATA_EVENTFD | ACTION_TRIGGER;
const MAX_VECTORS: Readonly<Record<number, number>> = { [Irq.MSI]: 32, [Irq.MSIX]: 2048 };
const MAX_INDICES = 64;
const KNOWN_FLAGS = IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED | IrqInfoFlags.NORESIZE;

async function set(session: CheckerSession, fields: IrqSetFields, fds: readonly number[] = []): Promise<void> {
  await session.success(DEVICE_SET_IRQS, encodeIrqSet(fields), 0, { fds });
}

/** Binds an eventfd of our own to each of the first `count` vectors of the best interrupt type. */
async function bind(context: Context, count: number) {
  const { index } = context.device().irq(count);
  const session = await context.connect();
  const fds = Array.from({ length: count }, () => context.eventfd());
  await set(session, { flags: BIND, index, count }, fds);
  return { session, index, fds };
}

async function expectSignal({ target }: Context, fd: number, what: string): Promise<void> {
  if (!(await waitFor(fd, POLL_READABLE, target.timeoutMs))) {
    throw new Failure(`a signal on ${what}`, `none within ${target.timeoutMs} ms`);
  }
  eventfdRead(fd);
}

function expectNoSignal(fd: number, what: string): void {
  if (eventfdRead(fd) !== 0) throw new Failure(`no signal on ${what}`, "a signal");
}

/** Vector 1 is to be signalled, and vector 0 is not. */
async function expectSecondAlone(context: Context, fds: readonly number[]): Promise<void> {
  await expectSignal(context, fds[1], "the eventfd of vector 1");
  expectNoSignal(fds[0], "the eventfd of vector 0");
}

/** Triggers what may have nothing bound: the reply may be an error, but the server has dealt with it when it comes. */
async function triggerUnbound(session: CheckerSession, index: number): Promise<void> {
  await session.reply(DEVICE_SET_IRQS, encodeIrqSet({ flags: TRIGGER, index, count: 1 }));
}

const encodeInfo = (index: number) => IrqInfo.encode({ argsz: IrqInfo.size, index });

export const irqs = [
  ...topic(INFO, [
    {
      id: "irq-info",
      title: "Each interrupt type is described: index echoed, argsz, flags and count in order",
      described: async (session, { numIrqs }) => {
        const counts: number[] = [];
        for (let index = 0; index < Math.min(numIrqs, MAX_INDICES); index++) {
          const { data } = await session.success(DEVICE_GET_IRQ_INFO, encodeInfo(index), IrqInfo.size);
          const irq = IrqInfo.view(data);
          expectEqual(`type ${index}: the index`, irq.index, index);
          expectEqual(`type ${index}: argsz`, irq.argsz, IrqInfo.size);
          expectThat((irq.flags & ~KNOWN_FLAGS) === 0, `type ${index}: flags below 16`, irq.flags);
          const most = MAX_VECTORS[index] ?? 1;
          if (index <= Irq.REQ) expectThat(irq.count <= most, `type ${index}: at most ${most} vectors`, irq.count);
          counts.push(irq.count);
        }
        return `${counts.join(", ")} vectors`;
      },
    },
  ]),
  ...topic({ ...INFO, prefix: "irq-info-", answer: "error" }, [
    {
      id: "index",
      title: "The index behind the last interrupt type is refused",
      body: (device) => encodeInfo(device.numIrqs),
    },
    { id: "index-max", title: "Index 0xffffffff is refused", body: encodeInfo(0xffff_ffff) },
    { id: "no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "short", title: "A request that ends before the index is refused", body: new Uint8Array(8) },
  ]),
  ...topic({ ...INFO, prefix: "irq-info-", answer: "any" }, [
    { id: "argsz", title: "An argsz of 3 is survived", body: IrqInfo.encode({ argsz: 3 }) },
  ]),
  ...topic({ section: vfioUser("VFIO_USER_DEVICE_SET_IRQS"), prefix: "irq-" }, [
    {
      id: "trigger-none",
      title: "A trigger with DATA_NONE signals the eventfd that is bound",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 1);
        await set(session, { flags: TRIGGER, index, count: 1 });
        await expectSignal(context, fds[0], "the eventfd of vector 0");
        return `interrupt type ${index}`;
      },
    },
    {
      id: "trigger-bool",
      title: "A trigger with DATA_BOOL signals those vectors whose byte is 1",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 2);
        await set(session, { flags: DATA_BOOL | ACTION_TRIGGER, index, count: 2, bools: [0, 1] });
        await expectSecondAlone(context, fds);
      },
    },
    {
      id: "trigger-start",
      title: "A trigger begins at the vector that start says",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 2);
        await set(session, { flags: TRIGGER, index, start: 1, count: 1 });
        await expectSecondAlone(context, fds);
      },
    },
    {
      id: "rebind",
      title: "A second eventfd takes the place of the first",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 1);
        const second = context.eventfd();
        await set(session, { flags: BIND, index, count: 1 }, [second]);
        await set(session, { flags: TRIGGER, index, count: 1 });
        await expectSignal(context, second, "the second eventfd");
        expectNoSignal(fds[0], "the first eventfd");
      },
    },
    {
      id: "unbind",
      title: "DATA_EVENTFD without fds takes the eventfd away",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 1);
        await set(session, { flags: BIND, index, count: 1 });
        await triggerUnbound(session, index);
        expectNoSignal(fds[0], "an eventfd that was taken away");
      },
    },
    {
      id: "disable",
      title: "A count of 0 with DATA_NONE disables all vectors of the type",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 1);
        await set(session, { flags: TRIGGER, index });
        await triggerUnbound(session, index);
        expectNoSignal(fds[0], "an eventfd of a type that is disabled");
      },
    },
    {
      id: "disconnect",
      section: vfioUser("Client Disconnection"),
      title: "The eventfds of a client that is gone are not signalled any more",
      run: async (context) => {
        const { session, index, fds } = await bind(context, 1);
        session.close();
        await triggerUnbound(await context.connect(), index);
        expectNoSignal(fds[0], "the eventfd of an earlier client");
      },
    },
    {
      id: "mask",
      title: "An interrupt type that can be masked takes MASK and UNMASK",
      described: async (session, { irqs }) => {
        const maskable = irqs.find(({ flags, count }) => count > 0 && flags & IrqInfoFlags.MASKABLE);
        if (maskable === undefined) throw new Skip("no interrupt type can be masked");
        for (const action of [ACTION_MASK, ACTION_UNMASK]) {
          await set(session, { flags: DATA_NONE | action, index: maskable.index, count: 1 });
        }
      },
    },
  ]),
];
