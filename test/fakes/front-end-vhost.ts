/**
 * The vhost-user half of the front-end: what QEMU sends at realization, at DRIVER_OK and at a stop, in its order, with
 * acknowledgements where it wants them.
 */
import { closeSync } from "node:fs";
import * as native from "../../native/index.js";
import { alignDown } from "../../shared/bits.js";
import { PAGE_SIZE } from "../../shared/limits.js";
import {
  DeviceConfig,
  F_PROTOCOL_FEATURES,
  Features,
  HeaderFlags,
  MemoryRegion,
  MemTable,
  ProtocolFeature,
  Request,
  ShmemConfig,
  U64,
  VringAddr,
  VringState,
} from "../../shared/spec/vhost-user.js";
import { getU64 } from "../../shared/struct/struct.js";
import type { VirtQueue } from "./front-end-common.js";
import { type FakeIommu, userAddress } from "./front-end-iommu.js";
import { Wire, type WireMessage } from "./front-end-wire.js";

/** What QEMU 11.1 asks for; not CONFIGURE_MEM_SLOTS, since what offers it kills QEMU. */
const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.BACKEND_SEND_FD |
  ProtocolFeature.SHMEM;

/** RAM is two regions, as in a PC: below the legacy hole, and from 1 MiB on. */
const LOW_RAM = 0xa0000;
export const HIGH_RAM = 0x10_0000;

export const ramRegions = (fd: number, size: number): TableEntry[] =>
  [
    { guestAddress: 0, size: LOW_RAM },
    { guestAddress: HIGH_RAM, size: size - HIGH_RAM },
  ].map(({ guestAddress, size }) => ({
    region: { guestAddress, size, userAddress: userAddress(guestAddress), mmapOffset: guestAddress },
    fd,
  }));

/** A region of SET_MEM_TABLE. */
export interface TableEntry {
  readonly region: { guestAddress: number; size: number; userAddress: number; mmapOffset: number };
  readonly fd: number;
}

export class Vhost {
  readonly wire: Wire;
  /** Requests that were sent so far, by number. */
  readonly sent: number[] = [];
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** Size of the only shared memory region. */
  readonly windowSize: number;
  /** Our end of the backend request channel. */
  readonly channel: number;
  readonly #queues: readonly VirtQueue[];

  /** Realizes the device with the back-end at `path`. */
  constructor(path: string, queues: readonly VirtQueue[]) {
    this.#queues = queues;
    this.wire = new Wire(native.connect(path));
    this.#getFeatures(Request.GET_FEATURES);
    this.protocolFeatures = this.#getFeatures(Request.GET_PROTOCOL_FEATURES);
    if (!(this.protocolFeatures & ProtocolFeature.CONFIG)) throw new Error("the back-end has no config space");
    const agreed = this.protocolFeatures & PROTOCOL_FEATURES;
    this.#send(Request.SET_PROTOCOL_FEATURES, Features.encode({ value: agreed }));
    const most = U64.view(this.#exchange(Request.GET_QUEUE_NUM).data).value;
    if (most < queues.length) throw new Error(`the back-end has at most ${most} queues`);
    const [ours, theirs] = native.socketPair();
    this.#send(Request.SET_BACKEND_REQ_FD, new Uint8Array(0), [theirs], true);
    closeSync(theirs);
    this.channel = ours;
    this.#send(Request.SET_OWNER, new Uint8Array(0));
    this.features = this.#getFeatures(Request.GET_FEATURES);
    queues.forEach((queue, index) => {
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
      this.#sendFd(Request.SET_VRING_ERR, index, queue.error);
    });
    const shmem = this.#exchange(Request.GET_SHMEM_CONFIG);
    if (ShmemConfig.view(shmem.data).regions !== 1) throw new Error("not one shared memory region");
    this.windowSize = getU64(shmem.data, ShmemConfig.size);
  }

  /** The whole config space, of `size` bytes. */
  getConfig(size: number): DataView {
    const request = new Uint8Array(DeviceConfig.size + size);
    request.set(DeviceConfig.encode({ offset: 0, size }));
    const { payload } = this.#exchange(Request.GET_CONFIG, request);
    if (payload.length !== DeviceConfig.size + size) throw new Error("GET_CONFIG's reply has another size");
    return new DataView(payload.buffer, payload.byteOffset + DeviceConfig.size, size);
  }

  setConfig(size: number): void {
    const payload = new Uint8Array(DeviceConfig.size + size);
    payload.set(DeviceConfig.encode({ offset: 0, size }));
    this.#send(Request.SET_CONFIG, payload, [], true);
  }

  /** The first step of a start. */
  setFeatures(driverFeatures: bigint): void {
    this.#send(Request.SET_FEATURES, Features.encode({ value: driverFeatures | F_PROTOCOL_FEATURES }));
  }

  /** `iommu`: addresses of rings are its own. */
  start(driverFeatures: bigint, table: readonly TableEntry[], iommu?: FakeIommu): void {
    this.setFeatures(driverFeatures);
    this.setMemTable(table);
    this.#queues.forEach((queue, index) => {
      if (!queue.enabled) return;
      this.#send(Request.SET_VRING_NUM, VringState.encode({ index, num: queue.size }));
      this.#send(Request.SET_VRING_BASE, VringState.encode({ index, num: queue.base }));
      const parts = [queue.descriptors, queue.available, queue.used];
      const [descriptors, available, used] = iommu ? parts : parts.map(userAddress);
      this.#send(Request.SET_VRING_ADDR, VringAddr.encode({ index, descriptors, available, used }));
      if (queue.kick < 0) queue.kick = native.eventfd(1);
      this.#sendFd(Request.SET_VRING_KICK, index, queue.kick);
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
    });
    this.#queues.forEach((_, index) => {
      this.#send(Request.SET_VRING_ENABLE, VringState.encode({ index, num: 1 }), [], true);
    });
    for (const { enabled, used } of this.#queues) {
      const page = alignDown(used, PAGE_SIZE);
      if (enabled && iommu?.find(page) !== undefined) iommu.update(page);
    }
  }

  /** The last step of a start, when the device counts as started already. */
  started(): void {
    this.#queues.forEach((queue, index) => {
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
    });
  }

  stop(): void {
    this.#queues.forEach((_, index) => {
      this.#send(Request.SET_VRING_ENABLE, VringState.encode({ index, num: 0 }));
    });
    this.#queues.forEach((queue, index) => {
      if (!queue.enabled) return;
      const reply = this.#exchange(Request.GET_VRING_BASE, VringState.encode({ index }));
      const state = VringState.view(reply.data);
      if (state.index !== index) throw new Error(`GET_VRING_BASE of ${index} was answered for ${state.index}`);
      queue.base = state.num;
      closeSync(queue.kick);
      queue.kick = -1;
    });
  }

  setMemTable(table: readonly TableEntry[]): void {
    const payload = Buffer.concat([
      MemTable.encode({ regions: table.length }),
      ...table.map(({ region }) => MemoryRegion.encode(region)),
    ]);
    const fds = table.map(({ fd }) => fd);
    this.#send(Request.SET_MEM_TABLE, payload, fds, true);
  }

  #getFeatures(request: number): bigint {
    return Features.view(this.#exchange(request).data).value;
  }

  #exchange(request: number, payload: Uint8Array = new Uint8Array(0)): WireMessage {
    this.sent.push(request);
    return this.wire.exchange(request, payload);
  }

  /** A request without a reply of its own; with `acknowledged` it waits for the back-end's acknowledgement. */
  #send(request: number, payload: Uint8Array, fds: readonly number[] = [], acknowledged = false): void {
    this.sent.push(request);
    if (!acknowledged) {
      this.wire.send(request, 0, payload, fds);
      return;
    }
    const reply = this.wire.exchange(request, payload, HeaderFlags.NEED_REPLY, fds);
    if (U64.view(reply.data).value !== 0) throw new Error(`the back-end refused request ${request}`);
  }

  #sendFd(request: number, index: number, fd: number): void {
    this.#send(request, U64.encode({ value: index }), [fd], true);
  }
}
