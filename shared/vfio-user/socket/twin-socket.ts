/**
 * The twin socket: a socket pair of the server's, over which it sends DMA_READ and DMA_WRITE and gets their replies,
 * apart from the client's own commands (vfio-user, "VFIO_USER_VERSION", "twin_socket"). This is the server's side; the
 * client sends no commands here.
 */
import { socketPair } from "../../../native/index.js";
import { Errno, PeerGone } from "../../errors.js";
import { closePeerFd } from "../../peer-fds.js";
import { HeaderFlags } from "../../spec/vfio-user.js";
import { Connection, type ConnectionHandler, type ConnectionOptions, type Frame } from "./connection.js";

export class TwinSocket {
  readonly connection: Connection;
  /** The server's end. */
  readonly near: number;
  #offered: number;
  #closing = false;

  /**
   * `gone` is called when the client closes its end or breaks the framing, not for `close`; -1 for the far end: the
   * client has it already. @throws SystemError
   */
  constructor(
    reply: (frame: Frame) => void,
    gone: (reason: PeerGone) => void,
    options: ConnectionOptions = {},
    [near, far]: readonly [near: number, far: number] = socketPair(),
  ) {
    this.near = near;
    this.#offered = far;
    const handler: ConnectionHandler = {
      command: ({ id, command, flags }) => {
        if (!(flags & HeaderFlags.NO_REPLY)) this.connection.sendError(id, command, Errno.EINVAL);
        this.connection.finish();
      },
      reply,
      gone: (reason) => {
        if (!this.#closing) gone(reason);
      },
    };
    try {
      this.connection = new Connection(near, handler, options);
    } catch (error) {
      for (const fd of [near, far]) if (fd >= 0) closePeerFd(fd, true);
      throw error;
    }
  }

  get isOpen(): boolean {
    return !this.connection.closed;
  }

  /** The client's end, to be sent along with VERSION's reply; -1 after `handedOver`. */
  get clientEnd(): number {
    return this.#offered;
  }

  /** The client has its end: ours of it goes, so that the client's closing is noticed. */
  handedOver(): void {
    if (this.#offered !== -1) closePeerFd(this.#offered, true);
    this.#offered = -1;
  }

  close(): void {
    this.#closing = true;
    this.handedOver();
    this.connection.close(new PeerGone("the session ended"));
  }
}
