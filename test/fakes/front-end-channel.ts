/**
 * The back-end's requests, as QEMU deals with them: SHMEM_MAP, SHMEM_UNMAP, and the interrupt for a changed config
 * space.
 */
import { closeSync } from "node:fs";
import * as native from "../../native/index.js";
import { inBounds } from "../../shared/bits.js";
import { BackendRequest, HeaderFlags, ShmemMap, U64 } from "../../shared/spec/vhost-user.js";
import type { FakeIommu } from "./front-end-iommu.js";
import type { FakeWindow } from "./front-end-window.js";
import { Wire, type WireMessage } from "./front-end-wire.js";

/** The machine, as far as the back-end's requests touch it. */
export interface ChannelOwner {
  /** The device runs, or what QEMU keeps of that is there. */
  readonly takesRequests: boolean;
  /** QEMU's main loop is busy elsewhere. */
  readonly busy: boolean;
  readonly window: FakeWindow;
  readonly iommu: FakeIommu | undefined;
  configChanged(): void;
  /** The memory has changed. */
  commit(): void;
  complain(what: string): void;
  /** Stock QEMU does not survive this. */
  die(reason: string): void;
}

export class BackendChannel {
  readonly #owner: ChannelOwner;
  readonly #wire: Wire;
  readonly #poll: native.Poll;

  constructor(fd: number, owner: ChannelOwner) {
    this.#owner = owner;
    this.#wire = new Wire(fd);
    this.#poll = new native.Poll(fd, () => this.#serve());
    this.#poll.start(native.POLL_READABLE);
  }

  close(): void {
    this.#poll.close();
    this.#wire.close();
  }

  #serve(): void {
    if (this.#owner.busy) return;
    let message: WireMessage;
    try {
      message = this.#wire.receive("a backend request");
    } catch {
      // The back-end closed it.
      this.#poll.stop();
      return;
    }
    try {
      this.#request(message);
    } finally {
      for (const fd of message.fds) closeSync(fd);
    }
  }

  #request(message: WireMessage): void {
    const owner = this.#owner;
    const { request, flags } = message;
    if (request === BackendRequest.IOTLB_MSG) {
      this.#missed(message);
      return;
    }
    const name = Object.entries(BackendRequest).find(([, number]) => number === request)?.[0] ?? String(request);
    if (!owner.takesRequests) {
      owner.die(`the backend request ${name} came while the device was stopped`);
      return;
    }
    let work: string | (() => void) | undefined;
    if (request === BackendRequest.CONFIG_CHANGE_MSG) owner.configChanged();
    else work = this.#changeOfWindow(name, message);
    const isRefused = typeof work === "string";
    if (typeof work === "string") owner.complain(work);
    // The reply goes out before the memory changes.
    if (flags & HeaderFlags.NEED_REPLY) {
      this.#wire.send(request, HeaderFlags.REPLY, U64.encode({ value: isRefused ? 1 : 0 }));
    }
    if (typeof work !== "function") return;
    work();
    owner.commit();
  }

  #missed({ request, data }: WireMessage): void {
    const { iommu, takesRequests } = this.#owner;
    if (!takesRequests) this.#owner.complain("Unexpected IOTLB message when virtio device is stopped");
    const value = takesRequests ? iommu?.missed(data) : 1;
    if (value !== undefined) this.#wire.send(request, HeaderFlags.REPLY, U64.encode({ value }));
  }

  /** What is to be done to the window, or why not. */
  #changeOfWindow(name: string, { request, payload, data, fds }: WireMessage): string | (() => void) {
    const { window } = this.#owner;
    if (payload.length !== ShmemMap.size) return `${name} of ${payload.length} bytes`;
    const { shmid, fdOffset, shmOffset: offset, length } = ShmemMap.view(data);
    if (shmid !== 0) return `shared memory region ${shmid} not found`;
    if (!inBounds(offset, length, window.size)) return "Bad offset/len";
    if (request === BackendRequest.SHMEM_MAP) {
      const refusal = window.refuses(offset, length, fdOffset, fds);
      return refusal ?? (() => window.map(offset, length, fdOffset, fds[0]));
    }
    if (request !== BackendRequest.SHMEM_UNMAP) return `unexpected message ${request}`;
    const index = window.maps.findIndex((map) => map.offset === offset && map.length === length);
    return index < 0 ? "Shared memory mapping not found" : () => window.unmap(index);
  }
}
