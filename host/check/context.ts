/**
 * What a check works with: connections, fds that are closed behind it, and what is known of the device. A server may
 * serve one client at a time, so a check closes one connection before it opens the next.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { addSeals, close, createMemory, eventfd, F_SEAL_GROW, F_SEAL_SHRINK } from "../../native/index.js";
import { isSystemError } from "../../shared/errors.js";
import { Command } from "../../shared/spec/vfio-user.js";
import type { Conduct } from "./conduct.js";
import type { Device } from "./device.js";
import { expectSuccess, Failure, ServerGone, Skip } from "./expect.js";
import { type Answer, encodeVersion, GET_INFO_BODY, OUR_CAPABILITIES } from "./messages.js";
import { CheckerSession } from "./session.js";

const CONNECT_RETRY_MS = 20;
/**
 * How long a first message is sent again that a server may refuse by closing the connection, and one that it may not.
 */
const RETRY_MS = 60;
const GOOD_RETRY_MS = 1000;

/** What outlives a check: shared by all contexts of a run. */
export interface Target {
  readonly path: string;
  readonly timeoutMs: number;
  readonly conduct: Conduct;
  /** What the device said of itself when the run began, or why it did not. */
  readonly device: Device | Skip;
}

export class Context {
  readonly target: Target;
  /** Whether the server has answered a first message. */
  wasServed = false;
  readonly #sessions: CheckerSession[] = [];
  readonly #fds: number[] = [];

  constructor(target: Target) {
    this.target = target;
  }

  /** A connection without a VERSION. Waits for a server that is being started again. @throws ServerGone */
  async connectRaw(): Promise<CheckerSession> {
    const { path, conduct, timeoutMs } = this.target;
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      try {
        const session = new CheckerSession(path, conduct, timeoutMs);
        this.#sessions.push(session);
        return session;
      } catch (error) {
        if (!isSystemError(error)) throw error;
        if (performance.now() >= deadline) {
          throw new ServerGone("the server to accept a connection", `${error.code} from connect for ${timeoutMs} ms`);
        }
        await sleep(CONNECT_RETRY_MS);
      }
    }
  }

  /**
   * The answer to the first message on a new connection. A connection that is closed instead is tried again, for as
   * long as a server may need to notice that its last client has left, or to end with it and be started again.
   */
  async first(
    command: number,
    body: Uint8Array,
    fds: readonly number[] = [],
    retryMs = RETRY_MS,
  ): Promise<{ session: CheckerSession; answer: Answer }> {
    for (const deadline = performance.now() + retryMs; ; ) {
      const session = await this.connectRaw();
      const answer = await session.request(command, body, { fds });
      this.wasServed ||= answer !== undefined;
      if (answer !== undefined || performance.now() >= deadline) return { session, answer };
      session.close();
      await sleep(CONNECT_RETRY_MS);
    }
  }

  /** A connection that has agreed on a version, with all that we can do announced. */
  async connect(): Promise<CheckerSession> {
    const body = encodeVersion({ json: JSON.stringify({ capabilities: OUR_CAPABILITIES }) });
    const { session, answer } = await this.first(Command.VERSION, body, [], GOOD_RETRY_MS);
    session.version = expectSuccess(answer, Command.VERSION);
    return session;
  }

  /** @throws Skip when the device cannot be described, which other checks are about */
  device(): Device {
    if (this.target.device instanceof Skip) throw this.target.device;
    return this.target.device;
  }

  /** A sealed memfd of that size. */
  memory(size: number): number {
    const fd = createMemory("vfio-user-check", size, false);
    this.#fds.push(fd);
    addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
    return fd;
  }

  eventfd(): number {
    const fd = eventfd(0);
    this.#fds.push(fd);
    return fd;
  }

  /**
   * The server answers on this connection, or, if it closed that one and was allowed to, on a new one. @throws Failure
   */
  async expectUsable(session: CheckerSession): Promise<void> {
    const answer = await session.request(Command.DEVICE_GET_INFO, GET_INFO_BODY);
    if (answer === undefined) await this.expectNextClient(session);
  }

  /** The connection is closed, and the server answers on a new one. @throws Failure */
  async expectNextClient(last: CheckerSession): Promise<void> {
    last.close();
    const session = await this.connect();
    const answer = await session.request(Command.DEVICE_GET_INFO, GET_INFO_BODY);
    session.close();
    if (answer === undefined) throw new Failure("the server to go on", "a closed connection upon DEVICE_GET_INFO");
  }

  /** The server answers on this connection. @throws Failure */
  async expectConnectionKept(session: CheckerSession): Promise<void> {
    const answer = await session.request(Command.DEVICE_GET_INFO, GET_INFO_BODY);
    if (answer === undefined) throw new Failure("the connection to be kept", "a closed connection");
  }

  close(): void {
    for (const session of this.#sessions) session.close();
    for (const fd of this.#fds) close(fd);
  }
}
