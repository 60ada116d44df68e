/**
 * A client whose connection outlives the process of its server: what the next server has to know of it, beside its maps
 * and what is on its way. Who keeps that, and the file descriptors, is the server's owner.
 */

import { StreamWord } from "../../native/index.js";
import { ProtocolError } from "../errors.js";
import { Command, Header } from "../spec/vfio-user.js";
import type { DmaMaps } from "./dma/dma-maps.js";
import { type Arrival, StreamMemory } from "./socket/stream-memory.js";

/** Where the bytes are of a client's socket, and of its twin: one after the other uses them. */
export interface ClientStreams {
  readonly client: StreamMemory;
  readonly twin: StreamMemory;
}

/** Those of a server whose clients end with the process; each is made when it is first needed. */
export class OwnStreams implements ClientStreams {
  #client: StreamMemory | undefined;
  #twin: StreamMemory | undefined;

  /** @throws SystemError */
  get client(): StreamMemory {
    this.#client ??= new StreamMemory();
    return this.#client;
  }

  /** @throws SystemError */
  get twin(): StreamMemory {
    this.#twin ??= new StreamMemory();
    return this.#twin;
  }

  /** No client uses them. */
  release(): void {
    this.#client?.release();
    this.#twin?.release();
    this.#client = this.#twin = undefined;
  }
}

/** Where file descriptors outlive the process, and who hears that what is to be known has changed. */
export interface ClientKeeper extends ClientStreams {
  /** Keeps a descriptor until it is closed, and gives its number. */
  keep(fd: number): number;
  /** Another process's descriptor, by number. */
  take(id: number): number;
  touch(): void;
  /** A client's socket was just accepted, and then: it is known. */
  accepted(fd: number): void;
  known(): void;
  /** What has changed is to be known from now on. */
  commit(): void;
}

export interface SavedClient {
  /** Numbers of descriptors; 0: none. */
  readonly socket: number;
  readonly twin: number;
  /** VERSION is dealt with. */
  readonly isReady: boolean;
  readonly maxDataXferSize: number;
  /** How many processes had it before the one that saved this. */
  readonly life: number;
}

/** What a server goes on with. */
export interface RestoredClient extends SavedClient {
  readonly maps: Parameters<DmaMaps["restore"]>[0];
  readonly unmapped: Parameters<DmaMaps["restore"]>[1];
}

/** Options of a connection whose bytes are there; without a keeper they end with the process. */
export function streamOptions(memory: StreamMemory, keeper: ClientKeeper | undefined, resumes?: readonly Arrival[]) {
  return { memory, ...(keeper && { commit: keeper.commit }), ...(resumes && { resumes }) };
}

/** Of messages that another process did not deal with, the fds. @throws ProtocolError when nobody can go on there */
export function loadStream(memory: StreamMemory): readonly Arrival[] {
  const arrivals = memory.load();
  if (arrivals === undefined) throw new ProtocolError("what was on its way in a socket is damaged");
  return arrivals;
}

/** Whether the first message that was not dealt with is this command. */
export function beginsWith(memory: StreamMemory, command: number): boolean {
  const { words, bytes } = memory;
  const handled = words[StreamWord.HANDLED] >>> 0;
  if ((words[StreamWord.END] - handled) >>> 0 < Header.size) return false;
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Header.view(data, memory.at(handled)).command === command;
}

/** Whether a client is still to be told what its VERSION is answered. */
export const awaitsVersion = (memory: StreamMemory) => beginsWith(memory, Command.VERSION);
