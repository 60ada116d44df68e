/**
 * Bodies of the link's messages (docs/virtio-vfio-user.md, "Messages"): what the device process says, checked as it is
 * read, and what the bridge says, which has handles and doorbells where vfio-user has fds.
 */
import { inBounds, isAligned } from "../../../shared/bits.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import {
  MAX_IRQ_VECTORS,
  MAX_REGIONS,
  MAX_REGISTER_AREAS,
  MAX_REGISTER_MEMORY,
  MAX_SHARED_PARTS,
} from "../../../shared/limits.js";
import {
  ABI_VERSION,
  AllocateEvents,
  AllocateMemory,
  Hello,
  HelloFlags,
  MemoryArea,
  RegisterArea,
  RegisterMemoryHead,
  ShareRegisters,
} from "../../../shared/spec/link.js";
import { DmaMap, DmaMapFlags, IrqSet, NUM_PCI_IRQS, NUM_PCI_REGIONS, Region } from "../../../shared/spec/vfio-user.js";
import { getU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary, IrqSetRequest, UnmapRequest } from "../../../shared/vfio-user/backend.js";
import { encodeDirtyUnmap, encodeUnmapRange, type MapPart } from "../../../shared/vfio-user/dma/dma-ranges.js";

/** Whether a region's memory can be mapped, and its writes be ioeventfds: a BAR, or one of the device's own. */
export function isSharable(region: number): boolean {
  return region <= Region.BAR5 || (region >= NUM_PCI_REGIONS && region < MAX_REGIONS);
}

/** Reads the body of ALLOCATE_MEMORY, data[offset, offset + length). @throws ProtocolError */
export function parseAllocateMemory(data: DataView, offset: number, length: number) {
  if (length < AllocateMemory.size) throw new ProtocolError(`ALLOCATE_MEMORY of ${length} bytes`);
  const { region, areas: count } = AllocateMemory.view(data, offset);
  if (count > MAX_SHARED_PARTS || length !== AllocateMemory.size + count * MemoryArea.size) {
    throw new ProtocolError(`ALLOCATE_MEMORY of ${count} areas in ${length} bytes`);
  }
  const area = MemoryArea.view();
  const areas = Array.from({ length: count }, (_, n) => {
    const { offset: start, size } = area.at(data, offset + AllocateMemory.size + n * MemoryArea.size);
    return { offset: start, size };
  });
  return { region, areas };
}

/** Reads the body of ALLOCATE_EVENTS. @throws ProtocolError */
export function parseAllocateEvents(data: DataView, offset: number, length: number) {
  if (length !== AllocateEvents.size) throw new ProtocolError(`ALLOCATE_EVENTS of ${length} bytes`);
  const { region, count } = AllocateEvents.view(data, offset);
  return { region, count };
}

/** Reads the body of SHARE_REGISTERS. @throws ProtocolError */
export function parseShareRegisters(data: DataView, offset: number, length: number) {
  if (length < ShareRegisters.size) throw new ProtocolError(`SHARE_REGISTERS of ${length} bytes`);
  const { address, size, areas: count } = ShareRegisters.view(data, offset);
  if (size < RegisterMemoryHead.size || size > MAX_REGISTER_MEMORY || !isAligned(address, 8)) {
    throw new ProtocolError(`${size} bytes of register memory at ${address}`);
  }
  if (count > MAX_REGISTER_AREAS || length !== ShareRegisters.size + count * RegisterArea.size) {
    throw new ProtocolError(`SHARE_REGISTERS of ${count} areas in ${length} bytes`);
  }
  const view = RegisterArea.view();
  const areas = Array.from({ length: count }, (_, n) => {
    const {
      region,
      offset: start,
      size: bytes,
      place,
    } = view.at(data, offset + ShareRegisters.size + n * RegisterArea.size);
    if (place < RegisterMemoryHead.size || !inBounds(place, bytes, size)) {
      throw new ProtocolError(`registers of ${bytes} bytes at ${place} of their memory`);
    }
    return { region, offset: start, size: bytes, place };
  });
  return { address, size, areas };
}

/** Bytes of a HELLO's body with that many regions. */
export function helloSize(regions: number): number {
  return Hello.size + 8 * regions + 4 * NUM_PCI_IRQS;
}

/** What HELLO says: the device, and that its process is to have no driver-VM memory in its window. */
export interface HelloContent {
  readonly summary: DeviceSummary;
  readonly isolated: boolean;
}

/** Reads HELLO's body, data[offset, offset + length). @throws ProtocolError */
export function parseHello(data: DataView, offset: number, length: number): HelloContent {
  if (length < Hello.size) throw new ProtocolError(`HELLO of ${length} bytes`);
  const { abiVersion, postedRegions, regions, flags } = Hello.view(data, offset);
  if (abiVersion !== ABI_VERSION) throw new ProtocolError(`HELLO with ABI version ${abiVersion}`, Errno.EPROTO);
  if ((flags & ~HelloFlags.ISOLATED) !== 0) throw new ProtocolError(`HELLO with flags 0x${flags.toString(16)}`);
  if (regions < NUM_PCI_REGIONS || regions > MAX_REGIONS) throw new ProtocolError(`HELLO with ${regions} regions`);
  if (length !== helloSize(regions)) throw new ProtocolError(`HELLO with ${regions} regions in ${length} bytes`);
  const sizes = offset + Hello.size;
  const regionSizes = Array.from({ length: regions }, (_, n) => getU64(data, sizes + 8 * n));
  if (!regionSizes.every(Number.isSafeInteger)) throw new ProtocolError("HELLO with a region too large");
  const counts = sizes + 8 * regions;
  const irqCounts = Array.from({ length: NUM_PCI_IRQS }, (_, n) => data.getUint32(counts + 4 * n, true));
  if (irqCounts.some((count) => count > MAX_IRQ_VECTORS)) throw new ProtocolError("HELLO with too many vectors");
  // Of as many as there are, and not of config space, whose writes have effects that the driver VM waits for.
  const posts = (region: number) => ((postedRegions >>> region) & 1) === 1;
  if (postedRegions >= 2 ** regions || posts(Region.CONFIG))
    throw new ProtocolError(`HELLO with posted regions 0x${postedRegions.toString(16)}`);
  return { summary: { postedRegions, regionSizes, irqCounts }, isolated: (flags & HelloFlags.ISOLATED) !== 0 };
}

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
