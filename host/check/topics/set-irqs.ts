/** SET_IRQS that is wrong, as a table. Eventfds that are taken although something is odd go with the connection. */
import { Command, IrqSet, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import type { Device } from "../device.js";
import { Skip } from "../expect.js";
import { encodeIrqSet, type IrqSetFields, NO_BYTES } from "../messages.js";

const SET_IRQS = {
  section: vfioUser("VFIO_USER_DEVICE_SET_IRQS"),
  command: Command.DEVICE_SET_IRQS,
  prefix: "set-irqs-",
};
const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_TRIGGER, ACTION_MASK, ACTION_UNMASK } = IrqSetFlags;
const TRIGGER = DATA_NONE | ACTION_TRIGGER;
const TRIGGER_BOOL = DATA_BOOL | ACTION_TRIGGER;
const BIND = DATA_EVENTFD | ACTION_TRIGGER;

/**
 * The request for the interrupt type with the most vectors, at least `vectors`; `fields` may depend on how many it has.
 */
function onBest(
  fields: Omit<IrqSetFields, "index"> | ((count: number) => Omit<IrqSetFields, "index">),
  vectors = 1,
): (device: Device) => Uint8Array {
  return (device) => {
    const { index, count } = device.irq(vectors);
    return encodeIrqSet({ index, ...(typeof fields === "function" ? fields(count) : fields) });
  };
}

const eventfds = (count: number) => (context: Context) => Array.from({ length: count }, () => context.eventfd());

export const setIrqs = [
  ...topic({ ...SET_IRQS, answer: "error", suffix: " is refused" }, [
    { id: "no-body", title: "A request without a body", body: NO_BYTES },
    { id: "short", title: "A request of 19 bytes", body: encodeIrqSet({ flags: TRIGGER, index: 0 }).slice(0, 19) },
    {
      id: "index",
      title: "The index behind the last interrupt type",
      body: (device) => encodeIrqSet({ flags: TRIGGER, index: device.numIrqs, count: 1 }),
    },
    {
      id: "index-max",
      title: "Index 0xffffffff",
      body: encodeIrqSet({ flags: TRIGGER, index: 0xffff_ffff, count: 1 }),
    },
    {
      id: "empty-type",
      title: "A vector of an interrupt type that has none",
      body: (device) => {
        const empty = device.irqs.find(({ count }) => count === 0);
        if (empty === undefined) throw new Skip("every interrupt type has a vector");
        return encodeIrqSet({ flags: TRIGGER, index: empty.index, count: 1 });
      },
    },
    {
      id: "start",
      title: "A start behind the last vector",
      body: onBest((all) => ({ flags: TRIGGER, start: all, count: 1 })),
    },
    {
      id: "count",
      title: "One vector more than there are",
      body: onBest((all) => ({ flags: TRIGGER, count: all + 1 })),
    },
    {
      id: "start-count",
      title: "A range that reaches past the last vector",
      body: onBest((all) => ({ flags: TRIGGER, start: all - 1, count: 2 })),
    },
    {
      id: "start-count-overflow",
      title: "A range whose end overflows 32 bits",
      body: onBest({ flags: BIND, start: 1, count: 0xffff_ffff }),
    },
    { id: "count-max", title: "A count of 0xffffffff", body: onBest({ flags: BIND, count: 0xffff_ffff }) },
    {
      id: "two-data",
      title: "Two kinds of data, which are mutually exclusive:",
      body: onBest({ flags: DATA_NONE | TRIGGER_BOOL, count: 1, bools: [0] }),
    },
    {
      id: "all-data",
      title: "All kinds of data at once",
      body: onBest({ flags: DATA_NONE | DATA_BOOL | DATA_EVENTFD | ACTION_TRIGGER, count: 1, bools: [0] }),
    },
    {
      id: "two-actions",
      title: "Two actions, which are mutually exclusive:",
      body: onBest({ flags: DATA_NONE | ACTION_MASK | ACTION_UNMASK, count: 1 }),
    },
    {
      id: "all-actions",
      title: "All actions at once",
      body: onBest({ flags: DATA_NONE | ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER, count: 1 }),
    },
    { id: "bool-none", title: "DATA_BOOL without its bytes", body: onBest({ flags: TRIGGER_BOOL, count: 1 }) },
    {
      id: "bool-short",
      title: "DATA_BOOL with a byte for one vector of two",
      body: onBest({ flags: TRIGGER_BOOL, count: 2, bools: [0] }, 2),
    },
    {
      id: "fds-few",
      title: "One eventfd for two vectors",
      body: onBest({ flags: BIND, count: 2 }, 2),
      fds: eventfds(1),
    },
  ]),
  ...topic({ ...SET_IRQS, answer: "any", suffix: ": answered, and survived" }, [
    { id: "flags-none", title: "No flags at all", body: onBest({ flags: 0, count: 1 }) },
    { id: "no-action", title: "No action", body: onBest({ flags: DATA_NONE, count: 1 }) },
    { id: "no-data", title: "No kind of data", body: onBest({ flags: ACTION_TRIGGER, count: 1 }) },
    { id: "flags-unknown", title: "Unknown flags", body: onBest({ flags: TRIGGER | 0x8000_0000, count: 1 }) },
    { id: "argsz-zero", title: "An argsz of 0", body: onBest({ flags: TRIGGER, count: 1, argsz: 0 }) },
    { id: "argsz-small", title: "An argsz of 3", body: onBest({ flags: TRIGGER, count: 1, argsz: 3 }) },
    {
      id: "argsz-large",
      title: "An argsz larger than the request",
      body: onBest({ flags: TRIGGER, count: 1, argsz: 4096 }),
    },
    {
      id: "bool-long",
      title: "DATA_BOOL with more bytes than vectors",
      body: onBest({ flags: TRIGGER_BOOL, count: 1, bools: [0, 0, 0] }),
    },
    {
      id: "none-with-bytes",
      title: "DATA_NONE with bytes behind it",
      body: onBest({ flags: TRIGGER, count: 1, bools: [0, 0], argsz: IrqSet.size }),
    },
    {
      id: "none-with-fds",
      title: "DATA_NONE with an fd",
      body: onBest({ flags: TRIGGER, count: 1 }),
      fds: eventfds(1),
    },
    {
      id: "bool-with-fds",
      title: "DATA_BOOL with an fd",
      body: onBest({ flags: TRIGGER_BOOL, count: 1, bools: [0] }),
      fds: eventfds(1),
    },
    { id: "fds-many", title: "Two eventfds for one vector", body: onBest({ flags: BIND, count: 1 }), fds: eventfds(2) },
    {
      id: "fd-no-eventfd",
      title: "An fd that is not an eventfd",
      body: onBest({ flags: BIND, count: 1 }),
      fds: (context) => [context.memory(4096)],
    },
    { id: "zero-bool", title: "A count of 0 with DATA_BOOL", body: onBest({ flags: TRIGGER_BOOL }) },
    { id: "zero-mask", title: "A count of 0 with MASK", body: onBest({ flags: DATA_NONE | ACTION_MASK }) },
    { id: "zero-start", title: "A count of 0 with a start", body: onBest({ flags: TRIGGER, start: 1 }, 2) },
    { id: "unbound", title: "A trigger of a vector without an eventfd", body: onBest({ flags: TRIGGER, count: 1 }) },
  ]),
];
