/** The bridge: any number of sessions in one process, which end together. */
import { basename } from "node:path";
import * as limits from "../shared/limits.js";
import type { Log } from "../shared/log.js";
import type { BridgeOptions } from "./options.js";
import { Session } from "./session.js";

export class Bridge {
  readonly #sessions: Session[] = [];
  readonly #options: BridgeOptions;
  readonly #log: Log;

  constructor(options: BridgeOptions, log: Log) {
    this.#options = options;
    this.#log = log;
  }

  /** Listens on all sockets. @throws UserError when one of them cannot be had; nothing is left open then */
  async open(): Promise<void> {
    const { pairs, windowSize, trustUnsealedMemory } = this.#options;
    try {
      for (const pair of pairs) {
        const name = basename(pair.socketPath);
        const session = new Session({
          ...pair,
          name,
          windowSize,
          trustUnsealedMemory,
          log: this.#log.child({ session: name }),
        });
        await session.open();
        this.#sessions.push(session);
        this.#log.info({ ...pair, windowSize }, "serving");
      }
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** All sessions' state, and what bounds them, for people. */
  inspect(): object {
    return { sessions: this.#sessions.map((session) => session.inspect()), limits };
  }

  /** Ends all sessions and takes their sockets away. */
  async close(): Promise<void> {
    await Promise.all(this.#sessions.splice(0).map((session) => session.close()));
  }
}
