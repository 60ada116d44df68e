/**
 * A command of the bridge's in flight, as the endpoint sees it. One object is used for all, since commands are answered
 * in order; the reply is built in the transmit buffer where it fits.
 */
import { MAX_MESSAGE_FDS } from "../../../shared/limits.js";
import { takesHandles } from "../../../shared/spec/link.js";
import { Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";
import { Stop } from "./device-path.js";
import { type Messages, Outgoing } from "./messages.js";

const NO_HANDLES: readonly number[] = [];

export class LinkPendingCommand implements PendingCommand {
  /** Between `begin` and reply or fail. */
  active = false;
  command = 0;
  bytes = new Uint8Array(0);
  data = new DataView(this.bytes.buffer);
  readonly offset = Header.size;
  length = 0;
  readonly position = -1;
  readonly isAgain = false;

  readonly #messages: Messages;
  readonly #finished: () => void;
  readonly #out = new Outgoing();
  readonly #header = Header.view();
  #id = 0;
  #wantsReply = false;
  /** Bytes reserved for the reply's body; -1 before the first `reserve`. */
  #reserved = -1;

  /** `finished` is called after each reply or fail. */
  constructor(messages: Messages, finished: () => void) {
    this.#messages = messages;
    this.#finished = finished;
  }

  get replyBytes(): Uint8Array {
    return this.#out.bytes;
  }

  get replyData(): DataView {
    return this.#out.data;
  }

  get replyOffset(): number {
    return this.#out.offset + Header.size;
  }

  /** A message of `size` bytes, header included, that stays as it is until reply or fail. */
  begin(bytes: Uint8Array<ArrayBuffer>, data: DataView<ArrayBuffer>, size: number): void {
    const { id, command, flags } = this.#header.at(data);
    this.active = true;
    this.#messages.state.stop(Stop.COMMAND);
    this.command = command;
    this.bytes = bytes;
    this.data = data;
    this.length = size - Header.size;
    this.#id = id;
    this.#wantsReply = (flags & HeaderFlags.NO_REPLY) === 0;
    this.#reserved = -1;
  }

  reserve(length: number): void {
    const handles = takesHandles(this.command) ? 4 * MAX_MESSAGE_FDS : 0;
    this.#messages.reserve(this.#out, Header.size + length + handles);
    this.#reserved = length;
  }

  /** @throws RangeError for handles on a reply that takes none, or too many */
  reply(length: number, handles: readonly number[] = NO_HANDLES): void {
    if (!this.active) return;
    if (this.#wantsReply) {
      if (this.#reserved < length) this.reserve(length);
      this.#putHandles(length, handles);
      this.#send(HeaderFlags.TYPE_REPLY, handles.length, length + 4 * handles.length);
    }
    this.#end();
  }

  fail(errno: number): void {
    if (!this.active) return;
    if (this.#wantsReply) {
      this.reserve(0);
      this.#send(HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno, 0);
    }
    this.#end();
  }

  /** The link is broken: a late reply does nothing. */
  abandon(): void {
    this.active = false;
    this.#messages.state.start(Stop.COMMAND);
    this.#messages.release(this.#out);
  }

  /** Behind the body; their number goes where an error reply has its errno. */
  #putHandles(length: number, handles: readonly number[]): void {
    const most = takesHandles(this.command) ? MAX_MESSAGE_FDS : 0;
    if (handles.length > most) throw new RangeError(`${handles.length} handles on a reply to command ${this.command}`);
    for (let n = 0; n < handles.length; n++) {
      this.#out.data.setUint32(this.replyOffset + length + 4 * n, handles[n], true);
    }
  }

  #send(flags: number, errno: number, length: number): void {
    const header = this.#header.at(this.#out.data, this.#out.offset);
    header.id = this.#id;
    header.command = this.command;
    header.size = Header.size + length;
    header.flags = flags;
    header.errno = errno;
    this.#messages.send(this.#out, Header.size + length);
  }

  #end(): void {
    this.active = false;
    this.#messages.state.start(Stop.COMMAND);
    this.#messages.release(this.#out);
    this.#finished();
  }
}
