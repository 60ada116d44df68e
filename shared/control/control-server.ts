/**
 * The control socket: AF_UNIX, JSON-RPC 2.0, one document a line. Whoever may connect is not trusted: a line is
 * bounded, one request of a client is dealt with at a time, what it does not read stops it, and one that is silent or
 * slow is cut off. All clients together have one share of the event loop, which is a tenth of it while any driver VM or
 * device VM wants something.
 */
import { Socket } from "node:net";
import { startDeadline } from "../deadline.js";
import { KiB } from "../limits.js";
import { Listener } from "../listener.js";
import type { Log } from "../log.js";
import { FdShare } from "../peer-fds.js";
import { type SocketAccess, setSocketAccess } from "../service/socket-access.js";
import { Rest, type Share, TURN, Turn } from "../turn.js";
import type { Dispatcher } from "./dispatcher.js";
import { encodeError, RpcError } from "./json-rpc.js";
import { ErrorCode } from "./methods.js";

const MAX_LINE = 64 * KiB;
/** Of one socket; at the next one the one that has been silent for longest is cut off. */
const MAX_CLIENTS = 8;
const SILENT_MS = 60_000;
const SLOW_MS = 5_000;
/** A request is no light turn, whatever it is. */
const REQUEST_COST = TURN.LIGHT + 1;
const NEWLINE = 10;

interface ControlServerOptions {
  readonly path: string;
  readonly access: SocketAccess;
  /** Whoever connects may change things. */
  readonly isAdmin: boolean;
  /** What all control sockets have of the event loop. */
  readonly share: Share;
  readonly log: Log;
  /** Deadlines: without a request; with half of one, or an answer that is not read. */
  readonly silentMs?: number;
  readonly slowMs?: number;
}

export class ControlServer {
  readonly #options: ControlServerOptions;
  readonly #dispatcher: Dispatcher;
  readonly #listener: Listener;
  /** The one that has been silent for longest comes first. */
  readonly #clients = new Set<Client>();

  /** Listens. @throws UserError when the socket cannot be had */
  constructor(dispatcher: Dispatcher, options: ControlServerOptions) {
    this.#options = options;
    this.#dispatcher = dispatcher;
    const { path, access, share, log } = options;
    this.#listener = new Listener({
      socket: path,
      log,
      share,
      fds: new FdShare(),
      connected: (fd) => this.#connected(fd),
    });
    try {
      setSocketAccess(path, access);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  close(): void {
    this.#listener.close();
    for (const client of this.#clients) client.end();
  }

  #connected(fd: number): void {
    if (this.#clients.size >= MAX_CLIENTS) {
      const [oldest] = this.#clients;
      this.#options.log.warn({ socket: this.#options.path }, "too many clients of the control socket");
      oldest.end();
    }
    const { isAdmin } = this.#options;
    const client: Client = new Client(fd, this.#options, {
      answer: (line) => {
        this.#clients.delete(client);
        this.#clients.add(client);
        return this.#dispatcher.answer(line, isAdmin);
      },
      gone: () => this.#clients.delete(client),
    });
    this.#clients.add(client);
  }
}

interface ClientOwner {
  answer(line: string): string | undefined | Promise<string | undefined>;
  gone(): void;
}

class Client {
  readonly #socket: Socket;
  readonly #owner: ClientOwner;
  readonly #turn: Turn;
  /** What came behind the last line that was dealt with. */
  #received: Buffer = Buffer.alloc(0);
  #isBusy = false;
  readonly #silentMs: number;
  readonly #slowMs: number;
  #stopDeadline = () => {};

  constructor(fd: number, options: ControlServerOptions, owner: ClientOwner) {
    const { share, silentMs = SILENT_MS, slowMs = SLOW_MS } = options;
    this.#owner = owner;
    this.#silentMs = silentMs;
    this.#slowMs = slowMs;
    this.#turn = new Turn(share, Rest.CONTROL, () => this.#next());
    this.#socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
    this.#socket.on("data", (bytes) => this.#take(bytes));
    this.#socket.on("end", () => this.#ended());
    this.#socket.on("drain", () => {
      this.#expect(this.#silentMs);
      this.#next();
    });
    this.#socket.on("error", () => this.end());
    this.#socket.on("close", () => this.end());
    this.#expect(this.#silentMs);
  }

  end(): void {
    this.#stopDeadline();
    this.#turn.close();
    this.#socket.destroy();
    this.#owner.gone();
  }

  /** Cuts it off, unless something happens until then. */
  #expect(milliseconds: number): void {
    this.#stopDeadline();
    this.#stopDeadline = startDeadline(milliseconds, () => this.end());
  }

  #take(bytes: Buffer): void {
    const isFirst = this.#received.length === 0;
    this.#received = isFirst ? bytes : Buffer.concat([this.#received, bytes]);
    // Nothing more comes before this is dealt with.
    this.#socket.pause();
    if (isFirst) this.#expect(this.#slowMs);
    this.#next();
  }

  /** A last line that has no newline is one as well, and answered. */
  #ended(): void {
    if (this.#received.length > 0 && this.#received.at(-1) !== NEWLINE) {
      this.#received = Buffer.concat([this.#received, Buffer.of(NEWLINE)]);
    }
    this.#next();
  }

  #next(): void {
    const socket = this.#socket;
    if (this.#isBusy || socket.destroyed || socket.writableNeedDrain) return;
    const end = this.#received.indexOf(NEWLINE);
    if ((end < 0 ? this.#received.length : end) > MAX_LINE) {
      this.#refuse();
    } else if (end >= 0) {
      if (this.#turn.begin()) this.#deal(end);
    } else if (socket.readableEnded) {
      socket.end();
    } else {
      socket.resume();
    }
  }

  #deal(end: number): void {
    const line = this.#received.toString("utf8", 0, end).trim();
    this.#received = this.#received.subarray(end + 1);
    this.#turn.spend(REQUEST_COST);
    const answer = line === "" ? undefined : this.#owner.answer(line);
    this.#turn.end(false);
    this.#isBusy = true;
    this.#stopDeadline();
    if (answer instanceof Promise) void answer.then((text) => this.#finish(text));
    else this.#finish(answer);
  }

  #finish(answer: string | undefined): void {
    this.#isBusy = false;
    if (this.#socket.destroyed) return;
    const isTaken = answer === undefined || this.#socket.write(answer);
    this.#expect(isTaken && this.#received.length === 0 ? this.#silentMs : this.#slowMs);
    // In a later turn of the event loop, however much it has sent.
    if (!this.#turn.waits) this.#turn.goOn();
  }

  #refuse(): void {
    const why = `a line of more than ${MAX_LINE} bytes`;
    this.#received = Buffer.alloc(0);
    this.#isBusy = true;
    this.#socket.end(encodeError(new RpcError(ErrorCode.INVALID_REQUEST, why)), () => this.end());
  }
}
