/**
 * One connection of the checker: requests and what comes back, while the server's own commands (DMA_READ, DMA_WRITE)
 * are answered in between: a read from mapped memory gives zeros, a write is swallowed, anything else is refused.
 */
import { Errno } from "../../shared/errors.js";
import { MiB } from "../../shared/limits.js";
import { Command, DmaAccess, HeaderFlags } from "../../shared/spec/vfio-user.js";
import { type Conduct, commandName } from "./conduct.js";
import { Failure } from "./verdict.js";
import { encode, type HeaderFields, isReply, type Message, type Wire } from "./wire.js";

/** A reply, or undefined when the server closed the connection instead. */
export type Answer = Message | undefined;

const MAX_DMA_ANSWER = 1 * MiB;

export class Session {
  /** The reply to VERSION, when there was one. */
  version: Message | undefined;
  #nextId = 0x1000;
  readonly #conduct: Conduct;

  constructor(
    readonly wire: Wire,
    conduct: Conduct,
    readonly timeoutMs: number,
  ) {
    this.#conduct = conduct;
  }

  /** @throws Failure when nothing comes in time */
  async request(
    command: number,
    body?: Uint8Array,
    options: HeaderFields & { fds?: readonly number[] } = {},
  ): Promise<Answer> {
    const id = options.id ?? this.takeId();
    const bytes = encode(command, body, { ...options, id });
    if (!(await this.send(bytes, options.fds))) return undefined;
    return this.answer(id, command);
  }

  /** The reply to a request that was sent. @throws Failure when nothing comes in time */
  async answer(id: number, command: number): Promise<Answer> {
    const message = await this.next();
    if (message === "silent") {
      throw new Failure(`a reply to ${commandName(command)}`, `none within ${this.timeoutMs} ms`);
    }
    if (message === "closed") return undefined;
    this.#conduct.reply({ id, command }, message);
    return message;
  }

  send(bytes: Uint8Array, fds?: readonly number[]): Promise<boolean> {
    return this.wire.send(bytes, this.timeoutMs, fds);
  }

  /** The next reply of any kind. */
  async next(timeoutMs = this.timeoutMs): Promise<Message | "closed" | "silent"> {
    for (;;) {
      const message = await this.wire.receive(timeoutMs);
      if (typeof message === "string" || isReply(message)) return message;
      this.#conduct.unasked(message);
      await this.#serve(message);
    }
  }

  close(): void {
    this.wire.close();
  }

  takeId(): number {
    this.#nextId = (this.#nextId + 1) & 0xffff;
    return this.#nextId;
  }

  async #serve({ id, command, flags, body, data }: Message): Promise<void> {
    if (flags & HeaderFlags.NO_REPLY) return;
    const isDma = (command === Command.DMA_READ || command === Command.DMA_WRITE) && body.length >= DmaAccess.size;
    const count = isDma ? DmaAccess.view(data).count : Number.POSITIVE_INFINITY;
    if (count > MAX_DMA_ANSWER) {
      const error = { id, flags: HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno: Errno.EINVAL };
      await this.send(encode(command, undefined, error));
      return;
    }
    const reply = new Uint8Array(DmaAccess.size + (command === Command.DMA_READ ? count : 0));
    reply.set(body.subarray(0, DmaAccess.size));
    await this.send(encode(command, reply, { id, flags: HeaderFlags.TYPE_REPLY }));
  }
}
