/** The bodies of a client's longer requests, made from what its caller says. */
import {
  DmaMap,
  DmaMapFlags,
  IrqSet,
  IrqSetFlags,
  RegionAccess,
  WRITE_MULTI_MAX_DATA,
  WriteMulti,
  WriteMultiEntry,
} from "../../spec/vfio-user.js";

/** What SET_IRQS is to do; the data follows from which of `bools` and `eventfds` is there. */
export interface IrqSetting {
  readonly index: number;
  readonly start?: number;
  readonly count?: number;
  readonly action?: "mask" | "unmask" | "trigger";
  readonly bools?: readonly boolean[];
  /** [] with a count takes the bindings away. The fds stay the caller's. */
  readonly eventfds?: readonly number[];
}

export interface RegionWriteEntry {
  readonly region: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** Memory for the server; address (as in ../address.ts) and sizes in bytes. */
export interface MapSetting {
  readonly address: number;
  readonly size: number;
  readonly fd?: number;
  readonly fdOffset?: number;
  /** Both unless false. */
  readonly readable?: boolean;
  readonly writable?: boolean;
}

const ACTIONS = {
  mask: IrqSetFlags.ACTION_MASK,
  unmask: IrqSetFlags.ACTION_UNMASK,
  trigger: IrqSetFlags.ACTION_TRIGGER,
} as const;

export function encodeMap({ address, size, fdOffset = 0, readable = true, writable = true }: MapSetting): Uint8Array {
  const flags = (readable ? DmaMapFlags.READ : 0) | (writable ? DmaMapFlags.WRITE : 0);
  return DmaMap.encode({ argsz: DmaMap.size, flags, offset: fdOffset, address, size });
}

export function encodeIrqSetting(setting: IrqSetting): Uint8Array {
  const { index, start = 0, action = "trigger", bools, eventfds } = setting;
  const count = setting.count ?? bools?.length ?? eventfds?.length ?? 0;
  const data = bools ? IrqSetFlags.DATA_BOOL : eventfds ? IrqSetFlags.DATA_EVENTFD : IrqSetFlags.DATA_NONE;
  const tail = Uint8Array.from(bools ?? [], Number);
  const flags = data | ACTIONS[action];
  return Buffer.concat([IrqSet.encode({ argsz: IrqSet.size + tail.length, flags, index, start, count }), tail]);
}

export function encodeRegionWrite(region: number, offset: number, bytes: Uint8Array): Uint8Array {
  const body = new Uint8Array(RegionAccess.size + bytes.length);
  const view = RegionAccess.view(new DataView(body.buffer));
  view.offset = offset;
  view.region = region;
  view.count = bytes.length;
  body.set(bytes, RegionAccess.size);
  return body;
}

export function encodeWriteMulti(entries: readonly RegionWriteEntry[]): Uint8Array {
  const body = new Uint8Array(WriteMulti.size + entries.length * WriteMultiEntry.size);
  const data = new DataView(body.buffer);
  WriteMulti.view(data).writes = entries.length;
  const view = WriteMultiEntry.view();
  entries.forEach(({ region, offset, bytes }, index) => {
    const at = WriteMulti.size + index * WriteMultiEntry.size;
    view.at(data, at);
    view.offset = offset;
    view.region = region;
    view.count = bytes.length;
    body.set(bytes.subarray(0, WRITE_MULTI_MAX_DATA), at + WriteMultiEntry.offsets.data);
  });
  return body;
}
