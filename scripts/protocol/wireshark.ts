/**
 * The Wireshark dissector: dissector.lua, which knows how a message is taken apart, with the tables of shared/spec as
 * tables of Lua's in it.
 */
import { NAMES } from "../../shared/spec/field-names.js";
import type { AnyStruct, Body, Count, Part, Protocol } from "../../shared/spec/messages.js";
import { Header } from "../../shared/spec/vfio-user.js";
import type { Scalar } from "../../shared/struct/struct.js";
import { SIZES, snake } from "./names.js";

type Lua = string | number | boolean | readonly Lua[] | { readonly [key: string]: Lua } | ReadonlyMap<number, Lua>;

/** @param engine the text of dissector.lua */
export function wireshark(engine: string, protocols: readonly Protocol[]): string {
  const tables = protocols.map((protocol) => `protocols[#protocols + 1] = ${print(definition(protocol), "")}`);
  return engine.replace("--@TABLES@", () => tables.join("\n"));
}

function definition({ id, title, structs, messages }: Protocol): Lua {
  const all = Object.entries({ Header, ...structs });
  const numbers = Object.fromEntries(messages.map(({ name, command }) => [name, command]));
  return {
    id,
    title,
    structs: Object.fromEntries(all.map(([name, struct]) => [snake(name), structTable(name, struct, numbers)])),
    messages: new Map(
      messages.map(({ command, name, request, reply, handles }) => [
        command,
        { name, request: bodyTable(request), reply: bodyTable(reply), ...(handles ? { handles } : {}) },
      ]),
    ),
  };
}

function structTable(name: string, { table, size }: AnyStruct, commands: Record<string, number>): Lua {
  const fields = Object.entries(table as Record<string, Scalar | number>).map(([field, type]): Lua => {
    const entry = { name: snake(field) };
    if (typeof type === "number") return { ...entry, bytes: type };
    const names =
      name === "Header" && field === "command" ? { kind: "values", names: commands } : NAMES[`${name}.${field}`];
    if (names === undefined) return { ...entry, size: SIZES[type] };
    if (names.kind === "bits") return { ...entry, size: SIZES[type], bits: lowerCase(names.names) };
    const values = Object.entries(names.names).map(([key, value]): [number, string] => [value, key.toLowerCase()]);
    return { ...entry, size: SIZES[type], values: new Map(values) };
  });
  return { size, fields };
}

const lowerCase = (names: Readonly<Record<string, number>>) =>
  Object.fromEntries(Object.entries(names).map(([name, value]) => [name.toLowerCase(), value]));

function bodyTable({ parts, padded }: Body): Lua {
  return { parts: parts.map((part) => partTable(part, parts)), ...(padded ? { padded } : {}) };
}

function partTable(part: Part, parts: readonly Part[]): Lua {
  const { kind, name } = part;
  switch (part.kind) {
    case "struct":
      return { kind, name, struct: snake(part.struct), ...(part.optional ? { optional: true } : {}) };
    case "structs":
      return { kind, name, struct: snake(part.struct), count: countTable(part.count) };
    case "words":
      return { kind, name, size: part.type === "u32" ? 4 : 8, count: countTable(part.count) };
    case "bytes":
      return { kind, name, count: countTable(part.count) };
    case "text":
      return { kind, name };
    case "choice": {
      const bodies = Object.entries(part.bodies).map(([value, body]): [number, Lua] => [
        Number(value),
        bodyTable(body),
      ]);
      return { kind, name, of: part.of, field: snake(part.field), mask: part.mask, bodies: new Map(bodies) };
    }
    case "capabilities": {
      const of = parts.find((each) => each.name === part.of);
      return { kind, name, of: part.of, flag: part.flag, struct: of?.kind === "struct" ? snake(of.struct) : "" };
    }
  }
}

const countTable = (count: Count): Lua => (typeof count === "object" ? [count.of, snake(count.field)] : count);

/** A value of Lua's, in one line where it fits. */
function print(value: Lua, indent: string): string {
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Array.isArray(value)
    ? value.map((each: Lua) => ["", each] as const)
    : value instanceof Map
      ? [...value].map(([key, each]) => [`[${key}] = `, each as Lua] as const)
      : Object.entries(value as Record<string, Lua>).map(([key, each]) => [`${key} = `, each] as const);
  if (entries.length === 0) return "{}";
  const line = `{ ${entries.map(([key, each]) => key + print(each, "")).join(", ")} }`;
  if (!line.includes("\n") && line.length + indent.length < 100) return line;
  const deeper = `${indent}  `;
  return `{\n${entries.map(([key, each]) => `${deeper}${key}${print(each, deeper)},\n`).join("")}${indent}}`;
}
