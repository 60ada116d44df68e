/**
 * Commands and replies over the channel: commands of the client's that are passed on, commands of the bridge's own, and
 * the replies to both, which are checked before anybody acts on them.
 */
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { REPLY_DEADLINE_MS } from "../../../shared/limits.js";
import { takesHandles } from "../../../shared/spec/link.js";
import { Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import type { Share } from "../../../shared/turn.js";
import { answerWithoutDevice } from "../../../shared/vfio-user/absent-device.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";
import { RequestTable } from "../../../shared/vfio-user/request-table.js";
import type { AccessPath } from "../../../shared/vfio-user/socket/access-path.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import { MAX_PENDING_IDS, type PendingId, PendingIds } from "../state/pending-ids.js";
import { StateError } from "../state/state-bytes.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import { Channel } from "./channel.js";
import type { DeviceState } from "./device-state.js";
import { checkReply, hasHandles } from "./replies.js";

/** What the device process says; each throws ProtocolError when it may not. */
export interface DeviceMessages {
  /** A command of its own, of `length` bytes with its header; the bytes are reused afterwards. */
  command(id: number, command: number, flags: number, bytes: Uint8Array, data: DataView, length: number): void;
  /** The reply to a command of the client's, whose body speaks of what the handles stand for. */
  replyWithHandles(command: PendingCommand, body: Uint8Array<ArrayBuffer>, handles: readonly number[]): void;
}

const ERRNO_MAX = 4095;
/** Commands without a reply. More than a session ever has: one at a time, and those that were abandoned. */
const MAX_REQUESTS = MAX_PENDING_IDS;
/**
 * Of them, what is left to the bridge's own: that a process is to release a client whose commands it has not answered.
 */
const RESERVED_REQUESTS = 16;
const NOTHING = new Uint8Array(0);

/** A command of the bridge's own; a client's command that is relayed waits for its reply by itself. */
class OwnRequest {
  /** With a copy of the reply's body. */
  readonly resolve: (body: Uint8Array) => void;
  readonly reject: (error: Error) => void;

  constructor(resolve: (body: Uint8Array) => void, reject: (error: Error) => void) {
    this.resolve = resolve;
    this.reject = reject;
  }
}

export class RequestChannel {
  readonly channel: Channel;
  readonly #state: DeviceState;
  readonly #requests = new RequestTable<PendingCommand | OwnRequest>(MAX_REQUESTS, RESERVED_REQUESTS);
  readonly #inHeader = Header.view();
  readonly #path: AccessPath;
  #messages: DeviceMessages | undefined;

  readonly #ids: PendingIds;
  /** Ids that another process took, and whose replies have not come. */
  #restored: readonly PendingId[] = [];
  /** The next message may be one that another process dealt with. */
  #isFirst = false;

  constructor(state: DeviceState, share: Share, path: AccessPath, ids = new PendingIds()) {
    this.#state = state;
    this.#path = path;
    this.#ids = ids;
    this.channel = new Channel(state, share, path);
    this.channel.listen((bytes, data, length) => this.#receive(bytes, data, length));
  }

  /** Who deals with what the device process says. */
  listen(messages: DeviceMessages): void {
    this.#messages = messages;
  }

  /** Goes on where another process was: see Channel. @throws SystemError, StateError */
  resume(backEnd: BackEnd): void {
    const restored = this.#ids.load();
    if (restored === undefined) throw new StateError("the ids of commands are damaged");
    this.#requests.restore(restored);
    this.#restored = restored;
    this.#isFirst = true;
    this.channel.start(backEnd, true);
  }

  /**
   * A command that another process may have passed on: "in flight" when its reply is waited for now, "passed on" when
   * it wants none; undefined when it was not.
   */
  resumed(command: PendingCommand): "in flight" | "passed on" | undefined {
    const entry = this.#restored.find(({ position }) => position === command.position);
    // Once: the command may be handed over again when it has waited here, and its id be another's then.
    this.#restored = this.#restored.filter((each) => each !== entry);
    const wasPassed = this.#path.wasPassed(command.position);
    if (entry !== undefined && wasPassed) {
      this.#requests.adopt(entry.id, command);
      return "in flight";
    }
    if (entry !== undefined) this.#free(entry.id);
    return wasPassed ? "passed on" : undefined;
  }

  #free(id: number): void {
    this.#requests.free(id);
    this.#ids.free(id);
  }

  /** Passes a command of the client's on; `posted`: no reply is wanted. False when too many have no reply. */
  relay(command: PendingCommand, posted: boolean): boolean {
    const id = posted ? 0 : this.#requests.take(command.command, command);
    if (id < 0) return false;
    const flags = HeaderFlags.TYPE_COMMAND | (posted ? HeaderFlags.NO_REPLY : 0);
    const { bytes, offset, length, position } = command;
    if (!posted) this.#ids.add(id, command.command, position);
    const isSent = this.channel.send(id, command.command, flags, 0, bytes, offset, length, position);
    if (!isSent && !posted) {
      const waits = this.#requests.waiterOf(id) === command;
      this.#free(id);
      if (waits) answerWithoutDevice(command);
    }
    return true;
  }

  /** Sends a command of the client's that was answered already. */
  post(command: number, body: Uint8Array): void {
    this.channel.send(0, command, HeaderFlags.TYPE_COMMAND | HeaderFlags.NO_REPLY, 0, body);
  }

  /** Sends a command of the bridge's own, whose reply is to come in time. Rejects with ProtocolError or PeerGone. */
  async request(command: number, body: Uint8Array): Promise<void> {
    const answered = startDeadline(
      REPLY_DEADLINE_MS,
      () => this.#state.raise("silent", `it did not answer command ${command} in time`),
      () => this.#state.isPaused,
    );
    try {
      await this.send(command, body);
    } finally {
      answered();
    }
  }

  /** The same, with a reply that may take as long as it likes; resolves with its body. */
  send(command: number, body: Uint8Array): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (!this.channel.open) return reject(new PeerGone("the device process is not there"));
      const id = this.#requests.take(command, new OwnRequest(resolve, reject), true);
      if (id < 0) {
        reject(new PeerGone("the device process answers nothing"));
        this.#state.raise("silent", "it answers nothing");
        return;
      }
      this.#ids.add(id, command, -1);
      if (this.channel.send(id, command, HeaderFlags.TYPE_COMMAND, 0, body)) return;
      this.#free(id);
      reject(new PeerGone("the device process takes no messages"));
    });
  }

  /** Answers a command of the device process's. */
  answer(id: number, command: number, body: Uint8Array = NOTHING): void {
    this.channel.send(id, command, HeaderFlags.TYPE_REPLY, 0, body);
  }

  refuse(id: number, command: number, errno: number): void {
    this.channel.send(id, command, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno, NOTHING);
  }

  /**
   * The device process is not waited for any more: what waits is answered as by a device that is not there. `mayCome`:
   * the channel stays, and with it what the process may still answer.
   */
  drop(reason: string, mayCome: boolean): void {
    if (!mayCome) for (let id = 0; id < MAX_REQUESTS; id++) if (this.#requests.isTaken(id)) this.#ids.free(id);
    end(mayCome ? this.#requests.abandon() : this.#requests.dropAll(), reason);
  }

  /** The same, the channel staying; and what the process was not given yet it is not given any more. */
  abandon(reason: string): void {
    const ids = this.#withdraw(() => true);
    const waiters = this.#requests.abandon();
    for (const id of ids) this.#free(id);
    end(waiters, reason);
  }

  /** The client's commands that want a reply are answered by `answer`, and not carried out where they were not sent. */
  abandonRelayed(answer: (command: PendingCommand, isSent: boolean) => void): void {
    const ids = this.#withdraw((id) => isRelayed(this.#requests.waiterOf(id)));
    const unsent = new Set(ids.map((id) => this.#requests.waiterOf(id)));
    const relayed = this.#requests.abandon(isRelayed);
    for (const id of ids) this.#free(id);
    for (const command of relayed) if (isRelayed(command)) answer(command, !unsent.has(command));
  }

  /** The client's posted writes that the process was not given yet are not carried out. */
  withdrawPosted(): void {
    this.channel.withdraw((_id, _command, flags) => (flags & HeaderFlags.NO_REPLY) === 0);
  }

  /**
   * Takes back commands that were not sent: posted ones too where all `isDropped`. Returns the ids of those that wanted
   * a reply.
   */
  #withdraw(isDropped: (id: number) => boolean): number[] {
    const ids: number[] = [];
    this.channel.withdraw((id, _command, flags) => {
      if ((flags & HeaderFlags.TYPE_MASK) !== HeaderFlags.TYPE_COMMAND) return true;
      if ((flags & HeaderFlags.NO_REPLY) !== 0) return !isDropped(-1);
      if (!isDropped(id)) return true;
      ids.push(id);
      return false;
    });
    return ids;
  }

  #receive(bytes: Uint8Array, data: DataView, length: number): void {
    const { id, command, flags, errno } = this.#inHeader.at(data);
    const type = flags & HeaderFlags.TYPE_MASK;
    const mayBeAgain = this.#isFirst && type === HeaderFlags.TYPE_REPLY;
    this.#isFirst = false;
    try {
      if (type === HeaderFlags.TYPE_REPLY && this.#path.has(id)) this.#replyToAccess(bytes, length, command, id);
      else if (type === HeaderFlags.TYPE_REPLY) this.#reply(id, command, flags, errno, bytes, data, length);
      else if (type === HeaderFlags.TYPE_COMMAND) this.#messages?.command(id, command, flags, bytes, data, length);
      else throw new ProtocolError(`a message of type ${type}`);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      if (!mayBeAgain) this.#state.raise("violated", error.message);
    }
  }

  /** A reply that the path left in the ring. */
  #replyToAccess(bytes: Uint8Array, length: number, command: number, id: number): void {
    if (this.#path.deliver(bytes, 0, length)) return;
    throw new ProtocolError(`a reply to nothing, or that does not fit: ${command}, id ${id}, ${length} bytes`);
  }

  #reply(id: number, number: number, flags: number, errno: number, bytes: Uint8Array, data: DataView, length: number) {
    if (!this.#requests.expects(id, number)) throw new ProtocolError(`a reply to nothing: ${number}, id ${id}`);
    const request = this.#requests.waiterOf(id);
    const failed = (flags & HeaderFlags.ERROR) !== 0;
    const code = errno > 0 && errno <= ERRNO_MAX ? errno : Errno.EIO;
    if (request === undefined || (isRelayed(request) && !request.active)) {
      this.#free(id);
    } else if (request instanceof OwnRequest) {
      this.#free(id);
      if (failed) request.reject(new ProtocolError(`the device refused command ${number}`, code, number));
      else request.resolve(bytes.slice(Header.size, length));
    } else {
      const handles = failed || !takesHandles(number) ? 0 : errno;
      const bodyEnd = length - 4 * handles;
      const body = failed ? 0 : checkReply(request, data, bodyEnd - Header.size, handles);
      if (body < 0) throw new ProtocolError(`a reply of ${length} bytes that does not fit command ${number}`);
      if (failed) {
        request.fail(code);
      } else if (hasHandles(number, body, handles)) {
        const numbers = Array.from({ length: handles }, (_, n) => data.getUint32(bodyEnd + 4 * n, true));
        this.#messages?.replyWithHandles(request, bytes.slice(Header.size, Header.size + body), numbers);
      } else {
        request.reserve(body);
        copyBytes(bytes, Header.size, request.replyBytes, request.replyOffset, body);
        request.reply(body);
      }
      // Last: until the client's reply is there, this one is wanted.
      this.#free(id);
    }
  }
}

function isRelayed(request: PendingCommand | OwnRequest | undefined): request is PendingCommand {
  return request !== undefined && !(request instanceof OwnRequest);
}

/** Nobody answers these any more: a client's commands are answered as by a device that is not there. */
function end(requests: readonly (PendingCommand | OwnRequest)[], reason: string): void {
  for (const request of requests) if (!isRelayed(request)) request.reject(new PeerGone(reason));
  for (const request of requests) if (isRelayed(request)) answerWithoutDevice(request);
}
