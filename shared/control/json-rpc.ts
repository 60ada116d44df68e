/** JSON-RPC 2.0, one document a line: requests of a client's, checked, and what it is sent. No batches. */
import { toJson } from "../json.js";
import { ErrorCode } from "./methods.js";

export type RequestId = string | number | null;

export interface RpcRequest {
  /** Undefined: a notification, which is not answered. */
  readonly id: RequestId | undefined;
  readonly method: string;
  readonly params: unknown;
}

/** Becomes an error response; the message is for whoever asked. */
export class RpcError extends Error {
  override readonly name = "RpcError";
  readonly code: number;
  readonly id: RequestId;

  constructor(code: number, message: string, id: RequestId = null) {
    super(message);
    this.code = code;
    this.id = id;
  }
}

const MAX_ID = 256;

/** @throws RpcError for what is none */
export function parseRequest(line: string): RpcRequest {
  let document: unknown;
  try {
    document = JSON.parse(line);
  } catch {
    // Not only a SyntaxError: what is nested too deeply is a RangeError.
    throw new RpcError(ErrorCode.PARSE, "the line is no JSON");
  }
  if (Array.isArray(document)) throw new RpcError(ErrorCode.INVALID_REQUEST, "one request a line: no batches");
  if (typeof document !== "object" || document === null) {
    throw new RpcError(ErrorCode.INVALID_REQUEST, "a request is an object");
  }
  const { jsonrpc, id, method, params = {} } = document as Readonly<Record<string, unknown>>;
  const isText = typeof id === "string" && id.length <= MAX_ID;
  if (id !== undefined && id !== null && !isText && !Number.isFinite(id)) {
    throw new RpcError(ErrorCode.INVALID_REQUEST, "id must be a number, or a short text");
  }
  const checkedId = id as RequestId | undefined;
  if (jsonrpc !== "2.0") throw new RpcError(ErrorCode.INVALID_REQUEST, 'jsonrpc must be "2.0"', checkedId ?? null);
  if (typeof method !== "string") throw new RpcError(ErrorCode.INVALID_REQUEST, "method is missing", checkedId ?? null);
  return { id: checkedId, method, params };
}

/** A line, with its newline. */
export function encodeResult(id: RequestId, result: unknown): string {
  return `${toJson({ jsonrpc: "2.0", id, result: result ?? null })}\n`;
}

export function encodeError({ code, message, id }: RpcError): string {
  return `${JSON.stringify({ jsonrpc: "2.0", id, error: { code, message } })}\n`;
}
