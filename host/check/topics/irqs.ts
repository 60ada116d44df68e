/**
 * GET_IRQ_INFO, and SET_IRQS when all is well: an eventfd that is bound is signalled by a trigger of the client's own
 * (loopback), and no longer when it was replaced or taken away.
 */
import { eventfdRead, POLL_READABLE } from "../../../native/index.js";
import { Command, Irq, IrqInfo, IrqInfoFlags, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeIrqSet, type IrqSetFields } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectReply, expectSuccess, expectThat } from "../expect.js";
import type { Session } from "../session.js";
import { Failure, Skip } from "../verdict.js";
import { waitFor } from "../wire.js";

const INFO = vfioUser("VFIO_USER_DEVICE_GET_IRQ_INFO");
const SET = vfioUser("VFIO_USER_DEVICE_SET_IRQS");
const GET_IRQ_INFO = Command.DEVICE_GET_IRQ_INFO;
const SET_IRQS = Command.DEVICE_SET_IRQS;
const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_TRIGGER, ACTION_MASK, ACTION_UNMASK } = IrqSetFlags;
const MAX_MSIX_VECTORS = 2048;
const KNOWN_FLAGS = IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED | IrqInfoFlags.NORESIZE;

async function set(session: Session, fields: IrqSetFields, fds: readonly number[] = []): Promise<void> {
  expectSuccess(await session.request(SET_IRQS, encodeIrqSet(fields), { fds }), SET_IRQS, 0);
}

/** Binds an eventfd of our own to each of the first `count` vectors of the best interrupt type. */
async function bind(context: Context, count: number) {
  const { index } = context.device().irq(count);
  const session = await context.connect();
  const fds = Array.from({ length: count }, () => context.eventfd());
  await set(session, { flags: DATA_EVENTFD | ACTION_TRIGGER, index, count }, fds);
  return { session, index, fds };
}

async function expectSignal(context: Context, fd: number, what: string): Promise<void> {
  if (!(await waitFor(fd, POLL_READABLE, context.timeoutMs))) {
    throw new Failure(what, `nothing within ${context.timeoutMs} ms`);
  }
  eventfdRead(fd);
}

function expectNoSignal(fd: number, what: string): void {
  if (eventfdRead(fd) !== 0) throw new Failure(what, "a signal");
}

/** Triggers what may have nothing bound: the reply may be an error, but the server has dealt with it when it comes. */
async function triggerUnbound(session: Session, index: number): Promise<void> {
  const body = encodeIrqSet({ flags: DATA_NONE | ACTION_TRIGGER, index, count: 1 });
  expectReply(await session.request(SET_IRQS, body), SET_IRQS);
}

const info: Check[] = [
  {
    id: "irq-info",
    section: INFO,
    title: "Each interrupt type is described: index echoed, argsz, flags and count in order",
    run: async (context) => {
      const { numIrqs } = context.device();
      const session = await context.connect();
      const counts: string[] = [];
      for (let index = 0; index < Math.min(numIrqs, 64); index++) {
        const answer = await session.request(GET_IRQ_INFO, IrqInfo.encode({ argsz: IrqInfo.size, index }));
        const { data } = expectSuccess(answer, GET_IRQ_INFO, IrqInfo.size);
        const irq = IrqInfo.view(data);
        expectEqual(`type ${index}: the index`, irq.index, index);
        expectEqual(`type ${index}: argsz`, irq.argsz, IrqInfo.size);
        expectThat((irq.flags & ~KNOWN_FLAGS) === 0, `type ${index}: flags below 16`, irq.flags);
        const most = index === Irq.MSIX ? MAX_MSIX_VECTORS : index === Irq.MSI ? 32 : 1;
        if (index <= Irq.REQ) expectThat(irq.count <= most, `type ${index}: at most ${most} vectors`, irq.count);
        counts.push(`${irq.count}`);
      }
      return `${counts.join(", ")} vectors`;
    },
  },
];

const badInfo = badRequests(INFO, [
  {
    id: "irq-info-index",
    title: "The index behind the last interrupt type is refused",
    command: GET_IRQ_INFO,
    body: (device) => IrqInfo.encode({ argsz: IrqInfo.size, index: device.numIrqs }),
    answer: "error",
  },
  {
    id: "irq-info-index-max",
    title: "Index 0xffffffff is refused",
    command: GET_IRQ_INFO,
    body: IrqInfo.encode({ argsz: IrqInfo.size, index: 0xffff_ffff }),
    answer: "error",
  },
  {
    id: "irq-info-no-body",
    title: "A request without a body is refused",
    command: GET_IRQ_INFO,
    body: new Uint8Array(0),
    answer: "error",
  },
  {
    id: "irq-info-short",
    title: "A request that ends before the index is refused",
    command: GET_IRQ_INFO,
    body: new Uint8Array(8),
    answer: "error",
  },
  {
    id: "irq-info-argsz",
    title: "An argsz of 3 is survived",
    command: GET_IRQ_INFO,
    body: IrqInfo.encode({ argsz: 3 }),
    answer: "any",
  },
]);

const loopback: Check[] = [
  {
    id: "irq-trigger-none",
    section: SET,
    title: "A trigger with DATA_NONE signals the eventfd that is bound",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 1);
      await set(session, { flags: DATA_NONE | ACTION_TRIGGER, index, count: 1 });
      await expectSignal(context, fds[0], "a signal on the eventfd of vector 0");
      return `interrupt type ${index}`;
    },
  },
  {
    id: "irq-trigger-bool",
    section: SET,
    title: "A trigger with DATA_BOOL signals those vectors whose byte is 1",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 2);
      await set(session, { flags: DATA_BOOL | ACTION_TRIGGER, index, count: 2, bools: [0, 1] });
      await expectSignal(context, fds[1], "a signal on the eventfd of vector 1");
      expectNoSignal(fds[0], "no signal on the eventfd of vector 0");
      return undefined;
    },
  },
  {
    id: "irq-trigger-start",
    section: SET,
    title: "A trigger begins at the vector that start says",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 2);
      await set(session, { flags: DATA_NONE | ACTION_TRIGGER, index, start: 1, count: 1 });
      await expectSignal(context, fds[1], "a signal on the eventfd of vector 1");
      expectNoSignal(fds[0], "no signal on the eventfd of vector 0");
      return undefined;
    },
  },
  {
    id: "irq-rebind",
    section: SET,
    title: "A second eventfd takes the place of the first",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 1);
      const second = context.eventfd();
      await set(session, { flags: DATA_EVENTFD | ACTION_TRIGGER, index, count: 1 }, [second]);
      await set(session, { flags: DATA_NONE | ACTION_TRIGGER, index, count: 1 });
      await expectSignal(context, second, "a signal on the second eventfd");
      expectNoSignal(fds[0], "no signal on the first eventfd");
      return undefined;
    },
  },
  {
    id: "irq-unbind",
    section: SET,
    title: "DATA_EVENTFD without fds takes the eventfd away",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 1);
      await set(session, { flags: DATA_EVENTFD | ACTION_TRIGGER, index, count: 1 });
      await triggerUnbound(session, index);
      expectNoSignal(fds[0], "no signal on an eventfd that was taken away");
      return undefined;
    },
  },
  {
    id: "irq-disable",
    section: SET,
    title: "A count of 0 with DATA_NONE disables all vectors of the type",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 1);
      await set(session, { flags: DATA_NONE | ACTION_TRIGGER, index });
      await triggerUnbound(session, index);
      expectNoSignal(fds[0], "no signal on an eventfd of a type that is disabled");
      return undefined;
    },
  },
  {
    id: "irq-disconnect",
    section: vfioUser("Client Disconnection"),
    title: "The eventfds of a client that is gone are not signalled any more",
    run: async (context) => {
      const { session, index, fds } = await bind(context, 1);
      session.close();
      const next = await context.connect();
      await triggerUnbound(next, index);
      expectNoSignal(fds[0], "no signal on the eventfd of an earlier client");
      return undefined;
    },
  },
  {
    id: "irq-mask",
    section: SET,
    title: "An interrupt type that can be masked takes MASK and UNMASK",
    run: async (context) => {
      const { irqs } = context.device();
      const maskable = irqs.find(({ flags, count }) => count > 0 && flags & IrqInfoFlags.MASKABLE);
      if (maskable === undefined) throw new Skip("no interrupt type can be masked");
      const session = await context.connect();
      const { index } = maskable;
      await set(session, { flags: DATA_NONE | ACTION_MASK, index, count: 1 });
      await set(session, { flags: DATA_NONE | ACTION_UNMASK, index, count: 1 });
      return undefined;
    },
  },
];

export const irqs: readonly Check[] = [...info, ...badInfo, ...loopback];
