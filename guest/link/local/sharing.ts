/**
 * Memory and eventfds of the device's that a client on the local link is given: memfds, mapped into the window of this
 * process as well, and eventfds that the event loop polls.
 *
 * No client gets what another one had: `renew` puts fresh memory in the same places, and fresh eventfds.
 */
import {
  addSeals,
  close,
  createMemory,
  eventfd,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  POLL_READABLE,
  Poll,
  PROT_READ,
  PROT_WRITE,
  type Reservation,
} from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import type { Log } from "../../../shared/log.js";
import type { WindowAllocator } from "../../../shared/window-allocator.js";
import type { Area, IoEvents, SharedMemory, Window } from "../link.js";

const NONE = -1;

interface Memory extends SharedMemory {
  descriptor: number;
  readonly parts: readonly (Area & { readonly windowOffset: number })[];
}

interface Events extends IoEvents {
  readonly descriptors: number[];
  readonly polls: (Poll | undefined)[];
  readonly signalled: (index: number) => void;
}

export class LocalSharing {
  readonly #window: Window;
  readonly #reservation: Reservation;
  readonly #places: WindowAllocator;
  readonly #log: Log;
  readonly #memories: Memory[] = [];
  readonly #events: Events[] = [];

  /** `places` are those of `reservation`, which `window` shows. */
  constructor(window: Window, reservation: Reservation, places: WindowAllocator, log: Log) {
    this.#window = window;
    this.#reservation = reservation;
    this.#places = places;
    this.#log = log;
  }

  /** @throws ProtocolError ENOSPC when the window is full, SystemError */
  allocateMemory(areas: readonly Area[]): SharedMemory {
    const parts = areas.map((area) => ({ ...area, windowOffset: this.#places.allocate(area.size, area.offset) }));
    if (parts.some(({ windowOffset }) => windowOffset === -1)) {
      for (const { windowOffset } of parts) if (windowOffset !== -1) this.#places.free(windowOffset);
      throw new ProtocolError("the window has no room for the device's shared memory", Errno.ENOSPC);
    }
    const memory = { descriptor: NONE, areas: parts.map((part) => this.#view(part.windowOffset, part.size)), parts };
    this.#memories.push(memory);
    this.#make(memory);
    return memory;
  }

  /** @throws SystemError */
  allocateEvents(count: number, signalled: (index: number) => void): IoEvents {
    const events: Events = { descriptors: new Array(count).fill(NONE), polls: [], signalled };
    this.#events.push(events);
    this.#open(events);
    return events;
  }

  /** The client is gone. What cannot be made anew is not offered to the next one. Never throws. */
  renew(): void {
    this.#drop();
    try {
      for (const memory of this.#memories) this.#make(memory);
      for (const events of this.#events) this.#open(events);
    } catch (error) {
      this.#log.error({ err: error }, "no shared memory or no eventfds for the next client");
    }
  }

  /** Closes all fds. */
  close(): void {
    this.#drop();
    this.#memories.length = 0;
    this.#events.length = 0;
  }

  #view(windowOffset: number, size: number): Uint8Array<ArrayBuffer> {
    const { pieceSize } = this.#window;
    const offset = windowOffset % pieceSize;
    return new Uint8Array(this.#window.piece((windowOffset - offset) / pieceSize), offset, size);
  }

  /** A file that ends with the last area, each area at its offset: what a client maps by the region's one fd. */
  #make(memory: Memory): void {
    const { parts } = memory;
    const size = Math.max(...parts.map((part) => part.offset + part.size));
    const fd = createMemory("vfio-user-region", size, false);
    try {
      addSeals(fd, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
      for (const { windowOffset, size: length, offset } of parts) {
        this.#reservation.map(windowOffset, length, fd, offset, PROT_READ | PROT_WRITE);
      }
    } catch (error) {
      close(fd);
      throw error;
    }
    memory.descriptor = fd;
  }

  #open(events: Events): void {
    for (let index = 0; index < events.descriptors.length; index++) {
      const fd = eventfd(0);
      events.descriptors[index] = fd;
      const poll = new Poll(fd, () => events.signalled(index), "eventfd");
      poll.start(POLL_READABLE);
      events.polls[index] = poll;
    }
  }

  #drop(): void {
    for (const events of this.#events) {
      for (const poll of events.polls) poll?.close();
      events.polls.length = 0;
      for (const fd of events.descriptors) if (fd !== NONE) close(fd);
      events.descriptors.fill(NONE);
    }
    for (const memory of this.#memories) {
      if (memory.descriptor === NONE) continue;
      close(memory.descriptor);
      memory.descriptor = NONE;
      for (const { windowOffset, size } of memory.parts) this.#reservation.unmap(windowOffset, size);
    }
  }
}
