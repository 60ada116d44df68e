/**
 * Sits between a client and a server and changes what they say, so that a good server looks like a broken one: requests
 * may be answered in the server's place, changed or swallowed, replies may be changed.
 */
import { accept, connect, listen, POLL_READABLE, Poll, StreamWord } from "../../../native/index.js";
import { Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import type { Share } from "../../../shared/turn.js";
import { Connection, type Frame, putHeader } from "../../../shared/vfio-user/socket/connection.js";
import { type Syscalls, systemCalls } from "../../../shared/vfio-user/socket/message-socket.js";

/** A message that may be changed before it goes on. */
export interface Passing {
  id: number;
  command: number;
  flags: number;
  errno: number;
  body: Buffer;
  fds: number[];
}

/** What is to be done wrong. */
export interface Meddling {
  /** True: the request is not passed on; `answer` may have been called in its place. */
  readonly request?: (request: Passing, answer: (reply: Partial<Passing>) => void) => boolean | undefined;
  /** Changes the reply (the request's fds are closed by then); true closes the connection in its place. */
  readonly reply?: (reply: Passing, request: Passing, send: (more: Partial<Passing>) => void) => boolean | undefined;
  /** Called with a reply of the client's, to a command of the server's. */
  readonly clientReply?: (reply: Passing) => void;
  /** Called with the bytes that were received at once; true closes the connection. */
  readonly received?: (bytes: Uint8Array) => boolean;
}

function passing(frame: Frame): Passing {
  const { id, command, flags, errno, fds } = frame;
  return {
    id,
    command,
    flags,
    errno,
    fds,
    body: Buffer.from(frame.bytes.slice(frame.offset, frame.offset + frame.length)),
  };
}

function forward(to: Connection, { id, command, flags, errno, body, fds }: Passing): void {
  const bytes = new Uint8Array(Header.size + body.length);
  putHeader(new DataView(bytes.buffer), 0, id, command, bytes.length, flags, errno);
  bytes.set(body, Header.size);
  to.send(bytes, 0, bytes.length, fds.length > 0 ? fds : undefined);
}

export class Meddler {
  readonly #fd: number;
  readonly #poll: Poll;
  readonly #connections = new Set<Connection>();
  #closed = false;
  readonly #serverPath: string;
  readonly #meddling: Meddling;
  /** The server's: the meddler is no other session, for which clients would have to rest. */
  readonly #share: Share;

  constructor(path: string, serverPath: string, meddling: Meddling, share: Share) {
    this.#serverPath = serverPath;
    this.#meddling = meddling;
    this.#share = share;
    this.#fd = listen(path, 16);
    this.#poll = new Poll(this.#fd, () => this.#acceptAll());
    this.#poll.start(POLL_READABLE);
  }

  close(): void {
    this.#closed = true;
    this.#poll.close();
    systemCalls.close(this.#fd);
    for (const connection of [...this.#connections]) connection.close();
  }

  /**
   * One client after the other: the end of the last one, which came before, is heard of first, as the server refuses a
   * second.
   */
  #acceptAll(): void {
    for (let fd = accept(this.#fd); fd !== -1; fd = accept(this.#fd)) {
      const accepted = fd;
      setImmediate(() => (this.#closed ? systemCalls.close(accepted) : this.#join(accepted)));
    }
  }

  #join(fd: number): void {
    const meddling = this.#meddling;
    const asked: Passing[] = [];
    const endAll = () => {
      for (const end of [client, server]) {
        this.#connections.delete(end);
        end.close();
      }
    };
    const client: Connection = new Connection(
      fd,
      {
        command: (frame) => {
          const request = passing(frame);
          const answer = (reply: Partial<Passing>) =>
            forward(client, { ...request, flags: HeaderFlags.TYPE_REPLY, body: Buffer.alloc(0), fds: [], ...reply });
          if (!meddling.request?.(request, answer)) {
            forward(server, request);
            if (!(request.flags & HeaderFlags.NO_REPLY)) asked.push(request);
          }
          client.finish();
        },
        reply: (frame) => {
          const reply = passing(frame);
          meddling.clientReply?.(reply);
          forward(server, reply);
        },
        gone: () => endAll(),
      },
      { syscalls: this.#syscalls(), share: this.#share },
    );
    const server: Connection = new Connection(
      connect(this.#serverPath),
      {
        command: (frame) => {
          forward(client, passing(frame));
          server.finish();
        },
        reply: (frame) => {
          const reply = passing(frame);
          const request = asked.shift();
          const send = (more: Partial<Passing>) => forward(client, { ...reply, fds: [], ...more });
          if (request !== undefined && meddling.reply?.(reply, request, send)) endAll();
          else forward(client, reply);
        },
        gone: () => endAll(),
      },
      { share: this.#share },
    );
    this.#connections.add(client).add(server);
  }

  #syscalls(): Syscalls {
    const { received } = this.#meddling;
    if (received === undefined) return systemCalls;
    return {
      ...systemCalls,
      open: (fd, callback) => {
        const socket = systemCalls.open(fd, callback);
        const receive = socket.receive.bind(socket);
        socket.receive = () => {
          const count = receive();
          const at = socket.at(socket.words[StreamWord.END] - count);
          // 0 is the end of the stream.
          return count > 0 && received(socket.bytes.subarray(at, at + count)) ? 0 : count;
        };
        return socket;
      },
    };
  }
}
