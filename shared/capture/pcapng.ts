/**
 * Blocks of a pcapng file (IETF draft-ietf-opsawg-pcapng): what a capture of ours is made of. Little-endian; times in
 * microseconds.
 */
import { struct } from "../struct/struct.js";

/** "Section Header Block"; its length is not known beforehand. */
const SectionHeader = struct({
  type: "u32",
  totalLength: "u32",
  magic: "u32",
  major: "u16",
  minor: "u16",
  sectionLength: "u64big",
});
const SECTION_HEADER = 0x0a0d0d0a;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const UNKNOWN_LENGTH = 2n ** 64n - 1n;

/** "Interface Description Block", and behind it options. */
const InterfaceDescription = struct({
  type: "u32",
  totalLength: "u32",
  linkType: "u16",
  reserved: 2,
  snapLength: "u32",
});
const INTERFACE_DESCRIPTION = 1;

/** "Enhanced Packet Block", and behind it the packet. */
const EnhancedPacket = struct({
  type: "u32",
  totalLength: "u32",
  interface: "u32",
  timeHigh: "u32",
  timeLow: "u32",
  capturedLength: "u32",
  originalLength: "u32",
});
const ENHANCED_PACKET = 6;

/** "Interface Statistics Block", and behind it options. */
const InterfaceStatistics = struct({
  type: "u32",
  totalLength: "u32",
  interface: "u32",
  timeHigh: "u32",
  timeLow: "u32",
});
const INTERFACE_STATISTICS = 5;

const Option = struct({ code: "u16", length: "u16" });
const IF_NAME = 2;
const ISB_IFDROP = 5;

/** Each block ends with its length once more. */
const TRAILER = 4;

const padded = (length: number) => Math.ceil(length / 4) * 4;

function block(head: Uint8Array, ...rest: Uint8Array[]): Buffer {
  const body = [head, ...rest].reduce((sum, { length }) => sum + length, 0);
  const bytes = Buffer.alloc(padded(body) + TRAILER);
  let at = 0;
  for (const part of [head, ...rest]) {
    bytes.set(part, at);
    at += part.length;
  }
  bytes.writeUInt32LE(bytes.length, SectionHeader.offsets.totalLength);
  bytes.writeUInt32LE(bytes.length, bytes.length - TRAILER);
  return bytes;
}

function option(code: number, value: Uint8Array): Buffer {
  const bytes = Buffer.alloc(Option.size + padded(value.length));
  bytes.set(Option.encode({ code, length: value.length }));
  bytes.set(value, Option.size);
  return bytes;
}
const END_OF_OPTIONS = Option.encode({});

export function sectionHeader(): Buffer {
  const head = { type: SECTION_HEADER, magic: BYTE_ORDER_MAGIC, major: 1, minor: 0, sectionLength: UNKNOWN_LENGTH };
  return block(SectionHeader.encode(head));
}

/** @param snapLength the most bytes of a packet that are kept */
export function interfaceDescription(name: string, linkType: number, snapLength: number): Buffer {
  const head = InterfaceDescription.encode({ type: INTERFACE_DESCRIPTION, linkType, snapLength });
  return block(head, option(IF_NAME, Buffer.from(name)), END_OF_OPTIONS);
}

/** @param time in microseconds since 1970 @param parts the packet's bytes that are kept, of `originalLength` in all */
export function enhancedPacket(index: number, time: number, originalLength: number, ...parts: Uint8Array[]): Buffer {
  const capturedLength = parts.reduce((sum, { length }) => sum + length, 0);
  const head = { type: ENHANCED_PACKET, interface: index, ...halves(time), capturedLength, originalLength };
  return block(EnhancedPacket.encode(head), ...parts);
}

/** How many packets of an interface were lost so far. */
export function interfaceStatistics(index: number, time: number, dropped: number): Buffer {
  const value = Buffer.alloc(8);
  value.writeBigUInt64LE(BigInt(dropped));
  const head = InterfaceStatistics.encode({ type: INTERFACE_STATISTICS, interface: index, ...halves(time) });
  return block(head, option(ISB_IFDROP, value), END_OF_OPTIONS);
}

const halves = (time: number) => ({ timeHigh: Math.floor(time / 2 ** 32), timeLow: time >>> 0 });
