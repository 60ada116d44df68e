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
  const { ranges } = command;
  let status = command.resolve(dma, bytes.length, pageSize);
  if (status === NOT_IN_WINDOW) status = await command.resolveByMessages(dma);
  if (status !== Status.SUCCESS) return status;
  try {
    for (let n = 0, at = 0; n < ranges.count; at += ranges.lengths[n++]) {
      await dma[direction](ranges.addresses[n], bytes.subarray(at, at + ranges.lengths[n]));
    }
    return Status.SUCCESS;
  } catch {
    return Status.DATA_TRANSFER_ERROR;
  }
}
