/**
 * Messages as bytes, good and bad: the header, and the bodies of requests. A checker has to send what a well-behaved
 * client cannot, and to see what one hides (ids, flags, what else is in an error reply), so it has a codec of its own:
 * of the server's code it shares the specification's tables alone. 64-bit fields take a BigInt as well, for addresses
 * above 2^53.
 */
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  Header,
  HeaderFlags,
  IrqSet,
  RegionAccess,
  RegionInfo,
  Version,
} from "../../shared/spec/vfio-user.js";

export interface Message {
  readonly id: number;
  readonly command: number;
  /** HeaderFlags. */
  readonly flags: number;
  readonly errno: number;
  readonly body: Uint8Array;
  readonly data: DataView;
  /** Closed with the session. */
  readonly fds: readonly number[];
}

/** A reply, or undefined when the server closed the connection instead. */
export type Answer = Message | undefined;

export interface HeaderFields {
  readonly id?: number;
  readonly flags?: number;
  /** In place of the true size. */
  readonly size?: number;
  readonly errno?: number;
}

export const NO_BYTES = new Uint8Array(0);

/** A message's bytes, header included. */
export function encode(command: number, body: Uint8Array = NO_BYTES, fields: HeaderFields = {}): Buffer {
  const { id = 1, flags = 0, errno = 0, size = Header.size + body.length } = fields;
  return Buffer.concat([Header.encode({ id, command, size, flags, errno }), body]);
}

export function isReply(message: Message): boolean {
  return (message.flags & HeaderFlags.TYPE_MASK) === HeaderFlags.TYPE_REPLY;
}

export function isError(message: Message): boolean {
  return (message.flags & HeaderFlags.ERROR) !== 0;
}

const COMMAND_NAMES = new Map<number, string>(Object.entries(Command).map(([name, number]) => [number, name]));

export function commandName(command: number): string {
  return COMMAND_NAMES.get(command) ?? `command ${command}`;
}

/** What the checker announces of itself. Every one of them is in the specification. */
export const OUR_CAPABILITIES = {
  max_msg_fds: 8,
  max_data_xfer_size: 1048576,
  max_dma_maps: 65535,
  pgsizes: 4096,
  write_multiple: true,
};

/** The body of DEVICE_GET_INFO. */
export const GET_INFO_BODY = DeviceInfo.encode({ argsz: DeviceInfo.size });

function putU64(bytes: Uint8Array<ArrayBuffer>, offset: number, value: number | bigint): void {
  new DataView(bytes.buffer).setBigUint64(offset, BigInt(value), true);
}

/** VERSION: `json` is sent as it is, with a NUL behind it; undefined leaves the version data out. */
export function encodeVersion(fields: { major?: number; minor?: number; json?: string | undefined }): Uint8Array {
  const fixed = Version.encode({ major: fields.major ?? 0, minor: fields.minor ?? 0 });
  return fields.json === undefined ? fixed : Buffer.concat([fixed, Buffer.from(`${fields.json}\0`)]);
}

export interface MapFields {
  readonly address?: number | bigint;
  readonly size?: number | bigint;
  readonly offset?: number | bigint;
  readonly flags?: number;
  readonly argsz?: number;
}

/** Where the checker maps, far above what a PC has below 4 GiB. */
export const MAP_ADDRESS = 0x10_0000_0000;
export const PAGE = 4096;

export function encodeMap(fields: MapFields = {}): Uint8Array {
  const { flags = DmaMapFlags.READ | DmaMapFlags.WRITE, argsz = DmaMap.size } = fields;
  const bytes = DmaMap.encode({ argsz, flags });
  putU64(bytes, DmaMap.offsets.offset, fields.offset ?? 0);
  putU64(bytes, DmaMap.offsets.address, fields.address ?? MAP_ADDRESS);
  putU64(bytes, DmaMap.offsets.size, fields.size ?? PAGE);
  return bytes;
}

export function encodeUnmap(fields: MapFields = {}): Uint8Array {
  const bytes = DmaUnmap.encode({ argsz: fields.argsz ?? DmaUnmap.size, flags: fields.flags ?? 0 });
  putU64(bytes, DmaUnmap.offsets.address, fields.address ?? MAP_ADDRESS);
  putU64(bytes, DmaUnmap.offsets.size, fields.size ?? PAGE);
  return bytes;
}

export interface AccessFields {
  readonly region: number;
  readonly offset: number | bigint;
  readonly count: number;
  readonly bytes?: Uint8Array;
}

/** REGION_READ, or REGION_WRITE with `bytes`, whose length need not be `count`. */
export function encodeAccess({ region, offset, count, bytes = NO_BYTES }: AccessFields): Uint8Array {
  const fixed = RegionAccess.encode({ region, count });
  putU64(fixed, RegionAccess.offsets.offset, offset);
  return Buffer.concat([fixed, bytes]);
}

export interface IrqSetFields {
  readonly flags: number;
  readonly index: number;
  readonly start?: number;
  readonly count?: number;
  readonly argsz?: number;
  readonly bools?: readonly number[];
}

export function encodeIrqSet(fields: IrqSetFields): Uint8Array {
  const { flags, index, start = 0, count = 0, bools = [] } = fields;
  const argsz = fields.argsz ?? IrqSet.size + bools.length;
  return Buffer.concat([IrqSet.encode({ argsz, flags, index, start, count }), Uint8Array.from(bools)]);
}

export function encodeRegionInfo(index: number, argsz: number = RegionInfo.size): Uint8Array {
  return RegionInfo.encode({ argsz, index });
}

export function encodeFeature(flags: number, payload: Uint8Array = NO_BYTES, argsz?: number): Uint8Array {
  const needed = DeviceFeature.size + payload.length;
  return Buffer.concat([DeviceFeature.encode({ argsz: argsz ?? needed, flags }), payload]);
}
