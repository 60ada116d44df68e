/**
 * DMA by messages to one client, and the twin socket that they go over, where the client can have one (vfio-user,
 * "VFIO_USER_VERSION", "twin_socket").
 */
import { Errno, isSystemError, type PeerGone, ProtocolError } from "../../errors.js";
import type { Log } from "../../log.js";
import type { FdShare } from "../../peer-fds.js";
import type { Share } from "../../turn.js";
import { type ClientKeeper, type ClientStreams, loadStream, type SavedClient, streamOptions } from "../kept-client.js";
import type { Connection, Frame } from "../socket/connection.js";
import type { Arrival } from "../socket/stream-memory.js";
import { TwinSocket } from "../socket/twin-socket.js";
import type { Capabilities } from "../version.js";
import { DmaMessages } from "./dma-messages.js";

/** What a client's sockets are made with. */
export interface ClientSocketOptions {
  /** Open a twin socket for a client that can have one. */
  readonly twinSocket: boolean;
  readonly share: Share;
  /** Where the client's fds are counted. */
  readonly fds: FdShare;
  readonly log: Log;
  readonly streams: ClientStreams;
  readonly keeper?: ClientKeeper | undefined;
}

export class ClientDma {
  /** Undefined before VERSION. */
  messages: DmaMessages | undefined;
  twin: TwinSocket | undefined;
  #maxDataXferSize = 0;
  /** How many processes had the client before this one. */
  #life = 0;
  readonly #connection: Connection;
  readonly #reply: (frame: Frame) => void;
  readonly #options: ClientSocketOptions;

  /** `reply`: what to do with a reply that comes over the twin socket. */
  constructor(connection: Connection, reply: (frame: Frame) => void, options: ClientSocketOptions) {
    this.#connection = connection;
    this.#reply = reply;
    this.#options = options;
  }

  /** At VERSION; a client that wants no reply to it gets no twin socket. */
  begin(capabilities: Capabilities, wantsReply: boolean): DmaMessages {
    this.twin = wantsReply ? this.#openTwin(capabilities) : undefined;
    return this.#begin(capabilities.maxDataXferSize);
  }

  /** `twin` is the number of the twin socket's descriptor, 0 for none. */
  save(): Pick<SavedClient, "twin" | "maxDataXferSize" | "life"> {
    const near = this.twin?.isOpen ? this.#options.keeper?.keep(this.twin.near) : undefined;
    return { twin: near ?? 0, maxDataXferSize: this.#maxDataXferSize, life: this.#life };
  }

  restore({ twin, maxDataXferSize, life }: SavedClient): void {
    const { keeper } = this.#options;
    this.#life = life + 1;
    if (twin !== 0 && keeper) {
      this.twin = this.#makeTwin([keeper.take(twin), -1], loadStream(keeper.twin));
    }
    this.#begin(maxDataXferSize);
    // Replies to the process before may be here already.
    this.twin?.connection.goOn();
  }

  close(reason: PeerGone): void {
    this.twin?.close();
    this.messages?.close(reason);
  }

  #begin(maxDataXferSize: number): DmaMessages {
    this.#maxDataXferSize = maxDataXferSize;
    const messages = new DmaMessages(this.twin?.connection ?? this.#connection, maxDataXferSize, this.#life);
    this.messages = messages;
    return messages;
  }

  /**
   * A client that does not say so, or takes no fds, gets no twin socket; neither does any when there are no fds left.
   */
  #openTwin({ twinSocket, maxMsgFds }: Capabilities): TwinSocket | undefined {
    if (!this.#options.twinSocket || !twinSocket || maxMsgFds < 1) return undefined;
    try {
      return this.#makeTwin();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#options.log.warn({ err: error }, "no twin socket");
      return undefined;
    }
  }

  #makeTwin(ends?: readonly [near: number, far: number], resumes?: readonly Arrival[]): TwinSocket {
    const { share, fds, keeper, streams, log } = this.#options;
    const gone = (reason: PeerGone) => {
      // A client that leaves closes both.
      if (!this.#connection.isHungUp)
        log.warn({ reason: reason.message }, "the twin socket is gone: no more DMA by message");
      this.messages?.close(new ProtocolError("the twin socket is gone", Errno.ENOTCONN));
      keeper?.touch();
    };
    const options = { share, fds, ...streamOptions(streams.twin, keeper, resumes) };
    const twin = new TwinSocket(this.#reply, gone, options, ends);
    keeper?.keep(twin.near);
    if (twin.clientEnd >= 0) keeper?.keep(twin.clientEnd);
    return twin;
  }
}
