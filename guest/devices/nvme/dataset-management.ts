/**
 * NVM Express 1.4, section 6.7: Dataset Management. Deallocate gives space back to the storage; the other attributes
 * are hints that nothing here could follow. All ranges are checked before the first takes effect.
 */
import { inBounds } from "../../../shared/bits.js";
import type { Dma } from "../../device.js";
import type { Command } from "./command.js";
import { copyData } from "./command-data.js";
import type { Namespace } from "./namespace.js";
import { DSM_DEALLOCATE, DSM_NR_MASK, DsmRange, Status } from "./spec.js";
import type { Extent } from "./transfers.js";

/** Resolves to a status; never rejects. */
export async function manageDataset(
  command: Command,
  namespace: Namespace,
  dma: Dma,
  pageSize: number,
): Promise<number> {
  const deallocate = (command.cdw11 & DSM_DEALLOCATE) !== 0;
  const bytes = new Uint8Array(((command.cdw10 & DSM_NR_MASK) + 1) * DsmRange.size);
  const copied = await copyData("read", command, bytes, dma, pageSize);
  if (copied !== Status.SUCCESS) return copied;
  const extents = parse(bytes, namespace);
  if (extents === undefined) return Status.LBA_OUT_OF_RANGE;
  if (!deallocate) return Status.SUCCESS;
  for (const { position, length } of extents) {
    const status = await new Promise<number>((done) => namespace.deallocate(position, length, command, done));
    if (status !== Status.SUCCESS || command.ended) return status;
  }
  return Status.SUCCESS;
}

/** Undefined when a range is not within the namespace. Ranges of no blocks are left out. */
function parse(bytes: Uint8Array, { blockSize, blockCount }: Namespace): Extent[] | undefined {
  const data = new DataView(bytes.buffer);
  const range = DsmRange.view();
  const extents: Extent[] = [];
  for (let at = 0; at < bytes.length; at += DsmRange.size) {
    range.at(data, at);
    const { LENGTH: blocks } = range;
    // Inexact above 2^53, and then far above every size.
    const block = range.LBA_LOW + range.LBA_HIGH * 0x1_0000_0000;
    if (blocks === 0) continue;
    if (!inBounds(block, blocks, blockCount)) return undefined;
    extents.push({ position: block * blockSize, length: blocks * blockSize });
  }
  return extents;
}
