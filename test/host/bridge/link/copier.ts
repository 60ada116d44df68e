/** A device process's use of the copy queue, wrong requests included. */
import { MAX_COPY_SIZE, MiB } from "../../../../shared/limits.js";
import { CopyFlags, CopyRequest, Queue } from "../../../../shared/spec/link.js";
import type { FrontEnd } from "../../../fakes/front-end.js";
import type { TestDevice } from "../../../fakes/front-end-device.js";

export const BASE = 0x1_0000_0000;
/** Descriptors of a request, and what a request of the tests has beside its data. */
const DESCRIPTORS = 3;
const FIXED = 64;
export const SLOTS = 16;

export interface Ask {
  readonly address?: number;
  readonly length?: number;
  readonly flags?: number;
  /** Bytes of the readable and of the writable data, where they are not what the request says. */
  readonly readable?: number;
  readonly writable?: number;
  /** Parts of the room for data, in order. */
  readonly room?: readonly { readonly at: number; readonly length: number }[];
}

/** Requests in memory of the device VM: their fixed parts, then `data`, which all of them share. */
export function copier(frontEnd: FrontEnd, device: TestDevice) {
  const dma = frontEnd.allocate(SLOTS * FIXED + MAX_COPY_SIZE + MiB);
  const start = SLOTS * FIXED;
  const bytes = new Uint8Array(dma.buffer);
  const view = new DataView(dma.buffer);
  const data = bytes.subarray(start);
  const add = (slot: number, { address = BASE, length = 4096, flags = 0, ...sizes }: Ask) => {
    const isWrite = (flags & CopyFlags.WRITE) !== 0;
    const {
      readable = isWrite ? length : 0,
      writable = isWrite ? 0 : length,
      room = [{ at: 0, length: writable }],
    } = sizes;
    const at = slot * FIXED;
    Object.assign(CopyRequest.view(view, at), { address: Math.max(0, address), length, flags });
    if (address < 0) view.setBigInt64(at, BigInt(address), true);
    view.setUint32(at + 16, 0xdead, true);
    const fixed = [
      { address: dma.address + at, length: 16 },
      { address: dma.address + at + 16, length: 4, writable: true },
    ] as const;
    const source = { address: dma.address + start, length: readable };
    const targets = room.map((part) => ({
      address: dma.address + start + part.at,
      length: part.length,
      writable: true,
    }));
    const chain = readable > 0 ? [fixed[0], source, fixed[1]] : [...fixed];
    device.rings[Queue.COPY].add(slot * DESCRIPTORS, ...chain, ...(writable > 0 ? targets : []));
  };
  const kick = () => device.notify(Queue.COPY);
  const done = async () => {
    const { id, length } = await device.used(Queue.COPY);
    return { slot: id / DESCRIPTORS, status: view.getUint32((id / DESCRIPTORS) * FIXED + 16, true), length };
  };
  /** One request; its status. */
  const ask = async (request: Ask) => {
    add(0, request);
    kick();
    return (await done()).status;
  };
  return { data, add, kick, done, ask };
}
