/** Data of commands that are rare and small: copied between bytes of ours and the memory that the command names. */
import type { Dma } from "../../device.js";
import type { Command } from "./command.js";
import { NOT_IN_WINDOW } from "./data-lists.js";
import { Status } from "./spec.js";

/** `bytes` to driver-VM memory (`write`) or from it (`read`). Resolves to a status; never rejects. */
export async function copyData(
  direction: "read" | "write",
  command: Command,
  bytes: Uint8Array,
  dma: Dma,
  pageSize: number,
): Promise<number> {
  command.length = bytes.length;
  let status = command.resolve(dma, bytes.length, pageSize);
  if (status === NOT_IN_WINDOW) status = await command.resolveByMessages(dma);
  if (status !== Status.SUCCESS) return status;
  if (command.ended) return Status.ABORT_REQUESTED;
  try {
    await (direction === "read" ? dma.readList(command.ranges, bytes) : dma.writeList(command.ranges, bytes));
    return Status.SUCCESS;
  } catch {
    return Status.DATA_TRANSFER_ERROR;
  }
}
