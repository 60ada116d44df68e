/** A client of the control socket: one request at a time, each with its deadline. */
import { once } from "node:events";
import { createConnection, type Socket } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { UserError } from "../errors.js";
import { RpcError } from "./json-rpc.js";
import type { Params } from "./table.js";

const DEADLINE_MS = 15_000;
const MAX_ATTEMPTS = 100;
const ATTEMPT_MS = 50;
const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such socket: the program runs with --control or --control-admin, and as who may make it",
  EACCES: "this user may not connect to it",
  ECONNREFUSED: "nobody serves it any more",
};

export class ControlClient {
  readonly #path: string;
  readonly #socket: Socket;
  #received = "";
  #lastId = 0;
  #failure: Error | undefined;

  private constructor(path: string, socket: Socket) {
    this.#path = path;
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text) => {
      this.#received += text;
    });
    socket.on("error", (error) => {
      this.#failure = error;
    });
  }

  /** @throws UserError when nobody is there */
  static async connect(path: string): Promise<ControlClient> {
    for (let attempt = 1; ; attempt++) {
      const socket = createConnection(path);
      try {
        await once(socket, "connect");
        return new ControlClient(path, socket);
      } catch (error) {
        const { code = "", message } = error as NodeJS.ErrnoException;
        // Others connect at the same moment, more than wait to be accepted.
        if (code === "EAGAIN" && attempt < MAX_ATTEMPTS) await pause(ATTEMPT_MS);
        else throw new UserError(`cannot connect to ${path}: ${REASONS[code] ?? message}`);
      }
    }
  }

  /** Rejects with RpcError where it is refused, with UserError where there is no answer. */
  async request(method: string, params: Params = {}): Promise<unknown> {
    const id = ++this.#lastId;
    this.#socket.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
    const { error, result } = JSON.parse(await this.#line());
    if (error !== undefined) throw new RpcError(error.code, error.message, id);
    return result;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #line(): Promise<string> {
    const gone = new AbortController();
    const stop = () => gone.abort();
    this.#socket.once("close", stop);
    const timer = setTimeout(stop, DEADLINE_MS);
    try {
      for (;;) {
        const end = this.#received.indexOf("\n");
        if (end >= 0) {
          const line = this.#received.slice(0, end);
          this.#received = this.#received.slice(end + 1);
          return line;
        }
        if (this.#socket.destroyed || this.#failure !== undefined) stop();
        await once(this.#socket, "data", { signal: gone.signal });
      }
    } catch {
      const why = this.#socket.destroyed ? "closed the connection" : `did not answer for ${DEADLINE_MS / 1000} seconds`;
      throw new UserError(`whoever serves ${this.#path} ${why}`);
    } finally {
      clearTimeout(timer);
      this.#socket.off("close", stop);
    }
  }
}
