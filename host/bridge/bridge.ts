/**
 * The bridge: any number of sessions in one process, which can be added and removed while the others go on. In this
 * folder: options.ts, the command line, and config.ts, the file that can stand for a part of it; session-settings.ts,
 * what both say of a session; session.ts, a session itself, over vhost-user/ and link/; shown-session.ts, what is shown
 * of it; take-over.ts, what another bridge left, and saved-session.ts, what that is, over state/; main.ts, the process.
 */
import { setTimeout as pause } from "node:timers/promises";
import { close } from "../../native/index.js";
import type { ShownSession } from "../../shared/control/sessions.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import * as limits from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { openFileLimit, peerFds } from "../../shared/peer-fds.js";
import { type InheritedSockets, keyOf, type SocketSource } from "../../shared/service/inherited-sockets.js";
import { setSocketAccess } from "../../shared/service/socket-access.js";
import { startCopyThreads } from "./link/copy-threads.js";
import { Session } from "./session.js";
import { isSame, type SessionSettings } from "./session-settings.js";
import { showSession } from "./shown-session.js";
import type { SavedState } from "./state/read-state.js";
import type { SessionIdentity } from "./state/state-memory.js";
import { type TakenState, TakeOver } from "./take-over.js";

/** A device of some queues, vectors and maps takes as many. */
const FEW_FDS = 256;
/** The front-end's sockets, its memory, and two eventfds for each of a few queues. */
const LEAST_FDS = 12;
/** How often it is looked whether all clients have gone. */
const ONCE_MS = 100;

interface Running {
  readonly settings: SessionSettings;
  readonly session: Session;
  readonly shown: ShownSession;
}

/** How many sessions a change concerned. */
export interface Change {
  readonly added: number;
  readonly removed: number;
  readonly kept: number;
  /** That cannot be served, and why; the other ones are. */
  readonly failed: readonly { readonly session: string; readonly reason: string }[];
}

export class Bridge {
  #running: Running[] = [];
  readonly #inherited: InheritedSockets;
  readonly #log: Log;
  readonly #fileLimit = openFileLimit();
  readonly #takeOver: TakeOver;
  /** Sessions that descriptors are divided among. */
  #shares = 1;

  constructor(inherited: InheritedSockets, log: Log) {
    this.#inherited = inherited;
    this.#log = log;
    this.#takeOver = new TakeOver(inherited.kept(), log);
  }

  get sessions(): number {
    return this.#running.length;
  }

  /** Listens on all sockets. @throws UserError when one of them cannot be had; nothing is left open then */
  async open(sessions: readonly SessionSettings[]): Promise<void> {
    startCopyThreads();
    this.#takeOver.keepOnly(sessions.map(identityOf));
    await this.change(sessions);
    this.#takeOver.end();
  }

  /** It serves: should it die, the next one may try as often again. */
  serves(): void {
    for (const { session } of this.#running) session.serves();
  }

  /**
   * Serves these sessions in place of those of before, of which all that are among them are left alone. First come
   * those that are new altogether: when one of them cannot be had, nothing has changed. Then go those that are over;
   * last comes what has a socket of theirs. What of that fails does so alone: there is no way back then.
   * @throws UserError
   */
  async change(sessions: readonly SessionSettings[]): Promise<Change> {
    const sources = sessions.flatMap(({ vfioUser, vhostUser }) => [vfioUser, vhostUser]);
    this.#inherited.checkDistinct(sources.flatMap((source) => ("fd" in source ? [source.fd] : [])));
    const before = this.#running;
    const kept = before.filter(({ settings }) => sessions.some((each) => isSame(each, settings)));
    const removed = before.filter((each) => !kept.includes(each));
    const wanted = sessions.filter((each) => !kept.some(({ settings }) => isSame(each, settings)));
    const taken = new Set(removed.flatMap(({ settings }) => socketsOf(settings)));
    const isFree = (settings: SessionSettings) => !socketsOf(settings).some((key) => taken.has(key));
    this.#shares = Math.max(1, before.length + wanted.length);
    const added: Running[] = [];
    try {
      for (const settings of wanted.filter(isFree)) added.push(await this.#start(settings));
    } catch (error) {
      await Promise.all(added.map(({ session }) => session.close()));
      this.#shares = Math.max(1, before.length);
      throw error;
    }
    this.#running = [...kept, ...added];
    await Promise.all(removed.map(({ session }) => session.close()));
    for (const { settings } of removed) this.#log.info({ session: settings.name }, "no longer served");
    this.#share(sessions.length);
    const failed: Change["failed"][number][] = [];
    for (const settings of wanted.filter((each) => !isFree(each))) {
      try {
        this.#running.push(await this.#start(settings));
      } catch (error) {
        if (!(error instanceof UserError || isSystemError(error))) throw error;
        failed.push({ session: settings.name, reason: error.message });
      }
    }
    return { added: wanted.length - failed.length, removed: removed.length, kept: kept.length, failed };
  }

  /** Resolves when each session has had a client, and it has gone; false when `end` is aborted before. */
  async servedOnce(end: AbortSignal): Promise<boolean> {
    while (!end.aborted) {
      if (this.#running.length > 0 && this.#running.every(({ session }) => session.wasServed)) return true;
      await pause(ONCE_MS);
    }
    return false;
  }

  /** All sessions, for whoever looks at them. */
  get shown(): readonly ShownSession[] {
    return this.#running.map(({ shown }) => shown);
  }

  /** All sessions' state, and what bounds them, for diagnostics. */
  inspect(): object {
    const sessions = this.#running.map(({ settings, session }) => ({ ...described(settings), ...session.inspect() }));
    return { sessions, limits };
  }

  /** Ends all sessions and takes their sockets away. */
  async close(): Promise<void> {
    await Promise.all(this.#running.splice(0).map(({ session }) => session.close()));
  }

  #fds(): number {
    return peerFds(this.#fileLimit, this.#shares);
  }

  #share(sessions: number): void {
    this.#shares = Math.max(1, sessions);
    if (this.#fds() < LEAST_FDS) {
      this.#log.error({ fds: this.#fds() }, "too few file descriptors for any session to begin: raise LimitNOFILE");
    } else if (this.#fds() < FEW_FDS) {
      this.#log.warn({ fds: this.#fds() }, "few file descriptors for each session: raise LimitNOFILE");
    }
  }

  async #start(settings: SessionSettings): Promise<Running> {
    const { name, vfioUser, vhostUser, windowSize, trustUnsealedMemory, access } = settings;
    const identity = identityOf(settings);
    const log = this.#log.child({ session: name });
    const taken = this.#takeOver.take(identity, log);
    const socketOf = (source: SocketSource) => ("path" in source ? source.path : this.#inherited.open(source.fd));
    const make = ({ state, uuid, listening }: Omit<TakenState, "saved">) => {
      const [socket, vhostUserSocket] = [socketOf(vfioUser), socketOf(vhostUser)];
      const options = { socket, vhostUserSocket, name, windowSize, trustUnsealedMemory, state, uuid, listening, log };
      return { socket, session: new Session({ ...options, fds: () => this.#fds() }) };
    };
    let { socket, session } = make(taken ?? this.#takeOver.begin(identity));
    if (taken && !(await goesOn(session, taken.saved, log))) {
      ({ socket, session } = make(this.#takeOver.begin(identity)));
    }
    try {
      await session.open();
    } catch (error) {
      // The vhost-user socket comes first, so it was that one; a number was not used yet.
      if (typeof socket === "number") close(socket);
      throw error;
    }
    try {
      for (const source of [vfioUser, vhostUser]) if ("path" in source) setSocketAccess(source.path, access);
    } catch (error) {
      await session.close();
      throw error;
    }
    this.#log.info({ session: name, ...described(settings), windowSize }, "serving");
    return { settings, session, shown: showSession(name, session, described(settings)) };
  }
}

/** Whether a session goes on where another bridge was; otherwise it has ended. */
async function goesOn(session: Session, saved: SavedState, log: Log): Promise<boolean> {
  try {
    session.takeOver(saved);
    log.info("goes on where the bridge before was");
    return true;
  } catch (error) {
    log.error(
      { reason: (error as Error).message, err: error },
      "cannot go on where the bridge before was, and begins anew",
    );
    await session.close();
    return false;
  }
}

function identityOf({ vfioUser, vhostUser, windowSize }: SessionSettings): SessionIdentity {
  return { sockets: [keyOf(vfioUser), keyOf(vhostUser)], windowSize };
}

function socketsOf({ vfioUser, vhostUser }: SessionSettings): string[] {
  return [vfioUser, vhostUser].map(keyOf);
}

/** Its sockets, by the names that the command line has for them. */
function described({ vfioUser, vhostUser }: SessionSettings): object {
  return {
    ...("path" in vfioUser ? { socketPath: vfioUser.path } : { fd: vfioUser.fd }),
    ...("path" in vhostUser ? { vhostUserSocketPath: vhostUser.path } : { vhostUserFd: vhostUser.fd }),
  };
}
