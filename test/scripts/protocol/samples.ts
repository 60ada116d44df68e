/** Messages made of the model in shared/spec/messages.ts, and what our own views say of them. */
import {
  type AnyStruct,
  type Body,
  type Count,
  type Message,
  PROTOCOLS,
  type Protocol,
} from "../../../shared/spec/messages.js";
import { Header, HeaderFlags, RegionCap, RegionCapHeader } from "../../../shared/spec/vfio-user.js";
import type { Scalar } from "../../../shared/struct/struct.js";

/** What a parser is to say: field names as in the tables, lists, bytes as hexadecimal. */
export type Tree = number | string | readonly Tree[] | { readonly [name: string]: Tree };

export interface Sample {
  readonly protocol: Protocol;
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly header: Tree;
  readonly body: Tree;
  readonly handles: readonly number[];
}

/** Numbers that look random and are the same in each run (xorshift). */
export class Numbers {
  #state = 0x2545f491;

  next(): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return this.#state >>> 0;
  }

  below(limit: number): number {
    return this.next() % limit;
  }

  /** With bits everywhere below a power of two, of at most 2^53. */
  upTo(limit: number): number {
    return ((this.next() % 2 ** 21) * 2 ** 32 + this.next()) % limit;
  }

  bytes(length: number): Buffer {
    return Buffer.from(Array.from({ length }, () => this.below(256)));
  }
}

const LIMITS: Readonly<Record<Scalar, number>> = {
  u8: 2 ** 8,
  u16: 2 ** 16,
  u32: 2 ** 32,
  // What all languages have exactly, and our own views.
  u64: 2 ** 53,
  i64: 2 ** 53,
  u64big: 2 ** 53,
};

class Builder {
  readonly chunks: Uint8Array[] = [];
  readonly #structs: Record<string, Record<string, number>> = {};
  readonly #protocol: Protocol;
  readonly #numbers: Numbers;

  constructor(protocol: Protocol, numbers: Numbers) {
    this.#protocol = protocol;
    this.#numbers = numbers;
  }

  /** @param isShort leaves out what is optional */
  body({ parts }: Body, isShort: boolean, chosen: number): Tree {
    const tree: Record<string, Tree> = {};
    for (const [index, part] of parts.entries()) {
      switch (part.kind) {
        case "struct": {
          if (isShort && part.optional) return tree;
          const fixed: Record<string, number> = {};
          // What counts something that follows, or chooses it, has to fit.
          for (const later of parts.slice(index + 1)) {
            if ("count" in later && typeof later.count === "object" && later.count.of === part.name)
              fixed[later.count.field] = isShort ? 0 : 1 + this.#numbers.below(40);
            if (later.kind === "choice" && later.of === part.name) fixed[later.field] = chosen;
            if (later.kind === "capabilities")
              Object.assign(fixed, isShort ? { flags: 0, capOffset: 0 } : { flags: 15 });
          }
          const struct = this.#protocol.structs[part.struct];
          if (fixed.flags === 15) fixed.capOffset = struct.size;
          tree[part.name] = this.#struct(struct, part.name, fixed);
          break;
        }
        case "structs": {
          const struct = this.#protocol.structs[part.struct];
          tree[part.name] = this.#times(part.count, () => this.#struct(struct, part.name));
          break;
        }
        case "words":
          tree[part.name] = this.#times(part.count, () => this.#word(part.type));
          break;
        case "bytes": {
          const bytes = this.#numbers.bytes(this.#count(part.count));
          this.chunks.push(bytes);
          tree[part.name] = bytes.toString("hex");
          break;
        }
        case "text": {
          const text = `{"capabilities":{"max_msg_fds":${this.#numbers.below(100)}}}`;
          this.chunks.push(Buffer.from(`${text}\0`));
          tree[part.name] = text;
          break;
        }
        case "choice": {
          const body = part.bodies[chosen & part.mask];
          tree[part.name] = this.body(body, isShort, 0);
          break;
        }
        case "capabilities":
          if (!isShort) tree.firstCapability = this.#capabilities();
      }
    }
    return tree;
  }

  #capabilities(): Tree {
    const { RegionInfo, SparseMmap, SparseMmapArea, RegionType } = this.#protocol.structs;
    const areas = 2;
    const next = RegionInfo.size + RegionCapHeader.size + SparseMmap.size + areas * SparseMmapArea.size;
    const header = this.#struct(RegionCapHeader, "sparse header", { id: RegionCap.SPARSE_MMAP, next });
    const sparse = this.#struct(SparseMmap, "sparse", { areas });
    const list = [this.#struct(SparseMmapArea, "area"), this.#struct(SparseMmapArea, "area")];
    const last = this.#struct(RegionCapHeader, "type header", { id: RegionCap.TYPE, next: 0 });
    const body = this.#struct(RegionType, "type");
    return { header, body: { sparse, areas: list }, nextCapability: { header: last, body } };
  }

  #count(count: Count): number {
    if (count === "rest") return 1 + this.#numbers.below(5);
    return typeof count === "number" ? count : this.#structs[count.of][count.field];
  }

  #times(count: Count, make: () => Tree): Tree {
    return Array.from({ length: this.#count(count) }, make);
  }

  #word(type: "u32" | "u64"): number {
    const value = this.#numbers.upTo(LIMITS[type]);
    const bytes = Buffer.alloc(type === "u32" ? 4 : 8);
    if (type === "u32") bytes.writeUInt32LE(value);
    else bytes.writeBigUInt64LE(BigInt(value));
    this.chunks.push(bytes);
    return value;
  }

  #struct(struct: AnyStruct, name: string, fixed: Record<string, number> = {}): Tree {
    const values: Record<string, number> = {};
    for (const [field, type] of Object.entries(struct.table as Record<string, Scalar | number>)) {
      if (typeof type === "number") continue;
      const random = this.#numbers.upTo(LIMITS[type]);
      values[field] = fixed[field] ?? random;
    }
    const bytes = struct.encode(values);
    this.chunks.push(bytes);
    this.#structs[name] = values;
    return values;
  }
}

/** Numbers for a body's choices, if it has any. */
function choicesOf({ parts }: Body): number[] {
  const choice = parts.find((part) => part.kind === "choice");
  return choice?.kind === "choice" ? Object.keys(choice.bodies).map(Number) : [0];
}

function sample(
  protocol: Protocol,
  message: Message,
  isReply: boolean,
  isShort: boolean,
  chosen: number,
  numbers: Numbers,
) {
  const builder = new Builder(protocol, numbers);
  const body = builder.body(isReply ? message.reply : message.request, isShort, chosen);
  const handles = isReply && message.handles && !isShort ? [7, 9, 0xffff_fffe] : [];
  const bodyBytes = Buffer.concat([...builder.chunks, Buffer.from(Uint32Array.from(handles).buffer)]);
  const header = {
    id: numbers.below(2 ** 16),
    command: message.command,
    size: Header.size + bodyBytes.length,
    flags: isReply ? HeaderFlags.TYPE_REPLY : HeaderFlags.TYPE_COMMAND,
    errno: handles.length,
  };
  const name = `${protocol.id} ${message.name} ${isReply ? "reply" : "request"}${isShort ? ", short" : ""} ${chosen}`;
  return { protocol, name, header, body, handles, bytes: Buffer.concat([Header.encode(header), bodyBytes]) };
}

/** Each message of each protocol, whole and as short as it may be. */
export function samples(): Sample[] {
  const numbers = new Numbers();
  const all: Sample[] = [];
  for (const protocol of PROTOCOLS)
    for (const message of protocol.messages)
      for (const isReply of [false, true])
        for (const chosen of choicesOf(isReply ? message.reply : message.request))
          for (const isShort of [false, true]) all.push(sample(protocol, message, isReply, isShort, chosen, numbers));
  return all;
}

/** An error reply of each protocol. */
export function errorReplies(): Sample[] {
  return PROTOCOLS.map((protocol) => {
    const { command } = protocol.messages[0];
    const flags = HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR;
    const header = { id: 3, command, size: Header.size, flags, errno: 22 };
    return { protocol, name: `${protocol.id} error`, header, body: {}, handles: [], bytes: Header.encode(header) };
  });
}

/** What is wrong with them every parser has to see: what a length in them is no longer true of. */
export function broken(whole: readonly Sample[]): Sample[] {
  const found: Sample[] = [];
  for (const each of whole) {
    if (each.bytes.length <= Header.size + 4 || isPadded(each)) continue;
    const longer = Buffer.concat([each.bytes, Buffer.alloc(3)]);
    longer.writeUInt32LE(longer.length, Header.offsets.size);
    const isOpen = /rest/.test(JSON.stringify(bodyOf(each)));
    if (!isOpen) found.push({ ...each, name: `${each.name}, too long`, bytes: longer });
    const shorter = Buffer.from(each.bytes.subarray(0, Header.size + 2));
    shorter.writeUInt32LE(shorter.length, Header.offsets.size);
    if (each.handles.length === 0 && !isOptional(each))
      found.push({ ...each, name: `${each.name}, cut`, bytes: shorter });
  }
  return found;
}

function bodyOf({ protocol, header }: Sample): Body {
  const { command, flags } = header as { command: number; flags: number };
  const message = protocol.messages.find((each) => each.command === command);
  if (message === undefined) throw new Error(`no command ${command}`);
  return flags === HeaderFlags.TYPE_REPLY ? message.reply : message.request;
}

/** A body in which anything may stand behind what is known, or at an offset that it names. */
const isPadded = (each: Sample) =>
  bodyOf(each).padded === true || bodyOf(each).parts.some(({ kind }) => kind === "capabilities");
const isOptional = (each: Sample) => {
  const [first] = bodyOf(each).parts;
  return first === undefined || first.kind === "bytes" || first.kind === "text" || first.kind === "words";
};
