/** Requests as raw bytes, good ones unless told otherwise, for tests that send wrong ones. */
import { addSeals, createMemory, F_SEAL_GROW, F_SEAL_SHRINK } from "../../../native/index.js";
import {
  Bitmap,
  Command,
  DmaMap,
  DmaUnmap,
  DmaUnmapFlags,
  HeaderFlags,
  Irq,
  IrqSet,
  RegionAccess,
  WriteMulti,
  WriteMultiEntry,
} from "../../../shared/spec/vfio-user.js";
import { message, type RawClient } from "./raw-client.js";

export const READ_1 = message(Command.REGION_READ, RegionAccess.encode({ offset: 5, region: 0, count: 1 }), {
  id: 4711,
});

/** The connection still does what it should. */
export async function usable(raw: RawClient): Promise<boolean> {
  const reply = await raw.exchange(READ_1);
  return reply.id === 4711 && reply.flags === HeaderFlags.TYPE_REPLY && reply.body.at(-1) === 5;
}

export const sealed = (size: number) => {
  const fd = createMemory("test", size, false);
  addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
  return fd;
};

export const map = (fields: Partial<Record<keyof (typeof DmaMap)["offsets"], number>> = {}) =>
  DmaMap.encode({ argsz: DmaMap.size, flags: 3, address: 0x10000, size: 0x1000, ...fields });
export const unmap = (fields: Partial<Record<keyof (typeof DmaUnmap)["offsets"], number>> = {}) =>
  DmaUnmap.encode({ argsz: DmaUnmap.size, address: 0x8000, size: 0x1000, ...fields });
export const dirtyUnmap = (fields: Parameters<typeof unmap>[0] = {}, pageSize = 4096, size = 8) =>
  Buffer.concat([
    unmap({ flags: DmaUnmapFlags.GET_DIRTY_BITMAP, argsz: DmaUnmap.size + Bitmap.size + 8, ...fields }),
    Bitmap.encode({ pageSize, size }),
  ]);
export const irqs = (fields: Partial<Record<keyof (typeof IrqSet)["offsets"], number>> = {}, tail = 0) =>
  Buffer.concat([
    IrqSet.encode({ argsz: IrqSet.size, flags: 0x21, index: Irq.MSIX, count: 1, ...fields }),
    Buffer.alloc(tail),
  ]);
export const access = (offset: number, region: number, count: number, data = 0) =>
  Buffer.concat([RegionAccess.encode({ offset, region, count }), Buffer.alloc(data)]);
export const multi = (writes: number, ...entries: { offset?: number; region?: number; count?: number }[]) =>
  Buffer.concat([
    WriteMulti.encode({ writes }),
    ...entries.map((entry) => WriteMultiEntry.encode({ count: 4, ...entry })),
  ]);
/** A 64-bit number that no JavaScript number holds exactly. */
export const withU64 = (body: Uint8Array, offset: number, value: bigint) => {
  new DataView(body.buffer, body.byteOffset).setBigUint64(offset, value, true);
  return body;
};
