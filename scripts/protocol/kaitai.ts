/**
 * The messages as Kaitai Struct descriptions, from which parsers for many languages can be made: one file for each
 * protocol, endianness explicit. What is malformed is refused by the parser that is made of it.
 */
import { stringify } from "yaml";
import { CaptureDirection, CaptureHead } from "../../shared/spec/capture.js";
import { MESSAGE_TYPES, NAMES } from "../../shared/spec/field-names.js";
import type { AnyStruct, Body, Count, Part, Protocol } from "../../shared/spec/messages.js";
import { Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import type { Scalar } from "../../shared/struct/struct.js";
import { SIZES, snake } from "./names.js";

type Yaml = Record<string, unknown>;

const UNKNOWN = "unknown_data";
/** No command's, times two: the body of an error reply. */
const ERROR_KEY = 0x20000;

export function kaitai(protocol: Protocol): string {
  const types: Record<string, Yaml> = { header: structType("Header", Header) };
  for (const [name, struct] of Object.entries(protocol.structs)) types[snake(name)] = structType(name, struct);
  types[UNKNOWN] = { seq: [{ id: "data", "size-eos": true }] };
  const cases: Record<number, string> = { [ERROR_KEY]: "empty" };
  const withHandles: string[] = [];
  for (const { command, request, reply, handles } of protocol.messages) {
    for (const [type, body] of [request, reply].entries()) {
      addBody(types, body);
      cases[2 * command + type] = body.name;
    }
    if (handles) withHandles.push(`header.command == ${command}`);
  }
  const seq: Yaml[] = [{ id: "header", type: "header" }];
  const size = `header.size - ${Header.size}`;
  const type = { "switch-on": "body_kind", cases: { ...cases, _: UNKNOWN } };
  if (withHandles.length === 0) seq.push({ id: "body", size, type });
  else {
    seq.push({ id: "body", size: `${size} - 4 * handle_count`, type });
    seq.push({ id: "handles", type: "u4", repeat: "expr", "repeat-expr": "handle_count" });
  }
  const flag = (mask: number) => `(header.flags & 0x${mask.toString(16)})`;
  const instances: Record<string, Yaml> = {
    command: { value: "header.command", enum: "command" },
    is_reply: { value: `${flag(HeaderFlags.TYPE_MASK)} == ${MESSAGE_TYPES.reply}` },
    is_error: { value: `${flag(HeaderFlags.ERROR)} != 0` },
    body_kind: {
      doc: "Twice the command, and one more for a reply.",
      value: `(is_reply and is_error) ? ${ERROR_KEY} : 2 * header.command + (is_reply ? 1 : 0)`,
    },
  };
  if (withHandles.length > 0) {
    instances.handle_count = {
      value: `(is_reply and not is_error and (${withHandles.join(" or ")})) ? header.errno : 0`,
    };
  }
  const { id, title, doc } = protocol;
  return print({ meta: meta(id, title), doc, seq, instances, types, enums: enums(protocol) });
}

/** What stands in front of each recorded message. */
export function kaitaiCapture(): string {
  return print({
    meta: meta("vfio_user_capture", "A recorded message of vfio-user or of virtio-vfio-user"),
    doc: "A packet of a recording. The link type of its interface says whose the message is.",
    seq: [
      { id: "head", type: "capture_head" },
      { id: "message", "size-eos": true },
    ],
    types: { capture_head: structType("CaptureHead", CaptureHead) },
    enums: { direction: swap(CaptureDirection) },
  });
}

const meta = (id: string, title: string) => ({ id, title, license: "Apache-2.0", "ks-version": "0.10", endian: "le" });

const print = (description: Yaml) =>
  `# Made by \`npm run protocol\` from shared/spec: not to be edited.\n${stringify(description, { lineWidth: 110 })}`;

function addBody(types: Record<string, Yaml>, body: Body): void {
  if (types[body.name]) return;
  const type: Yaml = {};
  types[body.name] = type;
  const seq: Yaml[] = [];
  const instances: Record<string, Yaml> = {};
  let isOptional = false;
  for (const part of body.parts) {
    if (part.kind === "capabilities") {
      addCapability(types);
      const flag = `(${part.of}.flags & ${part.flag}) != 0`;
      instances.first_capability = {
        if: `${flag} and ${part.of}.cap_offset != 0`,
        pos: `${part.of}.cap_offset`,
        type: "capability",
      };
      continue;
    }
    if (part.kind === "choice") for (const each of Object.values(part.bodies)) addBody(types, each);
    isOptional ||= part.kind === "struct" && part.optional === true;
    seq.push({ id: part.name, ...(isOptional ? { if: "not _io.eof" } : {}), ...attribute(part) });
  }
  const isWhole = !body.padded && Object.keys(instances).length === 0;
  // A body that is a part of another one ends where that one does.
  if (isWhole) seq.push({ id: "end", size: 0, valid: { expr: "_io.eof" } });
  if (seq.length > 0) type.seq = seq;
  if (Object.keys(instances).length > 0) type.instances = instances;
}

function attribute(part: Exclude<Part, { kind: "capabilities" }>): Yaml {
  switch (part.kind) {
    case "struct":
      return { type: snake(part.struct) };
    case "structs":
      return { type: snake(part.struct), ...repeated(part.count) };
    case "words":
      return { type: part.type === "u32" ? "u4" : "u8", ...repeated(part.count) };
    case "bytes":
      return part.count === "rest" ? { "size-eos": true } : { size: countOf(part.count) };
    case "text":
      return { type: "strz", encoding: "UTF-8" };
    case "choice": {
      const cases = Object.entries(part.bodies).map(([value, { name }]) => [value, name]);
      const on = `${part.of}.${snake(part.field)} & 0x${part.mask.toString(16)}`;
      return { type: { "switch-on": on, cases: { ...Object.fromEntries(cases), _: UNKNOWN } } };
    }
  }
}

const countOf = (count: Exclude<Count, "rest">) =>
  typeof count === "number" ? count : `${count.of}.${snake(count.field)}`;

const repeated = (count: Count): Yaml =>
  count === "rest" ? { repeat: "eos" } : { repeat: "expr", "repeat-expr": countOf(count) };

/** One of a list, each behind the one before: `next_capability` leads on. */
function addCapability(types: Record<string, Yaml>): void {
  types.capability = {
    seq: [
      { id: "header", type: "region_cap_header" },
      { id: "body", type: { "switch-on": "header.id", cases: { 1: "sparse_mmap_capability", 2: "region_type" } } },
    ],
    instances: {
      next_capability: { if: "header.next != 0", pos: "header.next", type: "capability" },
    },
  };
  types.sparse_mmap_capability = {
    seq: [
      { id: "sparse", type: "sparse_mmap" },
      { id: "areas", type: "sparse_mmap_area", repeat: "expr", "repeat-expr": "sparse.areas" },
    ],
  };
}

function structType(name: string, { table }: AnyStruct): Yaml {
  const seq = Object.entries(table as Record<string, Scalar | number>).map(([field, type]) => {
    const id = snake(field);
    if (typeof type === "number") return { id, size: type };
    const names = NAMES[`${name}.${field}`];
    const scalar = { id, type: `u${SIZES[type]}` };
    if (names?.kind === "bits") return { ...scalar, doc: `Bits: ${bitNames(names.names)}` };
    return names === undefined || name === CAP_HEADER ? scalar : { ...scalar, enum: enumOf(name, field) };
  });
  return { seq };
}

/** Its id is what the description switches on, which no value of an enum can be where it is unknown. */
const CAP_HEADER = "RegionCapHeader";

const bitNames = (names: Readonly<Record<string, number>>) =>
  Object.entries(names)
    .map(([bit, value]) => `0x${value.toString(16)} ${bit}`)
    .join(", ");

const enumOf = (name: string, field: string) => `${snake(name)}_${snake(field)}`;

const commands = ({ messages }: Protocol) => Object.fromEntries(messages.map(({ command, name }) => [command, name]));

function enums(protocol: Protocol): Record<string, Yaml> {
  const all: Record<string, Yaml> = { command: commands(protocol) };
  for (const [key, { kind, names }] of Object.entries(NAMES)) {
    const [struct, field] = key.split(".");
    if (kind === "values" && struct in protocol.structs) all[enumOf(struct, field)] = swap(names);
  }
  return all;
}

const swap = (names: Readonly<Record<string, number>>): Yaml =>
  Object.fromEntries(Object.entries(names).map(([name, value]) => [value, name.toLowerCase()]));
