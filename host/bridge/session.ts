/**
 * One pair of sockets: a vfio-user socket for the driver VM, a vhost-user socket for the device VM, and the link
 * between what connects to them. Each side comes and goes as it likes; the other one is kept.
 */

import { randomUUID } from "node:crypto";
import type { Latencies } from "../../shared/histogram.js";
import { DEVICE_VM_FDS } from "../../shared/limits.js";
import { Listener } from "../../shared/listener.js";
import type { Log } from "../../shared/log.js";
import { LimitedLog } from "../../shared/log.js";
import { closePeerSocket, FdShare } from "../../shared/peer-fds.js";
import { Share } from "../../shared/turn.js";
import { Server } from "../../shared/vfio-user/server.js";
import { BridgeLink } from "./link/bridge-link.js";
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
  #listener: Listener | undefined;
  #backEnd: BackEnd | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#log = LimitedLog.of(options.log);
    const log = this.#log;
    const share = this.#share;
    const { windowSize, name, socket, trustUnsealedMemory, fds } = options;
    // Whatever the driver VM's VMM hands over, the device VM's can go on.
    const kept = () => Math.min(DEVICE_VM_FDS, Math.floor(fds() / 2));
    this.#deviceVmFds = new FdShare(() => fds() - clientFds.used);
    const clientFds = new FdShare(() => fds() - Math.max(kept(), this.#deviceVmFds.used));
    this.#memory = new DeviceVmMemory(trustUnsealedMemory);
    this.#window = new Window(windowSize, log, share);
    this.#link = new BridgeLink({
      window: this.#window,
      memory: this.#memory,
      log,
      name,
      share,
      fds: clientFds,
      uuid: Buffer.from(randomUUID().replaceAll("-", ""), "hex"),
    });
    this.#server = new Server({
      backend: this.#link,
      socket,
      log,
      trustUnsealedMemory,
      share,
      fds: clientFds,
    });
  }

  /** Listens on both sockets. @throws UserError when one of them cannot be had; nothing is left open then */
  async open(): Promise<void> {
    this.#listener = new Listener({
      socket: this.#options.vhostUserSocket,
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
    this.#log.report();
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
    this.#log.info("front-end connected");
    const backEnd = new BackEnd(fd, {
      window: this.#window,
      memory: this.#memory,
      device: this.#link,
      log: this.#log,
      share: this.#share,
      fds: this.#deviceVmFds,
      gone: (reason) => {
        this.#log.info({ reason }, "front-end gone");
        this.#report();
        this.#backEnd = undefined;
        this.#link.detach();
      },
    });
    this.#backEnd = backEnd;
    this.#link.attach(backEnd);
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
