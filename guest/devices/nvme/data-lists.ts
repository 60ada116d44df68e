/**
 * Lists in driver-VM memory that say where a command's data is: PRP lists (prp.ts) and SGL segments (sgl.ts). A reader
 * asks for one list after the other; each is read exactly once, in the window or by messages.
 */
import { isLost } from "../../../shared/lost-memory.js";
import type { Dma } from "../../device.js";
import { newSegment } from "./segment.js";
import { Status } from "./spec.js";
import type { Task } from "./task.js";

/** Steps of a reader, beside a status: another list is to be read first. */
export const LIST_WANTED = -1;
/** What `readLists` returns when a list is not in the window: go on with `readListsByMessages`. */
export const NOT_IN_WINDOW = -2;

export interface ListReader {
  /** The list, or part of one, that is wanted. */
  readonly listAddress: number;
  /** Bytes, a few pages at most. */
  readonly listLength: number;
  /** Takes the list that was wanted. Returns a status (0 is success) or LIST_WANTED. */
  walk(data: DataView, offset: number): number;
}

const segment = newSegment();

/** Reads all lists, from `step` on, as far as they lie in the window. Returns a status or NOT_IN_WINDOW. */
export function readLists(reader: ListReader, dma: Dma, step: number): number {
  let status = step;
  while (status === LIST_WANTED) {
    const { listAddress, listLength } = reader;
    if (dma.locate(listAddress, listLength, "read", segment) < listLength) return NOT_IN_WINDOW;
    dma.account(listLength, 0);
    status = reader.walk(segment.data, segment.offset);
    if (isLost(segment.bytes, segment.offset, listLength)) return Status.DATA_TRANSFER_ERROR;
  }
  return status;
}

/** Goes on where `readLists` returned NOT_IN_WINDOW, until the task ends. Resolves to a status; never rejects. */
export async function readListsByMessages(reader: ListReader, dma: Dma, task: Task): Promise<number> {
  for (let status: number = LIST_WANTED; ; ) {
    if (status !== LIST_WANTED) return status;
    if (task.ended) return Status.ABORT_REQUESTED;
    const list = new Uint8Array(reader.listLength);
    try {
      await dma.read(reader.listAddress, list);
    } catch {
      return Status.DATA_TRANSFER_ERROR;
    }
    status = reader.walk(new DataView(list.buffer), 0);
  }
}
