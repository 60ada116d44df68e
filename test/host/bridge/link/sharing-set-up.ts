/**
 * A device process that shares two parts of BAR 0, shadow memory and two ioeventfds; what it answers, and what a client
 * maps.
 */
import type { ExecutionContext } from "ava";
import * as native from "../../../../native/index.js";
import { ProtocolError } from "../../../../shared/errors.js";
import { MAX_SHARED_PARTS } from "../../../../shared/limits.js";
import {
  AllocateEvents,
  AllocateMemory,
  LinkCommand,
  MemoryAllocated,
  MemoryArea,
  NO_REGION,
  RegisterArea,
  RegisterMemoryHead,
  ShareRegisters,
} from "../../../../shared/spec/link.js";
import {
  Command,
  HeaderFlags,
  IoEventFd,
  IoFdType,
  Region,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionInfoFlags,
  RegionIoFds,
  SparseMmap,
  SparseMmapArea,
} from "../../../../shared/spec/vfio-user.js";
import { getU64 } from "../../../../shared/struct/struct.js";
import type { Client } from "../../../../shared/vfio-user/client/client.js";
import type { FrontEnd } from "../../../fakes/front-end.js";
import { WINDOW_BAR } from "../../../fakes/front-end-config.js";
import { BAR_SIZE, type LinkMessage, message, type TestDevice } from "../../../fakes/front-end-device.js";

export interface Part {
  readonly offset: number;
  readonly size: number;
}
export const PARTS: readonly Part[] = [
  { offset: 0x1000, size: 0x1000 },
  { offset: 0x3000, size: 0x1000 },
];
const FLAGS = RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.MMAP | RegionInfoFlags.CAPS;
export const refusal = (errno: number) => ({ instanceOf: ProtocolError, message: new RegExp(`errno ${errno}`) });

export const memoryBody = (region: number, parts: readonly Part[], areas = parts.length) =>
  Buffer.concat([AllocateMemory.encode({ region, areas }), ...parts.map((part) => MemoryArea.encode(part))]);
export const allocateMemory = (device: TestDevice, region: number, parts: readonly Part[]) =>
  device.request(LinkCommand.ALLOCATE_MEMORY, new Uint8Array(memoryBody(region, parts)));
export const allocateEvents = (device: TestDevice, region: number, count: number) =>
  device.request(LinkCommand.ALLOCATE_EVENTS, AllocateEvents.encode({ region, count }));

/**
 * SHARE_REGISTERS of one page at `address`, with 16 bytes of `region` from its start right behind the memory's head.
 */
export const registersBody = (
  address: number,
  region: number,
  fields: Parameters<typeof RegisterArea.encode>[0] = {},
) =>
  Buffer.concat([
    ShareRegisters.encode({ address, size: 0x1000, areas: 1 }),
    RegisterArea.encode({ region, offset: 0, size: 0x10, place: RegisterMemoryHead.size, ...fields }),
  ]);

/** What the device process got: the handle, and where its areas are in the window. */
export function allocated(frontEnd: FrontEnd, { body, data, errno }: LinkMessage, parts: readonly Part[]) {
  if (errno !== 0 || body.length !== MemoryAllocated.size + 8 * parts.length) throw new Error(`errno ${errno}`);
  const window = new Uint8Array(frontEnd.memory(WINDOW_BAR, 0, frontEnd.windowSize));
  const offsets = parts.map((_, n) => getU64(data, MemoryAllocated.size + 8 * n));
  const views = parts.map(({ size }, n) => window.subarray(offsets[n], offsets[n] + size));
  return { handle: MemoryAllocated.view(data).handle, offsets, views };
}

/** The device process starts again, and shares: two parts of BAR 0, memory of no region, two eventfds. */
export async function share(frontEnd: FrontEnd, device: TestDevice, parts = PARTS) {
  device.start();
  const bar = allocated(frontEnd, await allocateMemory(device, Region.BAR0, parts), parts);
  const shadowPart = [{ offset: 0, size: 0x1000 }];
  const shadow = allocated(frontEnd, await allocateMemory(device, NO_REGION, shadowPart), shadowPart);
  const { data } = await allocateEvents(device, Region.BAR0, 2);
  const events = [data.getUint32(0, true), data.getUint32(4, true)];
  const hello = await device.request(LinkCommand.HELLO, device.hello());
  if (hello.errno !== 0) throw new Error(`HELLO: errno ${hello.errno}`);
  return { bar, shadow, events };
}

/** The device process has begun to make memory, which takes as long as the front-end is busy. */
export function beginMemory(frontEnd: FrontEnd, device: TestDevice): void {
  frontEnd.reset();
  device.start();
  frontEnd.busy = true;
  device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(Region.BAR0, PARTS)));
  // Two round trips: the bridge has seen the message, and begun.
  frontEnd.memoryChanged();
  frontEnd.memoryChanged();
}

/** A reply whose header and tail carry handles. */
export function replyWithHandles(
  device: TestDevice,
  to: LinkMessage,
  body: Uint8Array,
  handles: readonly number[],
  count = handles.length,
) {
  const tail = new Uint8Array(Uint32Array.from(handles).buffer);
  device.sendRaw(message(to.id, to.command, HeaderFlags.TYPE_REPLY, Buffer.concat([body, tail]), count));
}

export const regionInfo = (areas: readonly Part[], fields: Parameters<typeof RegionInfo.encode>[0] = {}) => {
  const body = [SparseMmap.encode({ areas: areas.length }), ...areas.map((area) => SparseMmapArea.encode(area))];
  return regionInfoWith([{ id: RegionCap.SPARSE_MMAP, body: Buffer.concat(body) }], { flags: FLAGS, ...fields });
};
/** A region's info with these capabilities, one behind the other, each given without its header. */
export function regionInfoWith(
  capabilities: readonly { readonly id: number; readonly body: Uint8Array; readonly next?: number }[],
  fields: Parameters<typeof RegionInfo.encode>[0] = {},
): Buffer<ArrayBuffer> {
  let at: number = RegionInfo.size;
  const parts = capabilities.map(({ id, body, next }, n) => {
    at += RegionCapHeader.size + body.length;
    const isLast = n === capabilities.length - 1;
    return Buffer.concat([RegionCapHeader.encode({ id, version: 1, next: next ?? (isLast ? 0 : at) }), body]);
  });
  const { READ, WRITE, CAPS } = RegionInfoFlags;
  const info = { argsz: at, flags: READ | WRITE | CAPS, capOffset: RegionInfo.size, size: BAR_SIZE, ...fields };
  return Buffer.concat([RegionInfo.encode(info), ...parts]);
}
type Entry = Parameters<typeof IoEventFd.encode>[0];
export const ioFds = (entries: readonly Entry[], fields: Parameters<typeof RegionIoFds.encode>[0] = {}) =>
  Buffer.concat([
    RegionIoFds.encode({ argsz: RegionIoFds.size + entries.length * IoEventFd.size, count: entries.length, ...fields }),
    ...entries.map((entry) => IoEventFd.encode(entry)),
  ]);

/** Answers of the device process to what a client asks of what it shares. */
export function answer(device: TestDevice, { bar, shadow, events }: Awaited<ReturnType<typeof share>>, parts = PARTS) {
  const entries: Entry[] = [
    { gpaOffset: 0x10, size: 4, fdIndex: 0 },
    { gpaOffset: 0x18, size: 8, fdIndex: 1, type: IoFdType.IOEVENTFD_SHADOW, shadowMemFdIndex: 2, shadowOffset: 8 },
  ];
  device.onCommand = (received) => {
    const argsz = received.body.length >= 4 ? received.data.getUint32(0, true) : 0;
    if (received.command === Command.DEVICE_GET_REGION_INFO) {
      const body = regionInfo(parts);
      if (argsz >= body.length) replyWithHandles(device, received, body, [bar.handle]);
      else device.reply(received, RegionInfo.encode({ argsz: body.length, flags: 3, index: 0, size: BAR_SIZE }));
      return true;
    }
    if (received.command === Command.DEVICE_GET_REGION_IO_FDS) {
      const body = ioFds(entries);
      if (argsz >= body.length) replyWithHandles(device, received, body, [...events, shadow.handle]);
      else device.reply(received, RegionIoFds.encode({ argsz: body.length, count: entries.length }));
      return true;
    }
    return false;
  };
}

/** The two parts of BAR 0 as the client has them. */
export async function mapBar(t: ExecutionContext, client: Client) {
  const { fd, areas } = await client.getRegionInfo(Region.BAR0);
  t.deepEqual(areas, [...PARTS]);
  const views = areas.map(
    ({ offset, size }) => new Uint8Array(native.mapFile(fd, offset, size, native.PROT_READ | native.PROT_WRITE)),
  );
  const { inode } = native.fileStatus(fd);
  native.close(fd);
  return { views, inode };
}

export async function eventsOf(t: ExecutionContext, client: Client) {
  const { events, fds } = await client.getRegionIoFds(Region.BAR0);
  t.teardown(() => {
    for (const fd of fds) native.close(fd);
  });
  return { events, fds };
}

/** One more than there may be of a region. */
export const tooMany = Array.from({ length: MAX_SHARED_PARTS + 1 }, (_, n) => ({ offset: n * 0x1000, size: 0x1000 }));
/** What a device process that shares as above has. */
export type Shared = Awaited<ReturnType<typeof share>>;
