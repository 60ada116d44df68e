/**
 * A client whose connection outlives the process of its server: what the next server has to know of it, beside its maps
 * and what is on its way. Who keeps that, and the file descriptors, is the server's owner.
 */
import type { DmaMaps } from "./dma/dma-maps.js";

/** Where file descriptors outlive the process, and who hears that what is to be known has changed. */
export interface ClientKeeper {
  /** Keeps a descriptor until it is closed, and gives its number. */
  keep(fd: number): number;
  /** Another process's descriptor, by number. */
  take(id: number): number;
  touch(): void;
}

export interface SavedClient {
  /** Numbers of descriptors; 0: none. */
  readonly socket: number;
  readonly twin: number;
  /** VERSION is dealt with. */
  readonly isReady: boolean;
  readonly maxDataXferSize: number;
}

/** What a server goes on with. */
export interface RestoredClient extends SavedClient {
  readonly maps: Parameters<DmaMaps["restore"]>[0];
  readonly unmapped: Parameters<DmaMaps["restore"]>[1];
}
