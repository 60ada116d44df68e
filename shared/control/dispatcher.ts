/** A request's way to the method that it names, and what it is answered. */
import { didYouMean } from "../command-line/suggest.js";
import { isSystemError, UserError } from "../errors.js";
import type { Log } from "../log.js";
import { encodeError, encodeResult, parseRequest, RpcError, type RpcRequest } from "./json-rpc.js";
import { ErrorCode, METHODS } from "./methods.js";
import { type MethodRow, mistakeIn, type Params, schemaOfParameters } from "./table.js";

/** What a program does for a method; the parameters were checked. A UserError is the caller's mistake, or bad luck. */
export type Handler = (params: Params) => unknown;
export type Handlers = Readonly<Record<string, Handler>>;

/** No answer is larger: whoever asks for more of many things asks for one session. */
const MAX_ANSWER = 4 * 1024 * 1024;

export class Dispatcher {
  readonly #rows: ReadonlyMap<string, MethodRow>;
  readonly #handlers: Handlers;
  readonly #log: Log;

  constructor(handlers: Handlers, log: Log) {
    this.#rows = new Map(METHODS.filter(({ name }) => Object.hasOwn(handlers, name)).map((row) => [row.name, row]));
    this.#handlers = handlers;
    this.#log = log;
  }

  /** The answer to a line, or the promise of it; undefined where none is wanted. Never rejects. */
  answer(line: string, isAdmin: boolean): string | undefined | Promise<string | undefined> {
    let request: RpcRequest;
    try {
      request = parseRequest(line);
    } catch (error) {
      return this.#failure(error, null);
    }
    const { id } = request;
    const done = (result: unknown) => (id === undefined ? undefined : this.#encode(id, result));
    const failed = (error: unknown) => (id === undefined ? undefined : this.#failure(error, id));
    try {
      const result = this.#call(request, isAdmin);
      return result instanceof Promise ? result.then(done, failed) : done(result);
    } catch (error) {
      return failed(error);
    }
  }

  #call({ method, params }: RpcRequest, isAdmin: boolean): unknown {
    if (method === "methods") return this.#describe(isAdmin);
    const row = this.#rows.get(method);
    if (row === undefined) {
      const others = METHODS.some(({ name }) => name === method);
      const why = others ? "this program has no such method" : `there is no such method${this.#near(method)}`;
      throw new RpcError(ErrorCode.NO_METHOD, why);
    }
    const mistake = mistakeIn(row, params);
    if (mistake !== undefined) throw new RpcError(ErrorCode.INVALID_PARAMS, mistake);
    if (row.changes === true) {
      if (!isAdmin) throw new RpcError(ErrorCode.NOT_ALLOWED, `${method} changes something: ask the admin socket`);
      this.#log.info({ method, params }, "a change by the control socket");
    }
    return this.#handlers[method](params as Params);
  }

  #near(method: string): string {
    return didYouMean(method, [...this.#rows.keys()]);
  }

  #describe(isAdmin: boolean): object[] {
    const methods = METHODS.find(({ name }) => name === "methods");
    return [...(methods === undefined ? [] : [methods]), ...this.#rows.values()].map((row) => ({
      name: row.name,
      summary: row.summary,
      changes: row.changes === true,
      allowed: isAdmin || row.changes !== true,
      parameters: schemaOfParameters(row),
    }));
  }

  #encode(id: string | number | null, result: unknown): string {
    try {
      const line = encodeResult(id, result);
      if (line.length <= MAX_ANSWER) return line;
      return this.#failure(new UserError("the answer is too long: ask for one session"), id);
    } catch (error) {
      return this.#failure(error, id);
    }
  }

  #failure(error: unknown, id: string | number | null): string {
    if (error instanceof RpcError) return encodeError(new RpcError(error.code, error.message, error.id ?? id));
    if (error instanceof UserError || isSystemError(error)) {
      return encodeError(new RpcError(ErrorCode.REFUSED, error.message, id));
    }
    this.#log.error({ err: error }, "a method of the control socket failed");
    return encodeError(new RpcError(ErrorCode.INTERNAL, "the method failed: the log says how", id));
  }
}
