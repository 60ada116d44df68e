/**
 * Eventfds that the client may signal in place of writes to registers (docs/virtio-vfio-user.md, "ALLOCATE_EVENTS"):
 * made here, polled here, and forwarded to the device process as IO_EVENT. While the device process has one in flight
 * for an eventfd, that eventfd is not polled: what the client signals meanwhile adds up in it to one more.
 *
 * As region memory, they outlive the device process as long as the client is there, and never the client.
 */
import * as native from "../../../native/index.js";
import { Errno, isSystemError, ProtocolError } from "../../../shared/errors.js";
import { MAX_IOEVENTFDS } from "../../../shared/limits.js";
import { IoEvent as IoEventBody, LinkCommand } from "../../../shared/spec/link.js";
import type { FdKeeper } from "../state/fd-keeper.js";
import { FD_KIND } from "../state/layout.js";
import { isSharable } from "./bodies.js";
import type { RequestChannel } from "./request-channel.js";

const NO_HANDLE = 0;

interface IoEvent {
  readonly region: number;
  fd: number;
  /** NO_HANDLE while no device process has asked for it. */
  handle: number;
  poll: native.Poll | undefined;
  /** The device process has not answered the last one. */
  isForwarded: boolean;
}

/** Eventfds as the state keeps them. */
export type SavedEvents = readonly (readonly [region: number, fd: number, handle: number])[];

export class IoEvents {
  /** Signals forwarded so far. */
  forwarded = 0;
  readonly #events: IoEvent[] = [];
  readonly #requests: RequestChannel;
  readonly #newHandle: () => number;
  readonly #fds: FdKeeper;
  #polling = false;

  /** `newHandle` gives numbers above 0, each once. */
  constructor(requests: RequestChannel, fds: FdKeeper, newHandle: () => number) {
    this.#requests = requests;
    this.#fds = fds;
    this.#newHandle = newHandle;
  }

  save(): SavedEvents {
    return this.#events.map(({ region, fd, handle }) => [region, fd < 0 ? 0 : this.#fds.idOf(fd), handle] as const);
  }

  /** What was signalled, and may not have been forwarded, is forwarded once more. @throws StateError */
  restore(saved: SavedEvents): void {
    for (const [region, id, handle] of saved) {
      const fd = id === 0 ? -1 : this.#fds.take(id, FD_KIND.EVENTFD);
      if (fd >= 0) native.eventfdWrite(fd);
      this.#events.push({ region, fd, handle, poll: undefined, isForwarded: false });
    }
  }

  /**
   * Makes `count` eventfds for a region; those that the client has already are among them, in the same order. Returns
   * their handles. @throws ProtocolError, SystemError
   */
  allocate(region: number, count: number): number[] {
    if (!isSharable(region)) throw new ProtocolError(`eventfds for region ${region}`);
    const known = this.#events.filter((event) => event.region === region);
    if (known.some(({ handle }) => handle !== NO_HANDLE)) {
      throw new ProtocolError(`region ${region} has eventfds`, Errno.EEXIST);
    }
    if (count === 0 || this.#events.length + Math.max(0, count - known.length) > MAX_IOEVENTFDS) {
      throw new ProtocolError(`${count} more eventfds of at most ${MAX_IOEVENTFDS}`, Errno.ENOSPC);
    }
    while (known.length < count) {
      const event = { region, fd: this.#newEventfd(), handle: NO_HANDLE, poll: undefined, isForwarded: false };
      known.push(event);
      this.#events.push(event);
    }
    const events = known.slice(0, count);
    for (const event of events) if (event.fd < 0) event.fd = this.#newEventfd();
    for (const event of events) event.handle = this.#newHandle();
    return events.map(({ handle }) => handle);
  }

  /** No device process knows the eventfds of that region. */
  withdraw(region: number): void {
    for (const event of this.#events) if (event.region === region) event.handle = NO_HANDLE;
  }

  /** The eventfd that a device process named, if it is of that region and its own; otherwise -1. */
  fd(region: number, handle: number): number {
    if (handle === NO_HANDLE) return -1;
    return this.#events.find((event) => event.region === region && event.handle === handle)?.fd ?? -1;
  }

  /** The device process has the client: signals are forwarded, those that waited too. */
  start(): void {
    this.stop();
    this.#polling = true;
    for (const event of this.#events) this.#watch(event);
  }

  /** What is signalled waits in the eventfds until `start`. */

  stop(): void {
    this.#polling = false;
    for (const event of this.#events) {
      event.poll?.close();
      event.poll = undefined;
    }
  }

  /** The device process is gone. Eventfds that no client has go. */
  forget(keep: boolean): void {
    this.stop();
    for (const event of this.#events) {
      event.handle = NO_HANDLE;
      event.isForwarded = false;
    }
    if (!keep) this.#drop();
  }

  /** The client is gone: the next one gets fresh ones, or an error when there are no more fds. Never throws. */
  clientGone(): void {
    this.stop();
    this.#drop();
    for (const event of this.#events) {
      if (event.fd >= 0) this.#fds.close(event.fd);
      event.fd = this.#freshEventfd();
    }
  }

  /** Closes what no device process has. */
  #drop(): void {
    for (let n = this.#events.length - 1; n >= 0; n--) {
      const { handle, fd } = this.#events[n];
      if (handle !== NO_HANDLE) continue;
      if (fd >= 0) this.#fds.close(fd);
      this.#events.splice(n, 1);
    }
  }

  #watch(event: IoEvent): void {
    const { fd, handle } = event;
    if (fd < 0 || handle === NO_HANDLE) return;
    const signalled = () => {
      poll.stop();
      this.forwarded++;
      event.isForwarded = true;
      const answered = () => {
        if (event.handle !== handle) return;
        event.isForwarded = false;
        if (this.#polling) event.poll?.start(native.POLL_READABLE);
      };
      // When the device process is gone its successor has another handle; one that was given up is told by `start`.
      this.#requests.request(LinkCommand.IO_EVENT, IoEventBody.encode({ handle })).then(answered, answered);
    };
    const poll = new native.Poll(fd, signalled, "eventfd");
    event.poll = poll;
    if (!event.isForwarded) poll.start(native.POLL_READABLE);
  }

  #newEventfd(): number {
    const fd = native.eventfd(0);
    this.#fds.keep(fd);
    return fd;
  }

  /** -1 when there are no more fds. */
  #freshEventfd(): number {
    try {
      return this.#newEventfd();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      return -1;
    }
  }
}
