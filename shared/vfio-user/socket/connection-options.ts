/** What a connection is given: who gets its messages, what is its own of the process, and where its bytes are. */
import type { PeerGone } from "../../errors.js";
import type { FdShare } from "../../peer-fds.js";
import { Header } from "../../spec/vfio-user.js";
import type { Share } from "../../turn.js";
import type { Syscalls } from "./message-socket.js";
import type { Frame } from "./receive-buffer.js";
import type { Arrival, StreamMemory } from "./stream-memory.js";

export interface ConnectionHandler {
  /** The next command. `finish` is called when it is done, at once or later. */
  command(frame: Frame): void;
  /** A reply, done when this returns. */
  reply(frame: Frame): void;
  /** Called once, for whatever reason the connection ended; everything is closed. */
  gone(reason: PeerGone): void;
}

export interface ConnectionOptions {
  readonly syscalls?: Syscalls;
  readonly maxSendBacklog?: number;
  /** What the connection has of the event loop, with others of its session. */
  readonly share?: Share;
  /** Where the fds are counted that the peer hands over. */
  readonly fds?: FdShare;
  /** Called before and after the messages that came together; nothing else runs in between. */
  readonly receiving?: (now: boolean) => void;
  /** Where its bytes are; memory of its own, if it is left out. */
  readonly memory?: StreamMemory;
  /**
   * It goes on with what is in the memory, where another process left it, and with these fds of messages
   * (`StreamMemory.load`). It hands over nothing until `goOn`.
   */
  readonly resumes?: readonly Arrival[];
  /** Called before anything is sent that TypeScript answered: what it says has to be true in the next process, too. */
  readonly commit?: () => void;
}

const header = Header.view();

/** Writes a message's header at `offset`; `size` includes it. */
export function putHeader(
  data: DataView,
  offset: number,
  id: number,
  command: number,
  size: number,
  flags: number,
  errno = 0,
): void {
  header.at(data, offset);
  header.id = id;
  header.command = command;
  header.size = size;
  header.flags = flags;
  header.errno = errno;
}
