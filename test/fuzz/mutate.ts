/**
 * What is done to valid messages: fields get boundary values, bytes change, messages are cut, doubled, swapped and
 * split. Where a field is comes from the same tables (shared/spec) that the parsers use.
 */
import { getUint, setUint } from "../../shared/struct/struct.js";
import type { Choices } from "./choices.js";

/** As much of a Struct as says where its fields are. */
export interface Layout {
  readonly size: number;
  readonly offsets: Readonly<Record<string, number>>;
}

/** Bytes to be sent, with fds. */
export interface Message {
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
}

/** Numbers at which parsers go wrong. */
const EDGES: readonly bigint[] = [
  0n,
  1n,
  2n,
  3n,
  7n,
  8n,
  15n,
  16n,
  17n,
  0x7fn,
  0xffn,
  0x100n,
  0xfffn,
  0x1000n,
  0x1001n,
  0x7fffn,
  0x8000n,
  0xffffn,
  0x10000n,
  0x100000n,
  0x101000n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_f000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x1f_ffff_ffff_f000n,
  0x1f_ffff_ffff_ffffn,
  0x20_0000_0000_0000n,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0xffff_ffff_ffff_f000n,
  0xffff_ffff_ffff_ffffn,
];

/** An odd value for a field of `width` bytes that holds `now`: mostly an edge, or a neighbour of what is there. */
export function oddValue(random: Choices, width: number, now = 0n): bigint {
  const mask = (1n << BigInt(8 * width)) - 1n;
  const value = random.weighted<() => bigint>([
    [6, () => random.pick(EDGES)],
    [2, () => now + BigInt(random.between(-2, 2))],
    [1, () => now ^ (1n << BigInt(random.below(8 * width)))],
    [1, () => now * 2n],
    [1, () => (BigInt(random.below(2 ** 32)) << 32n) | BigInt(random.below(2 ** 32))],
  ])();
  return value & mask;
}

/** The same as a number, for values that a caller passes on as one. */
export function oddNumber(random: Choices, width: number, now = 0): number {
  return Number(oddValue(random, width, BigInt(now)));
}

/** Gives `count` fields of the structure at bytes[at] odd values. */
export function spoil(random: Choices, bytes: Uint8Array, layout: Layout, at = 0, count = 1): void {
  const starts = Object.values(layout.offsets);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let n = 0; n < count; n++) {
    const index = random.below(starts.length);
    const start = at + starts[index];
    const end = at + (starts[index + 1] ?? layout.size);
    if (end > bytes.length) continue;
    const width = end - start;
    if (width === 1 || width === 2 || width === 4)
      setUint(view, start, width, oddNumber(random, width, getUint(view, start, width)));
    else if (width === 8) view.setBigUint64(start, oddValue(random, 8, view.getBigUint64(start, true)), true);
    else random.fill(bytes.subarray(start, end));
  }
}

/** A copy with a few bytes changed, cut off or added. */
export function bend(random: Choices, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  switch (random.below(4)) {
    case 0:
      return bytes.slice(0, random.below(bytes.length + 1));
    case 1: {
      const longer = new Uint8Array(bytes.length + random.between(1, 64));
      random.fill(longer);
      longer.set(bytes);
      return longer;
    }
    default: {
      const changed = new Uint8Array(bytes);
      for (let n = random.between(1, 4); n > 0 && changed.length > 0; n--) {
        changed[random.below(changed.length)] ^= 1 << random.below(8);
      }
      return changed;
    }
  }
}

/** Drops, doubles and swaps some of the messages. */
export function disorder<T>(random: Choices, messages: readonly T[]): T[] {
  const out = [...messages];
  for (let n = random.between(1, 3); n > 0 && out.length > 0; n--) {
    const at = random.below(out.length);
    const to = random.below(out.length);
    const kind = random.below(3);
    if (kind === 0) out.splice(at, 1);
    else if (kind === 1) out.splice(to, 0, out[at]);
    else [out[at], out[to]] = [out[to], out[at]];
  }
  return out;
}

/**
 * The messages as one stream, cut into pieces at random; a message's fds go with its first byte, or now and then with
 * another.
 */
export function cut(random: Choices, messages: readonly Message[]): Message[] {
  const pieces: Message[] = [];
  let waiting: Uint8Array[] = [];
  let fds: number[] = [];
  const flush = () => {
    if (waiting.length > 0) pieces.push({ bytes: Buffer.concat(waiting), fds });
    waiting = [];
    fds = [];
  };
  for (const message of messages) {
    let { bytes } = message;
    if (message.fds.length > 0) {
      // In front of a message with fds there is an end, as sendmsg makes one.
      if (!random.chance(1)) flush();
      fds = [...fds, ...message.fds].slice(0, 253);
    }
    while (random.chance(25) && bytes.length > 1) {
      const length = random.chance(50)
        ? random.between(1, Math.min(bytes.length - 1, 20))
        : random.between(1, bytes.length - 1);
      waiting.push(bytes.subarray(0, length));
      bytes = bytes.subarray(length);
      flush();
    }
    if (bytes.length > 0) waiting.push(bytes);
    if (!random.chance(30)) flush();
  }
  flush();
  return pieces;
}
