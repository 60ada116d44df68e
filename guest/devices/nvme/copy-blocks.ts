/**
 * Copy (NVM command set 1.0, 3.2.2): blocks of one namespace to others of the same, without the driver VM's memory. All
 * source ranges are checked and read before the first block is written, so that they may overlap the destination.
 */
import { inBounds } from "../../../shared/bits.js";
import type { Dma } from "../../device.js";
import { PIECE_SIZE } from "./buffers.js";
import type { Command } from "./command.js";
import { copyData } from "./command-data.js";
import type { Namespace } from "./namespace.js";
import { CopyDword12, CopyRange, Status } from "./spec.js";
import type { Extent, Transfers } from "./transfers.js";

/** Bytes of one command, and of one range: what one buffer holds. */
export const MAX_COPY_LENGTH = PIECE_SIZE;
/** Ranges of one command. */
export const MAX_COPY_RANGES = 128;

/** Sets the command's place in the storage. Resolves to a status; never rejects. */
export async function copyBlocks(
  command: Command,
  namespace: Namespace,
  dma: Dma,
  pageSize: number,
  transfers: Transfers,
): Promise<number> {
  const { cdw10, cdw11, cdw12 } = command;
  if (CopyDword12.formatOf(cdw12) !== 0) return Status.INVALID_FIELD;
  const count = CopyDword12.rangesOf(cdw12);
  if (count > MAX_COPY_RANGES) return Status.COMMAND_SIZE_LIMIT_EXCEEDED;
  const bytes = new Uint8Array(count * CopyRange.size);
  const copied = await copyData("read", command, bytes, dma, pageSize);
  if (copied !== Status.SUCCESS) return copied;
  const sources = parse(bytes, namespace);
  if (typeof sources === "number") return sources;
  const { blockSize, blockCount } = namespace;
  const length = sources.reduce((sum, source) => sum + source.length, 0);
  if (length > MAX_COPY_LENGTH) return Status.COMMAND_SIZE_LIMIT_EXCEEDED;
  // Inexact above 2^53, and then far above every size.
  const block = cdw10 + cdw11 * 0x1_0000_0000;
  if (!inBounds(block, length / blockSize, blockCount)) return Status.LBA_OUT_OF_RANGE;
  command.position = block * blockSize;
  command.length = length;
  return new Promise((done) => transfers.copy(sources, command, namespace, done));
}

/** A status when a range is not within the namespace. */
function parse(bytes: Uint8Array, { blockSize, blockCount }: Namespace): Extent[] | number {
  const data = new DataView(bytes.buffer);
  const range = CopyRange.view();
  const extents: Extent[] = [];
  for (let at = 0; at < bytes.length; at += CopyRange.size) {
    range.at(data, at);
    const blocks = range.NLB + 1;
    const block = range.LBA_LOW + range.LBA_HIGH * 0x1_0000_0000;
    if (!inBounds(block, blocks, blockCount)) return Status.LBA_OUT_OF_RANGE;
    extents.push({ position: block * blockSize, length: blocks * blockSize });
  }
  return extents;
}
