/** Answers that the bridge gives by itself to commands of the client's. */
import { Errno } from "../../../shared/errors.js";
import { Command, RegionAccess } from "../../../shared/spec/vfio-user.js";
import { type DeviceSummary, isPosted, type PendingCommand } from "../../../shared/vfio-user/backend.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";

/** Whether a command is a write that is answered as soon as it is queued. */
export function isPostedWrite(command: PendingCommand, device: DeviceSummary): boolean {
  if (command.command !== Command.REGION_WRITE) return false;
  return isPosted(device, command.data.getUint32(command.offset + RegionAccess.offsets.region, true));
}

/** The reply to a write is the fixed part of its request. */
export function replyToWrite(command: PendingCommand): void {
  command.reserve(RegionAccess.size);
  copyBytes(command.bytes, command.offset, command.replyBytes, command.replyOffset, RegionAccess.size);
  command.reply(RegionAccess.size);
}

/** As a dead PCI device does: reads give all ones, writes go nowhere. */
export function answerWithoutDevice(command: PendingCommand): void {
  if (command.command === Command.REGION_WRITE) {
    replyToWrite(command);
  } else if (command.command === Command.REGION_READ) {
    const count = command.data.getUint32(command.offset + RegionAccess.offsets.count, true);
    const size = RegionAccess.size + count;
    command.reserve(size);
    const { bytes, offset, replyBytes, replyOffset } = command;
    copyBytes(bytes, offset, replyBytes, replyOffset, RegionAccess.size);
    replyBytes.fill(0xff, replyOffset + RegionAccess.size, replyOffset + size);
    command.reply(size);
  } else {
    command.fail(Errno.ENODEV);
  }
}
