/** Bodies of commands that the bridge makes for the device process, which have handles where vfio-user has fds. */
import { DmaMap, DmaMapFlags, IrqSet } from "../../../shared/spec/vfio-user.js";
import type { IrqSetRequest, UnmapRequest } from "../../../shared/vfio-user/backend.js";
import type { MapPart } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { encodeDirtyUnmap, encodeUnmapRange } from "../../../shared/vfio-user/dma/dma-ranges.js";

/** DMA_MAP: with its window offset where it has one. */
export function mapBody({ address, size, readable, writable, windowOffset, isCopied }: MapPart): Uint8Array {
  const access = (readable ? DmaMapFlags.READ : 0) | (writable ? DmaMapFlags.WRITE : 0);
  const inWindow = windowOffset >= 0;
  const flags = access | (inWindow ? DmaMapFlags.MMAP : 0) | (isCopied ? DmaMapFlags.FILE_IO : 0);
  return DmaMap.encode({ argsz: DmaMap.size, flags, offset: inWindow ? windowOffset : 0, address, size });
}

/** DMA_UNMAP of the whole range; with `dirty` the reply is to have the bitmap behind the same body. */
export function unmapBody(request: UnmapRequest): Uint8Array {
  const { dirty } = request;
  return dirty ? encodeDirtyUnmap(request, dirty.pageSize, dirty.bitmap.length) : encodeUnmapRange(request);
}

/** SET_IRQS with eventfds: `doorbells` are those of the vectors from `start` on. */
export function doorbellBody(flags: number, index: number, start: number, doorbells: readonly number[]): Uint8Array {
  const count = doorbells.length;
  const body = new Uint8Array(IrqSet.size + 4 * count);
  const data = new DataView(body.buffer);
  Object.assign(IrqSet.view(data), { argsz: body.length, flags, index, start, count });
  for (const [i, doorbell] of doorbells.entries()) data.setUint32(IrqSet.size + 4 * i, doorbell, true);
  return body;
}

/** SET_IRQS without eventfds, as the client sent it. */
export function plainIrqBody({ flags, index, start, count, bools }: IrqSetRequest): Uint8Array {
  const body = new Uint8Array(IrqSet.size + (bools?.length ?? 0));
  body.set(IrqSet.encode({ argsz: body.length, flags, index, start, count }));
  if (bools) body.set(bools, IrqSet.size);
  return body;
}

/** The reply to ALLOCATE_EVENTS. */
export function handleBody(handles: readonly number[]): Uint8Array<ArrayBuffer> {
  const body = new Uint8Array(4 * handles.length);
  const data = new DataView(body.buffer);
  for (const [n, handle] of handles.entries()) data.setUint32(4 * n, handle, true);
  return body;
}

/** The `count` handles behind a reply's body. */
export function handlesAt(data: DataView, offset: number, count: number): number[] {
  return Array.from({ length: count }, (_, n) => data.getUint32(offset + 4 * n, true));
}
