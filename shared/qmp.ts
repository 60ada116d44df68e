/**
 * QEMU's machine protocol (docs/interop/qmp-spec.rst) as a client: commands with their replies, and events to wait for.
 * Left out: out-of-band execution, and file descriptors.
 */
import type { Duplex } from "node:stream";

type Json = Record<string, unknown>;

/** Of characters: what is longer is no QMP. */
const MAX_LINE = 16 * 2 ** 20;

interface Waiter {
  readonly resolve: (value: Json) => void;
  readonly reject: (error: Error) => void;
}

interface EventWaiter extends Waiter {
  readonly matches: (event: Json) => boolean;
}

export class QmpClient {
  readonly #replies = new Map<number, Waiter>();
  readonly #eventWaiters = new Set<EventWaiter>();
  readonly #ready: Promise<unknown>;
  #nextId = 1;
  #rest = "";
  #gone: Error | undefined;
  readonly #stream: Duplex;
  readonly #name: string;

  constructor(stream: Duplex, name: string) {
    this.#stream = stream;
    this.#name = name;
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => this.#receive(text));
    stream.on("error", () => this.#end());
    stream.on("close", () => this.#end());
    // QEMU takes commands only after this one, and reads it after its greeting whenever it comes.
    this.#ready = this.#send("qmp_capabilities", {});
    this.#ready.catch(() => {});
  }

  /** Runs one command and gives its `return`. An error reply rejects with QEMU's own description. */
  async execute(command: string, args: Json = {}): Promise<unknown> {
    await this.#ready;
    return (await this.#send(command, args)).return;
  }

  /** The next event of this name, from now on, whose data passes `matches`: its `data`, or an empty object. */
  async waitForEvent(name: string, timeoutMs: number, matches: (data: Json) => boolean = () => true): Promise<Json> {
    if (this.#gone !== undefined) throw this.#gone;
    return await new Promise<Json>((resolve, reject) => {
      const finish = () => {
        clearTimeout(timer);
        this.#eventWaiters.delete(waiter);
      };
      const waiter: EventWaiter = {
        matches: (event) => event.event === name && matches((event.data ?? {}) as Json),
        resolve: (event) => {
          finish();
          resolve((event.data ?? {}) as Json);
        },
        reject: (error) => {
          finish();
          reject(error);
        },
      };
      const timer = setTimeout(
        () => waiter.reject(new Error(`${this.#name}: no event ${name} in ${timeoutMs} ms`)),
        timeoutMs,
      );
      this.#eventWaiters.add(waiter);
    });
  }

  #send(command: string, args: Json): Promise<Json> {
    if (this.#gone !== undefined) return Promise.reject(this.#gone);
    const id = this.#nextId++;
    return new Promise<Json>((resolve, reject) => {
      this.#replies.set(id, { resolve, reject });
      this.#stream.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** Ends the connection; what still waits rejects. */
  close(): void {
    this.#stream.destroy();
    this.#end();
  }

  #receive(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    try {
      if (this.#rest.length > MAX_LINE) throw new RangeError(`a line of ${this.#rest.length} characters`);
      for (const line of lines) if (line.trim() !== "") this.#dispatch(JSON.parse(line) as Json);
    } catch (error) {
      this.#stream.destroy(error as Error);
      this.#end();
    }
  }

  #dispatch(message: Json): void {
    if (typeof message.event === "string") {
      for (const waiter of [...this.#eventWaiters]) if (waiter.matches(message)) waiter.resolve(message);
      return;
    }
    const waiter = typeof message.id === "number" ? this.#replies.get(message.id) : undefined;
    if (waiter === undefined) return; // the greeting
    this.#replies.delete(message.id as number);
    const error = message.error as { desc?: unknown } | undefined;
    if (error === undefined) waiter.resolve(message);
    else waiter.reject(new Error(`${this.#name}: QMP: ${String(error.desc)}`));
  }

  #end(): void {
    if (this.#gone !== undefined) return;
    this.#gone = new Error(`${this.#name}: QEMU closed its QMP connection`);
    for (const waiter of [...this.#replies.values(), ...this.#eventWaiters]) waiter.reject(this.#gone);
    this.#replies.clear();
  }
}
