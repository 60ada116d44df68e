/**
 * The window: driver-VM memory put into the device VM's shared memory region by SHMEM_MAP and SHMEM_UNMAP, over the
 * channel that the front-end gave with SET_BACKEND_REQ_FD.
 *
 * Two things about stock QEMU 11.1 shape this file.
 * - A request outside the time between the device process's HELLO and the device's stop kills QEMU. So nothing is sent
 *   unless `permit` was called, and `forbid` rejects what waits. Requests go one at a time: whatever is queued when the
 *   stop comes was never sent. While the device VM is paused (`hold`) it waits, and what was sent before may still be
 *   answered.
 * - The reply comes before the memory is committed (docs/decisions/003-when-a-map-is-live.md): the table that follows
 *   it says so, or the reply to the next request, which is made up where there is none.
 */
import { isPowerOfTwo } from "../../../shared/bits.js";
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_VHOST_USER_REGIONS, MAX_WINDOW_REQUESTS, PAGE_SIZE, WINDOW_DEADLINE_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { BackendRequest, HeaderFlags, U64 } from "../../../shared/spec/vhost-user.js";
import { Share } from "../../../shared/turn.js";
import { FD_KIND } from "../state/layout.js";
import { StateMemory } from "../state/state-memory.js";
import { Connection, type Message } from "./connection.js";
import {
  type ChannelUser,
  closeCopy,
  encodeRequest,
  Idlers,
  probe,
  rejectAll,
  restoredRequests,
  type SavedRequests,
  type SavedWindow,
  savedRequests,
  TABLE_DUE_MS,
  TABLE_WAIT_MS,
  takeCopy,
  type WindowRequest,
  wrongPlace,
} from "./window-request.js";

export class Window {
  /** Requests that QEMU carried out. */
  maps = 0;
  unmaps = 0;
  /**
   * Called when the front-end has carried a request out, or has refused it, before the next one is sent: who has that
   * place of the window notes it. False when nobody has.
   */
  onSettled: (request: number, offset: number, isDone: boolean) => boolean = () => true;

  /** After a take-over: what the bridge before had asked is answered, or never will be. */
  restored: Promise<unknown> = Promise.resolve();
  readonly #share: Share;
  readonly #state: StateMemory;
  #channelFd = -1;
  #channel: Connection | undefined;
  #permitted = false;
  /** The device VM is paused. */
  #held = false;
  readonly #waiting: WindowRequest[] = [];
  /** Sent and not answered. */
  #sent: WindowRequest | undefined;
  /** Answered, and not known to be committed. */
  #committing: WindowRequest | undefined;
  /** Replies to come for requests that were given up. */
  #abandoned = 0;
  /** Whether the last commit brought a table. */
  #tablesCome = true;
  /** Regions of the last table; before the first one it is taken to be full. */
  #regions = MAX_VHOST_USER_REGIONS;
  /** The reply to #sent is late: who waited for it has been answered. */
  #isLate = false;
  /** Ends the deadline that is in flight. */
  #stopWaiting = () => {};
  readonly #idlers = new Idlers();
  readonly #reply = U64.view();
  misses: ChannelUser | undefined;

  /** `size` in bytes; stock QEMU aborts when it is not a power of two. */
  constructor(
    readonly size: number,
    readonly log: Log,
    share = new Share(),
    state = StateMemory.temporary(),
  ) {
    this.#share = share;
    this.#state = state;
    if (!isPowerOfTwo(size) || size < PAGE_SIZE)
      throw new RangeError(`the window's size ${size} is not a power of two`);
  }

  /** Takes the backend request channel over. */
  attach(fd: number): void {
    this.detach("the front-end opened a new channel");
    this.#attach(fd, false);
  }

  #attach(fd: number, resumes: boolean): void {
    this.#state.fds.keep(fd);
    this.#channelFd = fd;
    const gone = (reason: string) => this.detach(`the backend request channel ended: ${reason}`);
    const events = { message: (message: Message) => this.#replied(message), gone };
    const options = { share: this.#share, memory: this.#state.stream("window"), resumes };
    this.#channel = new Connection(fd, events, options);
  }

  detach(reason: string): void {
    this.forbid(reason);
    this.#channel?.close();
    this.#channel = undefined;
    this.#channelFd = -1;
    this.misses?.reset();
    this.#abandoned = 0;
    this.#regions = MAX_VHOST_USER_REGIONS;
    this.#held = false;
  }

  save(): SavedWindow {
    return {
      channel: this.#state.fds.idOf(this.#channelFd),
      permitted: this.#permitted,
      abandoned: this.#abandoned,
      regions: this.#regions,
    };
  }

  /** Goes on where another bridge was; `isHeld`: the device VM is paused. @throws StateError */
  restore(saved: SavedWindow, requests: SavedRequests | undefined, isHeld: boolean): void {
    if (saved.channel !== 0) this.#attach(this.#state.fds.take(saved.channel, FD_KIND.SOCKET), true);
    this.#permitted = saved.permitted;
    this.#abandoned = saved.abandoned;
    this.#regions = saved.regions;
    this.#held = true;
    const { sent, committing, settled } = restoredRequests(requests, this.#channel);
    this.restored = settled;
    this.#sent = sent;
    this.#committing = committing;
    if (!isHeld) this.release();
  }

  /** Everything that it has to do with is restored, too. */
  goOn(): void {
    this.#channel?.goOn();
  }

  get permitted(): boolean {
    return this.#permitted;
  }
  /** For people. */
  inspect(): object {
    const { size, maps, unmaps } = this;
    const state = { channel: this.#channel !== undefined, permitted: this.#permitted };
    const requests = { sent: this.#sent !== undefined, committing: this.#committing !== undefined };
    return { size, ...state, maps, unmaps, ...requests, waiting: this.#waiting.length };
  }

  /** From now on requests may be sent: the device runs. */
  permit(): void {
    this.#permitted = this.#channel !== undefined;
    this.#state.control.touch();
    this.#tablesCome = true;
  }

  /** The device stops: sends nothing more, and rejects what is in flight. QEMU drops all maps by itself. */
  forbid(reason: string): void {
    this.#permitted = false;
    this.#held = false;
    this.#isLate = false;
    this.#stopWaiting();
    if (this.#sent) this.#abandoned++;
    this.#state.control.touch();
    const given = [this.#committing, this.#sent, ...this.#waiting];
    this.#committing = undefined;
    this.#sent = undefined;
    this.#waiting.length = 0;
    this.#noteRequests();
    rejectAll(given, new PeerGone(reason));
    this.#idlers.release();
  }

  /** The device VM is paused: nothing is sent until `release`, and no deadline counts. */
  hold(): void {
    this.#held = true;
    this.#stopWaiting();
    for (const request of this.#waiting.splice(0)) if (takeCopy(request)) this.#waiting.push(request);
  }

  /** The device VM goes on. */
  release(): void {
    if (!this.#held) return;
    this.#held = false;
    if (this.#sent) this.#waitForReply();
    else if (this.#committing) this.#waitForTable(this.#committing);
    this.#next();
  }

  /**
   * Resolves when no request is on its way to QEMU; that of the window's own is one, too. Before a reset of the device
   * that somebody waits for: a request that QEMU finds after it is its end.
   */
  idle(): Promise<void> {
    return this.#sent ? this.#idlers.wait() : Promise.resolve();
  }

  /**
   * Maps [fdOffset, fdOffset + size) of `fd`, for reading and writing, at `offset` of the window; resolves when the
   * device VM can use it. The fd stays the caller's and open until then. Rejects with ProtocolError when QEMU refuses,
   * PeerGone when the device stops.
   */
  map(fd: number, fdOffset: number, offset: number, size: number): Promise<void> {
    return this.#request(BackendRequest.SHMEM_MAP, fd, fdOffset, offset, size);
  }

  /** Unmaps exactly what one `map` mapped; resolves when the device VM cannot reach it. Rejects as `map` does. */
  unmap(offset: number, size: number): Promise<void> {
    return this.#request(BackendRequest.SHMEM_UNMAP, -1, 0, offset, size);
  }

  /** Interrupts the driver: the config space has changed. Resolves when QEMU has done that, or does not. */
  async configChanged(): Promise<void> {
    try {
      await this.#request(BackendRequest.CONFIG_CHANGE_MSG, -1, 0, 0, PAGE_SIZE);
    } catch (error) {
      // Whoever stops the device has the driver begin again anyway.
      this.log.debug({ reason: (error as Error).message }, "the driver was not notified of its configuration");
    }
  }

  /** For `misses`, which gets the replies to its IOTLB_MSG. */
  get channel(): Connection | undefined {
    return this.#channel;
  }

  /** To be called before a SET_MEM_TABLE is handled: a reply that QEMU sent before it is seen before it, too. */
  beforeTable(): void {
    this.#channel?.drain(this.#abandoned + 1 + (this.misses?.inFlight ?? 0));
  }

  /** SET_MEM_TABLE, which has that many regions, was handled; `acknowledge` sends the reply. */
  afterTable(regions: number, acknowledge = () => {}): void {
    this.#regions = regions;
    const isAwaited = this.#committing !== undefined;
    this.#tablesCome ||= isAwaited;
    this.#committed();
    acknowledge();
    if (isAwaited) this.#next();
  }

  #request(request: number, fd: number, fdOffset: number, offset: number, size: number): Promise<void> {
    const wrong = wrongPlace(fdOffset, offset, size, this.size);
    if (wrong !== undefined) return Promise.reject(new ProtocolError(wrong));
    if (!this.#permitted) return Promise.reject(new PeerGone("the device in the device VM is not running"));
    if (this.#isLate && request === BackendRequest.SHMEM_MAP)
      return Promise.reject(new ProtocolError("the front-end does not answer", Errno.ETIMEDOUT));
    if (this.#waiting.length >= MAX_WINDOW_REQUESTS) {
      return Promise.reject(new ProtocolError("too many requests for the window", Errno.EBUSY));
    }
    return new Promise((resolve, reject) => {
      const waiting = { request, fd, ownsFd: false, isUndone: false, fdOffset, offset, size, resolve, reject };
      if (this.#held && !takeCopy(waiting)) return;
      this.#waiting.push(waiting);
      this.#next();
    });
  }

  /** Sends what is to be sent next, if anything. */
  #next(): void {
    if (!this.#permitted || this.#held || this.#sent) return;
    if (this.#committing && this.#tablesCome) return;
    const request = this.#waiting.shift() ?? (this.#committing ? probe : undefined);
    if (request) this.#send(request);
  }

  #send(request: WindowRequest): void {
    this.#sent = request;
    this.#waitForReply();
    this.#noteRequests();
    this.#state.control.commit();
    try {
      const payload = encodeRequest(request);
      this.#channel?.send(request.request, HeaderFlags.NEED_REPLY, payload, payload.length, request.fd);
    } catch {
      // The connection's `gone` rejected everything already.
    } finally {
      closeCopy(request);
    }
  }

  /**
   * A front-end that answers late is one that stood still; then it answers all the same. Whoever waits for it hears
   * so in time.
   */
  #waitForReply(): void {
    this.#wait(WINDOW_DEADLINE_MS, () => {
      this.#isLate = true;
      this.log.warn("the front-end does not answer on the backend request channel");
      const late = new ProtocolError("the front-end does not answer", Errno.ETIMEDOUT);
      this.#sent?.reject(late);
      // What is to be taken out of the window still is, when it answers.
      for (const request of this.#waiting.splice(0)) {
        request.reject(late);
        if (request.request === BackendRequest.SHMEM_UNMAP) this.#waiting.push(request);
        else closeCopy(request);
      }
    });
  }

  #waitForTable({ request }: WindowRequest): void {
    const isMap = request === BackendRequest.SHMEM_MAP;
    const isDue = this.#regions + (isMap ? 1 : 0) <= MAX_VHOST_USER_REGIONS;
    this.#wait(isDue ? TABLE_DUE_MS : TABLE_WAIT_MS, () => {
      this.log.debug("no memory table came after a change of the window: asking for its state");
      this.#tablesCome = false;
      this.#next();
    });
  }

  #replied(message: Message): void {
    const request = this.#sent;
    if (!(message.flags & HeaderFlags.REPLY) || message.size !== U64.size) {
      throw new PeerGone(`message ${message.request} is not a reply`);
    }
    if (message.request === BackendRequest.IOTLB_MSG && this.misses) {
      this.misses.replied(this.#reply.at(message.data).value);
      return;
    }
    if (this.#abandoned > 0) {
      this.#abandoned--;
      this.#state.control.touch();
      return;
    }
    if (request?.request !== message.request) throw new PeerGone(`a reply to ${message.request}, which was not asked`);
    this.#stopWaiting();
    const isRefused = this.#reply.at(message.data).value !== 0;
    const changes = request !== probe && request.request !== BackendRequest.CONFIG_CHANGE_MSG;
    const before = this.#committing;
    this.#sent = undefined;
    this.#committing = changes && !isRefused ? request : undefined;
    // Whatever was answered before is committed by now.
    if (before) this.#settle(before, true);
    if (!this.#committing) this.#settle(request, !isRefused);
    else if (this.#tablesCome && !this.#held) this.#waitForTable(request);
    this.#noteRequests();
    if (this.#isLate) {
      this.#isLate = false;
      // Nobody wants what it mapped any more, and its place in the window is not given to anything else before.
      if (request.request === BackendRequest.SHMEM_MAP && request === this.#committing) this.#undo(request);
    }
    this.#next();
    if (!this.#sent) this.#idlers.release();
  }

  #undo(undone: WindowRequest): void {
    if (undone.isUndone) return;
    undone.isUndone = true;
    const { offset, size } = undone;
    this.#waiting.unshift({ ...probe, offset, size });
  }

  #committed(): void {
    const request = this.#committing;
    if (!request) return;
    if (!this.#sent) this.#stopWaiting();
    this.#committing = undefined;
    this.#settle(request, true);
    this.#noteRequests();
  }

  #settle(request: WindowRequest, isDone: boolean): void {
    if (request === probe) return;
    const isMap = request.request === BackendRequest.SHMEM_MAP;
    const changes = request.request !== BackendRequest.CONFIG_CHANGE_MSG;
    const isOwned = !changes || this.onSettled(request.request, request.offset, isDone);
    const refusal = new ProtocolError("QEMU refused the request for the window", Errno.EIO);
    if (isDone && isMap) this.maps++;
    else if (isDone && changes) this.unmaps++;
    // Of another bridge's, or one that was given up.
    if (isDone && isMap && !isOwned) this.#undo(request);
    if (isDone) request.resolve();
    else request.reject(refusal);
  }

  /** So that the next bridge knows what it may hear of. */
  #noteRequests(): void {
    const { queued = 0, handled = 0 } = this.#channel ?? {};
    const requests = savedRequests(this.#sent, this.#committing);
    this.#state.pair("windowRequests").write({ ...requests, queued, replied: handled });
  }

  #wait(milliseconds: number, late: () => void): void {
    this.#stopWaiting();
    this.#stopWaiting = startDeadline(milliseconds, late);
  }
}
