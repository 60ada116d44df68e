/**
 * What a program shows of each of its sessions, to the control socket and to metrics alike. A bridge has any number of
 * them; a device has one.
 */
import type { Latencies } from "../histogram.js";

export interface SessionOverview {
  /** A client, which is the driver VM's VMM, is connected. */
  readonly client: boolean;
  /** The device side, as docs/virtio-vfio-user.md has it under "States"; "local" where there is no link. */
  readonly device: string;
  readonly draining: boolean;
  readonly maps: number;
  readonly mappedBytes: number;
  /** Of the maps, those that are in the device VM's window. */
  readonly windowMaps: number;
  readonly sockets?: readonly string[];
}

export interface MapOverview {
  /** In hexadecimal, as the driver VM has it. */
  readonly address: string;
  readonly size: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** -1 where it is not in the window. */
  readonly windowOffset: number;
}

/** One session, as whoever looks at it sees it. Nothing in here costs anything but when it is called. */
export interface ShownSession {
  readonly name: string;
  overview(): SessionOverview;
  /** Of many maps the first ones. */
  maps(): readonly MapOverview[];
  /** What was done so far: each only grows. */
  counts(): Readonly<Record<string, number>>;
  /** By vfio-user's command number. */
  commands(): Readonly<Float64Array>;
  /** Latencies are noted there from now on; undefined: nobody looks any more. */
  measure(latencies: Latencies | undefined): void;
  /** All of its state, the device's in its VM included. Rejects with UserError. */
  inspect(): Promise<unknown>;
  /** False where no client is there. Left out, as `drain` is, where clients are somebody else's. */
  disconnect?(): boolean;
  drain?(isDraining: boolean): void;
  /** The bridge's alone. */
  doorbells?(): unknown;
  rings?(): unknown;
}

/** Somebody who looks is gone when nothing was asked for so long. */
const UNSEEN_MS = 120_000;

/** Latencies of all sessions, from the first time that somebody asks for them until nobody does any more. */
export class Measuring {
  readonly #sessions: () => readonly ShownSession[];
  readonly #latencies = new Map<ShownSession, Latencies>();
  readonly #create: () => Latencies;
  #stop: NodeJS.Timeout | undefined;

  constructor(sessions: () => readonly ShownSession[], create: () => Latencies) {
    this.#sessions = sessions;
    this.#create = create;
  }

  /** What was measured so far; all that comes is, too. */
  look(): ReadonlyMap<ShownSession, Latencies> {
    const sessions = this.#sessions();
    for (const session of this.#latencies.keys()) if (!sessions.includes(session)) this.#latencies.delete(session);
    for (const session of sessions) {
      if (this.#latencies.has(session)) continue;
      const latencies = this.#create();
      this.#latencies.set(session, latencies);
      session.measure(latencies);
    }
    clearTimeout(this.#stop);
    this.#stop = setTimeout(() => this.end(), UNSEEN_MS).unref();
    return this.#latencies;
  }

  end(): void {
    clearTimeout(this.#stop);
    for (const session of this.#latencies.keys()) session.measure(undefined);
    this.#latencies.clear();
  }
}
