/** How a server answers for a device that is not there, or does not answer: as a dead PCI device does. */
import { Errno } from "../errors.js";
import { MAX_DATA_XFER_SIZE } from "../limits.js";
import { Command, RegionAccess } from "../spec/vfio-user.js";
import { copyBytes } from "../virtqueue/memory.js";
import type { PendingCommand } from "./backend.js";

/** Reads give all ones, writes go nowhere, anything else fails. */
export function answerWithoutDevice(command: PendingCommand): void {
  if (command.command === Command.REGION_WRITE) replyToWrite(command);
  else if (command.command === Command.REGION_READ) replyAllOnes(command);
  else command.fail(Errno.ENODEV);
}

/** The reply to a write is the fixed part of its request. */
export function replyToWrite(command: PendingCommand): void {
  command.reserve(RegionAccess.size);
  copyAccess(command);
  command.reply(RegionAccess.size);
}

/** Answers a read, whose size may not have been checked. */
export function replyAllOnes(command: PendingCommand): void {
  const count = command.data.getUint32(command.offset + RegionAccess.offsets.count, true);
  if (count > MAX_DATA_XFER_SIZE) {
    command.fail(Errno.EINVAL);
    return;
  }
  command.reserve(RegionAccess.size + count);
  copyAccess(command);
  const from = command.replyOffset + RegionAccess.size;
  command.replyBytes.fill(0xff, from, from + count);
  command.reply(RegionAccess.size + count);
}

/** The fixed part of a region access is the same in the reply, where there is room for it. */
export function copyAccess({ bytes, offset, replyBytes, replyOffset }: PendingCommand): void {
  copyBytes(bytes, offset, replyBytes, replyOffset, RegionAccess.size);
}
