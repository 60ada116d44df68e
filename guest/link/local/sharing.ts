/**
 * Memory and eventfds of the device's that a client on the local link is given: memory files, mapped into the window of
 * this process as well, and eventfds that the event loop polls.
 *
 * No client gets what another one had: `renew` puts fresh memory at the same window offsets, and fresh eventfds.
 */
import { close, eventfd, POLL_READABLE, Poll } from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import type { Log } from "../../../shared/log.js";
import { type Area, MemoryFile } from "../../../shared/memory-file.js";
import { type IoEvents, type SharedMemory, windowBytes } from "../link.js";
import type { LocalWindow } from "./window.js";

const NONE = -1;

interface Events extends IoEvents {
  readonly descriptors: number[];
  readonly polls: (Poll | undefined)[];
  readonly signalled: (index: number) => void;
}

export class LocalSharing {
  readonly #window: LocalWindow;
  readonly #log: Log;
  readonly #files: MemoryFile[] = [];
  readonly #events: Events[] = [];

  constructor(window: LocalWindow, log: Log) {
    this.#window = window;
    this.#log = log;
  }

  /** @throws ProtocolError ENOSPC when the window is full, SystemError */
  allocateMemory(areas: readonly Area[]): SharedMemory {
    const file = new MemoryFile(areas);
    for (const area of file.areas) area.windowOffset = this.#window.allocate(area.size, area.offset);
    const placed = file.areas.filter(({ windowOffset }) => windowOffset !== NONE);
    if (placed.length < file.areas.length) {
      for (const { windowOffset } of placed) this.#window.free(windowOffset);
      throw new ProtocolError("the window has no room for the device's shared memory", Errno.ENOSPC);
    }
    this.#files.push(file);
    this.#make(file);
    const views = file.areas.map(({ windowOffset, size }) => windowBytes(this.#window, windowOffset, size));
    return {
      areas: views,
      get descriptor() {
        return file.fd;
      },
    };
  }

  /** @throws SystemError */
  allocateEvents(count: number, signalled: (index: number) => void): IoEvents {
    const events: Events = { descriptors: new Array(count).fill(NONE), polls: [], signalled };
    this.#events.push(events);
    this.#open(events);
    return events;
  }

  /** The client is gone. What cannot be recreated is not offered to the next one. Never throws. */
  renew(): void {
    this.#drop();
    try {
      for (const file of this.#files) this.#make(file);
      for (const events of this.#events) this.#open(events);
    } catch (error) {
      this.#log.error({ err: error }, "no shared memory or no eventfds for the next client");
    }
  }

  /** Closes all fds. */
  close(): void {
    this.#drop();
    this.#files.length = 0;
    this.#events.length = 0;
  }

  #make(file: MemoryFile): void {
    file.recreate();
    try {
      for (const { windowOffset, size, offset } of file.areas) this.#window.map(windowOffset, size, file.fd, offset);
    } catch (error) {
      file.close();
      throw error;
    }
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
    for (const file of this.#files) {
      if (file.fd === NONE) continue;
      file.close();
      for (const { windowOffset, size } of file.areas) this.#window.unmap(windowOffset, size);
    }
  }
}
