/**
 * What the bridge before left, that died or was replaced: the states of its sessions, and their file descriptors, which
 * came back by name. A session goes on that is still to be served, and whose state and descriptors are whole; the
 * others end: their sockets are closed, and their peers see that.
 */
import { randomUUID } from "node:crypto";
import { isSystemError } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { FdStore } from "../../shared/notify/fd-store.js";
import type { KeptFd } from "../../shared/notify/kept-fds.js";
import { closePeerFd } from "../../shared/peer-fds.js";
import { savedSession } from "./saved-session.js";
import { FD_KIND, KEPT_NAME } from "./state/layout.js";
import type { SavedState } from "./state/read-state.js";
import { StateError } from "./state/state-bytes.js";
import { type SessionIdentity, StateMemory } from "./state/state-memory.js";

/** Bridges that start with a state in a row and do not come to serve: then it is what they die of. */
const MAX_ATTEMPTS = 8;

/** A session's state, and what of it a session is made with. */
export interface TakenState {
  readonly state: StateMemory;
  readonly uuid: Uint8Array;
  readonly saved: SavedState;
  readonly listening: readonly [vfioUser: number, vhostUser: number] | undefined;
}

export class TakeOver {
  readonly #store: FdStore | undefined;
  readonly #log: Log;
  /** By the session's number, what is behind it in the names. */
  readonly #kept = new Map<number, Map<string, number>>();
  #lastNumber = 0;

  constructor(kept: readonly KeptFd[], log: Log) {
    this.#log = log;
    this.#store = FdStore.ofProcess(kept.length);
    for (const { name, fd } of kept) {
      const [, number, id] = KEPT_NAME.exec(name) ?? [];
      const group = this.#kept.get(Number(number)) ?? new Map<string, number>();
      // Two of one name: none of them is known.
      if (group.has(id)) group.set(`${id} twice`, fd);
      else group.set(id, fd);
      this.#kept.set(Number(number), group);
    }
    this.#lastNumber = Math.max(0, ...this.#kept.keys());
  }

  /** The state of a session that the bridge before served; undefined when there is none with which it can go on. */
  take(identity: SessionIdentity, log: Log): TakenState | undefined {
    for (const [number, kept] of this.#kept) {
      if (!StateMemory.isOf(kept, identity)) continue;
      this.#kept.delete(number);
      const taken = this.#open(number, kept, identity);
      if (!(taken instanceof Error)) return taken;
      log.error({ reason: taken.message }, "cannot go on where the bridge before was, and begins anew");
      return undefined;
    }
    return undefined;
  }

  /** A new one. @throws SystemError when there is no room for it */
  begin(identity: SessionIdentity): Omit<TakenState, "saved"> {
    const uuid = Buffer.from(randomUUID().replaceAll("-", ""), "hex");
    const state = StateMemory.create(++this.#lastNumber, identity, uuid, this.#store);
    return { state, uuid, listening: undefined };
  }

  /**
   * What is of none of these sessions ends, before they begin: a listening socket of it would be in the way of theirs.
   */
  keepOnly(identities: readonly SessionIdentity[]): void {
    for (const [number, kept] of this.#kept) {
      if (identities.some((identity) => StateMemory.isOf(kept, identity))) continue;
      this.#log.warn({ fds: kept.size }, "a session of the bridge before is served no more, and ends");
      this.#drop(number, kept);
      this.#kept.delete(number);
    }
  }

  /** All sessions have begun: what is left is of none of them. */
  end(): void {
    this.keepOnly([]);
  }

  /** Why it cannot be gone on with, in its place: all of it is closed then. */
  #open(number: number, kept: ReadonlyMap<string, number>, identity: SessionIdentity): TakenState | Error {
    let state: StateMemory | undefined;
    try {
      const opened = StateMemory.open(number, kept, identity, this.#store);
      state = opened.state;
      return this.#begun(opened.state, opened.saved);
    } catch (error) {
      if (!(error instanceof StateError || isSystemError(error))) throw error;
      if (state === undefined) this.#drop(number, kept);
      else state.close();
      return error;
    }
  }

  #begun(state: StateMemory, saved: SavedState): TakenState {
    if (saved.attempts >= MAX_ATTEMPTS) throw new StateError(`${saved.attempts} bridges have died of it`);
    state.countAttempt();
    const [vfioUser, vhostUser] = savedSession(saved.control)?.listeners ?? [0, 0];
    const listener = (id: number) => state.fds.take(id, FD_KIND.LISTENER);
    const listening = vfioUser && vhostUser ? ([listener(vfioUser), listener(vhostUser)] as const) : undefined;
    return { state, saved, uuid: saved.uuid, listening };
  }

  #drop(number: number, kept: ReadonlyMap<string, number>): void {
    for (const [id, fd] of kept) {
      this.#store?.remove(`${number}.${id.replace(/ twice$/, "")}`);
      closePeerFd(fd);
    }
  }
}
