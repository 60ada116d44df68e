/** JSON Schema of what methods return, in parts. */

const number = { type: "number" } as const;
const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;

/** An object with all of these, and nothing else. */
export function record(properties: Readonly<Record<string, object>>, optional: readonly string[] = []): object {
  const required = Object.keys(properties).filter((name) => !optional.includes(name));
  return { type: "object", properties, required, additionalProperties: false };
}

export const listOf = (items: object): object => ({ type: "array", items });
const tableOf = (values: object): object => ({ type: "object", additionalProperties: values });

export const NOTHING = { type: "null" } as const;
/** Diagnostics, which may change from version to version. */
export const ANYTHING = {} as const;

export const VERSION = record({ program: text, version: text, node: text, pid: number, uptimeSeconds: number });

export const METHODS = listOf(
  record({ name: text, summary: text, changes: flag, allowed: flag, parameters: { type: "object" } }),
);

export const SESSIONS = listOf(
  record(
    {
      name: text,
      /** A client, which is the driver VM's VMM, is connected. */
      client: flag,
      /** Of the device side: what docs/virtio-vfio-user.md has under "States"; "local" where there is no link. */
      device: text,
      draining: flag,
      maps: number,
      mappedBytes: number,
      windowMaps: number,
      sockets: listOf(text),
    },
    ["sockets"],
  ),
);

export const MAPS = listOf(
  record({
    session: text,
    maps: number,
    /** Of many, the first ones. */
    first: listOf(
      record({ address: text, size: number, readable: flag, writable: flag, windowOffset: { type: "integer" } }),
    ),
  }),
);

export const PER_SESSION = listOf(record({ session: text, state: ANYTHING }));

export const COUNTS = listOf(record({ session: text, counts: tableOf(number), commands: tableOf(number) }));

/** Microseconds. */
export const LATENCIES = listOf(
  record({
    session: text,
    command: text,
    count: number,
    mean: number,
    p50: number,
    p90: number,
    p99: number,
    p999: number,
    max: number,
  }),
);

export const WARNINGS = listOf(
  record({ level: { enum: ["warn", "error"] }, time: number, message: text, details: { type: "object" } }),
);

export const LEVEL = record({ level: text });
export const DONE = record({ session: text, done: flag });
export const DRAIN = listOf(record({ session: text, draining: flag, client: flag }));

export const NAMESPACE = record({ id: number, blocks: number, blockSize: number, bytes: number, readOnly: flag });
export const NAMESPACES = listOf(NAMESPACE);
export const FAULT = record(
  {
    ...{ id: number, hits: number, once: flag },
    ...{ opcode: text, namespace: number, first: number, last: number, error: text, delay: number },
  },
  ["opcode", "namespace", "first", "last", "error", "delay"],
);
export const FAULTS = listOf(FAULT);
export const CLEARED = record({ cleared: number });
