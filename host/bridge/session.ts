/**
 * One pair of sockets: a vfio-user socket for the driver VM, a vhost-user socket for the device VM, and the link
 * between what connects to them. Each side comes and goes as it likes; the other one is kept.
 */
import type { Latencies } from "../../shared/histogram.js";
import { DEVICE_VM_FDS } from "../../shared/limits.js";
import { Listener } from "../../shared/listener.js";
import type { Log } from "../../shared/log.js";
import { LimitedLog } from "../../shared/log.js";
import { closePeerSocket, FdShare } from "../../shared/peer-fds.js";
import { Feature } from "../../shared/spec/virtio.js";
import { Share } from "../../shared/turn.js";
import { awaitsVersion } from "../../shared/vfio-user/kept-client.js";
import { Server } from "../../shared/vfio-user/server.js";
import { BridgeLink } from "./link/bridge-link.js";
import {
  CONTROL_VERSION,
  clientKeeper,
  releasedMap,
  restoredMaps,
  type SavedSession,
  savedSession,
} from "./saved-session.js";
import { FD_KIND } from "./state/layout.js";
import type { SavedState } from "./state/read-state.js";
import type { StateMemory } from "./state/state-memory.js";
import { BackEnd } from "./vhost-user/back-end.js";
import { DeviceVmMemory } from "./vhost-user/memory.js";
import { Window } from "./vhost-user/window.js";

export interface SessionOptions {
  /** The vfio-user socket that the driver VM's VMM connects to: a path, or a listening socket, which is closed. */
  readonly socket: string | number;
  /** The vhost-user socket that the device VM's VMM connects to. */
  readonly vhostUserSocket: string | number;
  /** Bytes; a power of two. */
  readonly windowSize: number;
  /** A short text that the device VM can read. */
  readonly name: string;
  readonly trustUnsealedMemory: boolean;
  /** How many file descriptors the peers of this session may hand over, asked whenever some are to come. */
  readonly fds: () => number;
  /** 16 bytes, which the device VM can read. */
  readonly uuid: Uint8Array;
  /** What outlives the process; closed with the session. */
  readonly state: StateMemory;
  /** The sockets that listen already, in place of paths: vfio-user's and vhost-user's. */
  readonly listening?: readonly [vfioUser: number, vhostUser: number] | undefined;
  readonly log: Log;
}

export class Session {
  readonly #options: SessionOptions;
  readonly #log: LimitedLog;
  /** What all of the session has of the event loop. */
  readonly #share = new Share();
  readonly #window: Window;
  readonly #memory: DeviceVmMemory;
  readonly #deviceVmFds: FdShare;
  readonly #link: BridgeLink;
  readonly #server: Server;
  readonly #state: StateMemory;
  #listener: Listener | undefined;
  #backEnd: BackEnd | undefined;
  /** Of the last front-end. */
  #frontEndFd = -1;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#log = LimitedLog.of(options.log);
    const log = this.#log;
    const share = this.#share;
    const { windowSize, name, socket, trustUnsealedMemory, fds, state, uuid, listening } = options;
    this.#state = state;
    // Whatever the driver VM's VMM hands over, the device VM's can go on.
    const kept = () => Math.min(DEVICE_VM_FDS, Math.floor(fds() / 2));
    this.#deviceVmFds = new FdShare(() => fds() - clientFds.used);
    const clientFds = new FdShare(() => fds() - Math.max(kept(), this.#deviceVmFds.used));
    const memory = new DeviceVmMemory(trustUnsealedMemory, state);
    const window = new Window(windowSize, log, share, state);
    this.#memory = memory;
    this.#window = window;
    this.#link = new BridgeLink({ window, memory, log, name, share, fds: clientFds, uuid, state });
    this.#server = new Server({
      backend: this.#link,
      socket,
      log,
      trustUnsealedMemory,
      share,
      fds: clientFds,
      keeper: clientKeeper(state),
      ...(listening && { listening: listening[0] }),
    });
  }

  /**
   * Goes on where another bridge was, before it is opened. @throws Error when that cannot be: `close` then ends both
   * sides
   */
  takeOver(saved: SavedState): void {
    const restored = savedSession(saved.control);
    if (restored === undefined) return;
    const { frontEnd, server, link } = restored;
    const { fds } = this.#state;
    this.#memory.restore(restored.memory, (BigInt(frontEnd?.features ?? 0) & Feature.ACCESS_PLATFORM) !== 0n);
    if (frontEnd) {
      this.#backEnd = this.#newBackEnd(fds.take(frontEnd.socket, FD_KIND.SOCKET), true);
      this.#backEnd.restore(frontEnd);
    }
    this.#window.restore(restored.window, saved.windowRequests, this.#backEnd?.isStopped ?? false);
    this.#backEnd?.askForMemory();
    const maps = restoredMaps(saved, fds);
    const isReady = server?.isReady === true && !awaitsVersion(this.#state.stream("client"));
    const there = maps.filter(({ isThere }) => isThere);
    const client =
      server &&
      this.#server.restore(fds.take(server.socket, FD_KIND.SOCKET), {
        ...server,
        isReady,
        maps: there.map(({ entry }) => entry),
        unmapped: saved.unmapped,
      });
    const memory = client?.session.memory;
    this.#link.restore(link, this.#backEnd, {
      ends: memory && { memory, accesses: client.session },
      maps: maps.map(({ entry, record, isThere }) => {
        const map = isThere ? client?.maps.find((each) => each.address === entry.address) : undefined;
        return { ...record, map: map ?? releasedMap(entry) };
      }),
    });
    fds.sweep();
    this.#backEnd?.goOn();
    this.#window.goOn();
    this.#link.onceSettled(() => this.#server.goOn());
  }

  /** Listens on both sockets. @throws UserError when one of them cannot be had; nothing is left open then */
  async open(): Promise<void> {
    const { listening } = this.#options;
    this.#listener = new Listener({
      socket: this.#options.vhostUserSocket,
      ...(listening && { listening: listening[1] }),
      log: this.#log,
      share: this.#share,
      fds: this.#deviceVmFds,
      connected: (fd) => this.#connected(fd),
    });
    try {
      this.#server.open();
    } catch (error) {
      await this.close();
      throw error;
    }
    this.#state.control.begin(() => this.#save());
    const frontEnd = this.#state.takeAccepted("front-end", this.#frontEndFd);
    if (frontEnd !== undefined) this.#connected(frontEnd);
    const client = this.#state.takeAccepted("client", this.#server.clientFd);
    if (client !== undefined) this.#server.accept(client);
  }

  #save(): SavedSession {
    const { fds } = this.#state;
    const listener = (fd: number) => (fd < 0 ? 0 : fds.keep(fd));
    return {
      version: CONTROL_VERSION,
      listeners: [listener(this.#server.listenerFd), listener(this.#listener?.fd ?? -1)],
      server: this.#server.save() ?? null,
      frontEnd: this.#backEnd?.save() ?? null,
      memory: this.#memory.save(),
      window: this.#window.save(),
      link: this.#link.save(),
    };
  }

  /** Ends both sides, waits until the client's memory is released, and takes the sockets away. */
  async close(): Promise<void> {
    this.#listener?.close();
    this.#listener = undefined;
    await this.#server.close();
    if (this.#link.statistics.hellos > 0) this.#report();
    this.#backEnd?.close();
    this.#backEnd = undefined;
    this.#link.close();
    this.#state.close();
    this.#log.report();
  }

  /** See StateMemory. */
  serves(): void {
    this.#state.serves();
  }

  /** Latencies of the client's commands are noted there from now on, or nowhere any more. */
  measure(latencies: Latencies | undefined): void {
    this.#server.measure(latencies);
    this.#link.path.measure(latencies);
  }

  #connected(fd: number): void {
    this.#backEnd?.endIfHungUp();
    if (this.#backEnd) {
      this.#log.warn("refused a second front-end: one device VM at a time");
      closePeerSocket(fd, this.#deviceVmFds);
      return;
    }
    this.#state.accepted("front-end", fd);
    this.#log.info("front-end connected");
    const backEnd = this.#newBackEnd(fd);
    this.#backEnd = backEnd;
    this.#link.attach(backEnd);
    this.#state.known("front-end");
  }

  #newBackEnd(fd: number, resumes = false): BackEnd {
    this.#frontEndFd = fd;
    return new BackEnd(fd, {
      window: this.#window,
      memory: this.#memory,
      device: this.#link,
      log: this.#log,
      share: this.#share,
      fds: this.#deviceVmFds,
      state: this.#state,
      resumes,
      gone: (reason) => {
        this.#log.info({ reason }, "front-end gone");
        this.#report();
        this.#backEnd = undefined;
        this.#link.detach();
        this.#state.control.touch();
      },
    });
  }

  /** Whether a client has come, and the last one has gone. */
  get wasServed(): boolean {
    const { clients, connected } = this.#server.stats;
    return clients > 0 && !connected;
  }

  /** What it is made of, for whoever looks at it. */
  get parts() {
    return { server: this.#server, link: this.#link, window: this.#window, backEnd: this.#backEnd };
  }

  /** The session's state, for diagnostics. */
  inspect(): object {
    return {
      server: this.#server.stats,
      link: this.#link.inspect(),
      window: this.#window.inspect(),
      frontEnd: this.#backEnd?.inspect(),
      statistics: this.statistics(),
    };
  }

  /** What the session did so far, in one line of the log. */
  #report(): void {
    this.#log.info(this.statistics(), "statistics");
  }

  /** What it did so far. */
  statistics() {
    const { clients, reads, readsFromMemory, writes, timeouts } = this.#server.stats;
    const { maps, unmaps } = this.#window;
    return { clients, reads, readsFromMemory, writes, timeouts, maps, unmaps, ...this.#link.statistics };
  }
}
