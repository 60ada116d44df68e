/**
 * All methods of the control socket. In this folder: table.ts, what a row is; result-schemas.ts; json-rpc.ts, the
 * protocol; control-server.ts and control-client.ts, both ends of the socket; control.ts, what a program does to have
 * all of it; sessions.ts, what it shows of itself, and generic-methods.ts over that; options.ts, the command line's
 * part. metrics/ is the other way to look at a program.
 */
import { LEVELS } from "../log.js";
import * as schemas from "./result-schemas.js";
import { type MethodRow, type Parameter, schemaOfParameters } from "./table.js";

const ONE_SESSION: Parameter = { name: "session", type: "string", summary: "the session's name", required: true };
const SESSION: Parameter = { name: "session", type: "string", summary: "one session alone, by its name" };

const GENERIC: readonly MethodRow[] = [
  { name: "version", summary: "which program this is", parameters: [], result: schemas.VERSION },
  { name: "methods", summary: "what can be asked, and what may be", parameters: [], result: schemas.METHODS },
  { name: "sessions", summary: "sessions, and who is connected to them", parameters: [], result: schemas.SESSIONS },
  {
    name: "maps",
    summary: "driver-VM memory that the device reaches",
    parameters: [SESSION],
    result: schemas.MAPS,
  },
  {
    name: "doorbells",
    summary: "which interrupt vector has which doorbell",
    parameters: [SESSION],
    result: schemas.PER_SESSION,
    program: "bridge",
  },
  {
    name: "rings",
    summary: "the queues between the bridge and the device VM, and the window",
    parameters: [SESSION],
    result: schemas.PER_SESSION,
    program: "bridge",
  },
  {
    name: "counts",
    summary: "what was done so far, and how many commands of each kind came",
    parameters: [SESSION],
    result: schemas.COUNTS,
  },
  {
    name: "latency",
    summary: "how long commands take, in microseconds, since somebody looks",
    parameters: [SESSION],
    result: schemas.LATENCIES,
  },
  {
    name: "inspect",
    summary: "a session's whole state; through a bridge, the device's inside its VM, too",
    parameters: [SESSION],
    result: schemas.PER_SESSION,
  },
  { name: "warnings", summary: "the log's last warnings and errors", parameters: [], result: schemas.WARNINGS },
  { name: "log-level", summary: "what is logged", parameters: [], result: schemas.LEVEL },
  {
    name: "set-log-level",
    summary: "log more, or less, until the program ends",
    parameters: [{ name: "level", type: "string", summary: "the new level", required: true, words: LEVELS }],
    result: schemas.LEVEL,
    changes: true,
  },
  {
    name: "disconnect",
    summary: "end a client's connection: its driver VM loses the device",
    parameters: [ONE_SESSION],
    result: schemas.DONE,
    changes: true,
  },
  {
    name: "drain",
    summary: "for maintenance: take no new client; who is there stays",
    parameters: [SESSION, { name: "off", type: "boolean", summary: "take clients again" }],
    result: schemas.DRAIN,
    changes: true,
  },
];

/** Of an NVMe controller. */
const NVME: readonly MethodRow[] = [
  { name: "namespaces", summary: "an NVMe controller's disks", parameters: [], result: schemas.NAMESPACES },
  {
    name: "namespace-resize",
    summary: "make an NVMe disk's file larger; the driver VM is told",
    parameters: [
      { name: "namespace", type: "integer", summary: "its NSID", required: true, least: 1 },
      { name: "size", type: "integer", summary: "bytes of the file", required: true, least: 1, isSize: true },
    ],
    result: schemas.NAMESPACE,
    changes: true,
  },
  { name: "faults", summary: "what was injected, and how often it was met", parameters: [], result: schemas.FAULTS },
  {
    name: "inject",
    summary: "have NVMe I/O commands fail, or be late; those that fit all that is given",
    parameters: [
      {
        name: "error",
        type: "string",
        summary: "how they fail",
        words: [
          ...["internal-error", "write-fault", "unrecovered-read-error", "capacity-exceeded", "write-protected"],
          "lba-out-of-range",
        ],
      },
      { name: "delay", type: "integer", summary: "milliseconds that they wait before", least: 1, most: 600_000 },
      {
        name: "opcode",
        type: "string",
        summary: "of this kind",
        words: ["flush", "write", "read", "compare", "write-zeroes", "dataset-management", "verify", "copy"],
      },
      { name: "namespace", type: "integer", summary: "to this NSID", least: 1 },
      { name: "first", type: "integer", summary: "to blocks from this one on", least: 0 },
      { name: "last", type: "integer", summary: "to blocks up to this one", least: 0 },
      { name: "once", type: "boolean", summary: "the first that comes, and no other" },
    ],
    result: schemas.FAULT,
    changes: true,
  },
  {
    name: "clear-faults",
    summary: "take back what was injected",
    parameters: [{ name: "fault", type: "integer", summary: "one alone, by its id", least: 1 }],
    result: schemas.CLEARED,
    changes: true,
  },
].map((row): MethodRow => ({ ...row, program: "device" }) as MethodRow);

export const METHODS: readonly MethodRow[] = [...GENERIC, ...NVME];

/** Errors of our own, beside JSON-RPC's. */
export const ErrorCode = {
  PARSE: -32700,
  INVALID_REQUEST: -32600,
  NO_METHOD: -32601,
  INVALID_PARAMS: -32602,
  INTERNAL: -32603,
  /** The socket does not have what changes something. */
  NOT_ALLOWED: -32001,
  /** It cannot be done now, or not with these. */
  REFUSED: -32002,
} as const;

/** docs/vfio-user-control.schema.json: what a client sends and is sent. */
export function controlSchema(): object {
  const jsonrpc = { const: "2.0" };
  const id = { type: ["string", "number", "null"] };
  const requests = METHODS.map((row) => ({
    title: row.name,
    description: `${row.summary}${row.changes === true ? " (only on the admin socket)" : ""}`,
    type: "object",
    properties: { jsonrpc, id, method: { const: row.name }, params: schemaOfParameters(row) },
    required: ["jsonrpc", "method", ...(row.parameters.some((each) => each.required) ? ["params"] : [])],
    additionalProperties: false,
  }));
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "The control sockets of vfio-user-bridge and vfio-user-device: JSON-RPC 2.0, one document a line",
    anyOf: [{ $ref: "#/$defs/request" }, { $ref: "#/$defs/response" }, { $ref: "#/$defs/error" }],
    $defs: {
      request: { oneOf: requests },
      response: {
        type: "object",
        properties: { jsonrpc, id, result: {} },
        required: ["jsonrpc", "id", "result"],
        additionalProperties: false,
      },
      error: {
        type: "object",
        properties: {
          jsonrpc,
          id,
          error: {
            type: "object",
            properties: { code: { enum: Object.values(ErrorCode) }, message: { type: "string" } },
            required: ["code", "message"],
            additionalProperties: false,
          },
        },
        required: ["jsonrpc", "id", "error"],
        additionalProperties: false,
      },
      results: {
        type: "object",
        description: "The result of each method.",
        properties: Object.fromEntries(METHODS.map(({ name, result }) => [name, result])),
      },
    },
  };
}
