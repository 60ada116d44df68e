/** The bridge: any number of sessions in one process, which end together. */
import { basename } from "node:path";
import * as limits from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { openFileLimit, peerFds } from "../../shared/peer-fds.js";
import { startCopyThreads } from "./link/copy-threads.js";
import type { BridgeOptions } from "./options.js";
import { Session } from "./session.js";

/** A device of some queues, vectors and maps takes as many. */
const FEW_FDS = 256;

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
    const fds = peerFds(openFileLimit(), pairs.length);
    if (fds < FEW_FDS) this.#log.warn({ fds }, "few file descriptors for each session: raise LimitNOFILE");
    try {
      startCopyThreads();
      for (const pair of pairs) {
        const name = basename(pair.socketPath);
        const session = new Session({
          ...pair,
          name,
          windowSize,
          trustUnsealedMemory,
          fds,
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

  /** All sessions' state, and what bounds them, for diagnostics. */
  inspect(): object {
    return { sessions: this.#sessions.map((session) => session.inspect()), limits };
  }

  /** Ends all sessions and takes their sockets away. */
  async close(): Promise<void> {
    await Promise.all(this.#sessions.splice(0).map((session) => session.close()));
  }
}
