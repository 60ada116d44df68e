/**
 * A vfio-user server: serves one client at a time (vfio-user, "Socket", "Client Disconnection"). A second client is
 * refused: its connection is closed. One that comes when the first has just closed its end waits in the socket's
 * backlog until all memory of the first is released.
 *
 * In this folder, in the order of a command's way:
 *
 * - socket/: connection.ts (messages in order), over receive-buffer.ts, send-queue.ts and message-socket.ts;
 *   twin-socket.ts, a second connection for the server's own requests; access-path.ts, register accesses that go to a
 *   device VM's ring without any of the rest.
 * - kept-client.ts: a client that outlives its server's process.
 * - server-session.ts: a client from VERSION (version.ts) to its end; checks.ts, what each command must look like;
 *   pending.ts, the command in flight and its reply; session-stats.ts, what is counted.
 * - backend.ts: the seam to what stands behind a server, this process's device or the bridge's link; absent-device.ts:
 *   how it is answered for when nothing does.
 * - dma/: dma-maps.ts (DMA_MAP and DMA_UNMAP) over dma-table.ts and dma-ranges.ts; dma-messages.ts (DMA_READ and
 *   DMA_WRITE) over request-table.ts; copied-memory.ts (maps that a device reaches by copies alone).
 * - irqs/: irq-set.ts (SET_IRQS), irq-eventfds.ts (what the client masks by), untaken-signals.ts.
 * - register-memory.ts: reads that are answered without the backend; region-description.ts: GET_REGION_INFO's reply.
 * - client/: the other side.
 */
import { startTicks } from "../deadline.js";
import type { Latencies } from "../histogram.js";
import { DEVICE_WAIT_MS, REPLY_DEADLINE_MS, VERSION_WAIT_MS } from "../limits.js";
import { Listener } from "../listener.js";
import { type Log, quietLog } from "../log.js";
import { closePeerSocket, FdShare } from "../peer-fds.js";
import { Share } from "../turn.js";
import type { Backend, MemoryMap } from "./backend.js";
import { type ClientKeeper, loadStream, OwnStreams, type RestoredClient, type SavedClient } from "./kept-client.js";
import { ServerSession } from "./server-session.js";
import { SessionStats } from "./session-stats.js";
import type { Arrival } from "./socket/stream-memory.js";

export interface ServerOptions {
  readonly backend: Backend;
  /**
   * Where to listen: a path, whose file is removed by `close`; or a listening AF_UNIX socket, which is closed by
   * `close`.
   */
  readonly socket: string | number;
  readonly log?: Log;
  /** Map also memory that its owner can shrink (its pages then read as zeros). */
  readonly trustUnsealedMemory?: boolean;
  /** Open a twin socket for a client that can have one (default: true). */
  readonly twinSocket?: boolean;
  readonly replyDeadlineMs?: number;
  readonly deviceWaitMs?: number;
  readonly versionWaitMs?: number;
  /** What clients have of the event loop, with whatever else belongs to the same session. */
  readonly share?: Share;
  /** Where clients' fds are counted. */
  readonly fds?: FdShare;
  /** Where what clients have outlives the process. */
  readonly keeper?: ClientKeeper;
  /** The socket that listens at the path already. */
  readonly listening?: number;
}

interface ServerStats extends Pick<SessionStats, Counted> {
  /** Whether a client is connected now, and its DMA maps. */
  readonly connected: boolean;
  readonly maps: number;
}

type Counted = "clients" | "commands" | "reads" | "readsFromMemory" | "writes" | "errors" | "timeouts";

export class Server {
  readonly #log: Log;
  readonly #share: Share;
  readonly #fds: FdShare;
  readonly #counts = new SessionStats();
  /** No client is taken any more. */
  isDraining = false;
  #listener: Listener | undefined;
  #session: ServerSession | undefined;
  #serving: Promise<void> = Promise.resolve();
  readonly #options: ServerOptions;
  readonly #streams = new OwnStreams();

  constructor(options: ServerOptions) {
    this.#options = options;
    this.#log = options.log ?? quietLog;
    this.#share = options.share ?? new Share();
    this.#fds = options.fds ?? new FdShare();
  }

  get stats(): ServerStats {
    this.#session?.count();
    const { clients, commands, reads, readsFromMemory, writes, errors, timeouts } = this.#counts;
    const session = this.#session;
    return {
      ...{ clients, commands, reads, readsFromMemory, writes, errors, timeouts },
      connected: session !== undefined,
      maps: session?.mapCount ?? 0,
    };
  }

  /** How many commands of each number came. */
  get commands(): Readonly<Float64Array> {
    this.#session?.count();
    return this.#counts.byCommand;
  }

  /** Latencies are noted there from now on, or nowhere any more. */
  measure(latencies: Latencies | undefined): void {
    this.#counts.latencies = latencies;
    this.#session?.latenciesChanged();
  }

  /** Ends the client's connection, as if it had gone. False when there is none. */
  disconnect(reason: string): boolean {
    this.#session?.close(reason);
    return this.#session !== undefined;
  }

  /** The socket that listens; -1 before `open`. */
  get listenerFd(): number {
    return this.#listener?.fd ?? -1;
  }

  /** The client's socket; -1 when there is none. */
  get clientFd(): number {
    return this.#session?.fd ?? -1;
  }

  /** What the next process has to know of the client. */
  save(): SavedClient | undefined {
    return this.#session?.save();
  }

  /** Goes on with a client that another process served; before `open`. @throws ProtocolError */
  restore(fd: number, client: RestoredClient): { readonly session: ServerSession; readonly maps: MemoryMap[] } {
    for (const map of client.maps) if (map.fd >= 0) this.#fds.adopt(map.fd);
    const { keeper } = this.#options;
    const session = this.#begin(fd, keeper && loadStream(keeper.client));
    this.#session = session;
    this.#serving = this.#serve(session);
    return { session, maps: session.restore(client) };
  }

  /** After `restore`, when everything behind it is restored. */
  goOn(): void {
    this.#session?.goOn();
  }

  /** Begins to serve; from then on clients can connect. @throws UserError when the socket cannot be had */
  open(): void {
    this.#listener = new Listener({
      socket: this.#options.socket,
      ...(this.#options.listening !== undefined && { listening: this.#options.listening }),
      log: this.#log,
      share: this.#share,
      fds: this.#fds,
      waits: () => this.#session?.isEnding === true,
      connected: (fd) => this.accept(fd),
    });
  }

  /** Ends the session, if any, waits until its memory is released, and takes the socket away. */
  async close(): Promise<void> {
    this.#listener?.close();
    this.#listener = undefined;
    this.#session?.close("the server ends");
    await this.#serving;
    this.#streams.release();
  }

  /** A client has connected, whose socket is the server's from now on. */
  accept(fd: number): void {
    if (this.#session !== undefined) {
      this.#log.warn("refused a second client: one at a time");
      closePeerSocket(fd, this.#fds);
      return;
    }
    if (this.isDraining) {
      this.#log.info("refused a client: no more are taken");
      closePeerSocket(fd, this.#fds);
      return;
    }
    this.#options.keeper?.accepted(fd);
    this.#session = this.#begin(fd);
    this.#serving = this.#serve(this.#session);
    this.#options.keeper?.known();
  }

  #begin(fd: number, resumes?: readonly Arrival[]): ServerSession {
    const options = {
      backend: this.#options.backend,
      log: this.#log,
      stats: this.#counts,
      trustUnsealedMemory: this.#options.trustUnsealedMemory ?? false,
      deviceWaitMs: this.#options.deviceWaitMs ?? DEVICE_WAIT_MS,
      versionWaitMs: this.#options.versionWaitMs ?? VERSION_WAIT_MS,
      twinSocket: this.#options.twinSocket ?? true,
      share: this.#share,
      fds: this.#fds,
      keeper: this.#options.keeper,
      streams: this.#options.keeper ?? this.#streams,
    };
    return new ServerSession(fd, options, resumes);
  }

  async #serve(session: ServerSession): Promise<void> {
    const stopTicks = startTicks(this.#options.replyDeadlineMs ?? REPLY_DEADLINE_MS, () => session.tick());
    await session.ended;
    stopTicks();
    this.#session = undefined;
    this.#options.keeper?.touch();
    this.#listener?.resume();
  }
}
