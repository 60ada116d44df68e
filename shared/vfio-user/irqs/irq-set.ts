/**
 * SET_IRQS: from the bytes to a checked IrqSetRequest (vfio-user, "VFIO_USER_DEVICE_SET_IRQS"; <linux/vfio.h>).
 */
import { isEventfd } from "../../../native/index.js";
import { Errno, ProtocolError } from "../../errors.js";
import { Command, IrqSetFlags as Flags, Irq, IrqSet } from "../../spec/vfio-user.js";
import type { IrqSetRequest } from "../backend.js";
import type { Frame } from "../socket/connection.js";

const view = IrqSet.view();

function refuse(what: string): never {
  throw new ProtocolError(`SET_IRQS: ${what}`, Errno.EINVAL, Command.DEVICE_SET_IRQS);
}

function isOneBit(bits: number): boolean {
  return bits !== 0 && (bits & (bits - 1)) === 0;
}

/**
 * Checks the request in `frame`, whose fds are taken only when it is right in every way.
 * @throws ProtocolError EINVAL
 */
export function parseIrqSet(frame: Frame, irqCounts: readonly number[]): IrqSetRequest {
  const { argsz, flags, index, start, count } = view.at(frame.data, frame.offset);
  const data = flags & Flags.DATA_MASK;
  const action = flags & Flags.ACTIONS_MASK;
  if (argsz < IrqSet.size) refuse(`argsz ${argsz}`);
  if ((flags & ~(Flags.DATA_MASK | Flags.ACTIONS_MASK)) !== 0 || !isOneBit(data) || !isOneBit(action)) {
    refuse(`flags ${flags}`);
  }
  if (index >= irqCounts.length) refuse(`index ${index}`);
  const vectors = irqCounts[index];
  if (start >= vectors || count > vectors - start) refuse(`vectors ${start}+${count} of ${vectors}`);
  if ((index === Irq.ERR || index === Irq.REQ) && action !== Flags.ACTION_TRIGGER) refuse("mask of ERR or REQ");
  if (count === 0 && (start !== 0 || data !== Flags.DATA_NONE || action !== Flags.ACTION_TRIGGER)) {
    refuse("no vectors");
  }
  const extra = frame.length - IrqSet.size;
  if (extra !== (data === Flags.DATA_BOOL ? count : 0)) refuse(`${extra} bytes of data for ${count} vectors`);
  if (frame.fds.length > 0) {
    if (data !== Flags.DATA_EVENTFD) refuse("fds without DATA_EVENTFD");
    if (frame.fds.length !== count) refuse(`${frame.fds.length} fds for ${count} vectors`);
    for (const fd of frame.fds) if (!isEventfd(fd)) refuse("an fd that is not an eventfd");
  }

  const request = { flags, index, start, count };
  if (data === Flags.DATA_BOOL) {
    const from = frame.offset + IrqSet.size;
    return { ...request, bools: frame.bytes.slice(from, from + count) };
  }
  if (data === Flags.DATA_EVENTFD) {
    const eventfds = frame.fds.length > 0 ? frame.fds.slice() : new Array<number>(count).fill(-1);
    frame.fds.fill(-1);
    return { ...request, eventfds };
  }
  return request;
}
