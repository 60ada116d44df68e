/**
 * The twin socket: a socket pair of the server's, over which it sends DMA_READ and DMA_WRITE and gets their replies,
 * apart from the client's own commands (vfio-user, "VFIO_USER_VERSION", "twin_socket"). This is the server's side; the
 * client sends no commands here.
 */
import { close, socketPair } from "../../../native/index.js";
import { Errno, PeerGone } from "../../errors.js";
import { HeaderFlags } from "../../spec/vfio-user.js";
import { Connection, type ConnectionHandler, type ConnectionOptions, type Frame } from "./connection.js";

export class TwinSocket {
  readonly connection: Connection;
  #offered: number;
  #closing = false;

  /** `gone` is called when the client closes its end or breaks the framing, not for `close`. @throws SystemError */
  constructor(reply: (frame: Frame) => void, gone: (reason: PeerGone) => void, options: ConnectionOptions = {}) {
    const [near, far] = socketPair();
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
    this.connection = new Connection(near, handler, options);
  }

  /** The client's end, to be sent along with VERSION's reply; -1 after `handedOver`. */
  get clientEnd(): number {
    return this.#offered;
  }

  /** The client has its end: ours of it goes, so that the client's closing is noticed. */
  handedOver(): void {
    if (this.#offered !== -1) close(this.#offered);
    this.#offered = -1;
  }

  close(): void {
    this.#closing = true;
    this.handedOver();
    this.connection.close(new PeerGone("the session ended"));
  }
}
