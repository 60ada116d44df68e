/**
 * A vhost-user front-end that plays stock QEMU's vhost-user-test-device-pci *and* the hardware that the guest sees: over
 * the real socket, with real shared memory, eventfds and the window. As in QEMU, whoever waits for the back-end waits with
 * the "big lock" held: register accesses are synchronous, and the back-end's own requests are served in between.
 *
 * What would kill stock QEMU 11.1 is recorded in `fatal`, which tests must find undefined.
 */
import { closeSync } from "node:fs";
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import * as native from "../../native/index.js";
import { inBounds, isPowerOfTwo } from "../../shared/bits.js";
import { MiB, PAGE_SIZE } from "../../shared/limits.js";
import {
  BackendRequest,
  DeviceConfig,
  F_PROTOCOL_FEATURES,
  Features,
  HeaderFlags,
  MemoryRegion,
  MemTable,
  ProtocolFeature,
  Request,
  ShmemConfig,
  ShmemMap,
  U64,
  VringAddr,
  VringState,
} from "../../shared/spec/vhost-user.js";
import { CommonCfg, NO_VECTOR, PCI_DEVICE_ID_BASE, Status } from "../../shared/spec/virtio.js";
import { getU64 } from "../../shared/struct/struct.js";
import { Layout, MSIX_BAR, makeConfigSpace, REGISTER_BAR, WINDOW_BAR } from "./front-end-config.js";
import { bytesAsRegisters, VirtioRegisters } from "./front-end-registers.js";
import { FakeWindow, type Mapping } from "./front-end-window.js";
import { Wire, type WireMessage } from "./front-end-wire.js";

const MAX_REGIONS = 8;
/** What QEMU 11.1 asks for; not CONFIGURE_MEM_SLOTS, since what offers it kills QEMU. */
const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.BACKEND_SEND_FD |
  ProtocolFeature.SHMEM;
const RAM_USER_ADDRESS = 0x7f12_0000_0000;
const WINDOW_USER_ADDRESS = 0x7e00_0000_0000;
const WINDOW_GUEST_ADDRESS = 0x40_0000_0000;
/** RAM is two regions, as in a PC: below the legacy hole, and from 1 MiB on. */
const LOW_RAM = 0xa0000;
const HIGH_RAM = 0x10_0000;
const BUS_MASTER = 4;

export interface FrontEndOptions {
  /** num_vqs: all queues, doorbells included. */
  readonly queues?: number;
  readonly queueSize?: number;
  readonly configSize?: number;
  readonly ramSize?: number;
  readonly virtioId?: number;
}

class Queue {
  size: number;
  vector = NO_VECTOR;
  enabled = false;
  descriptors = 0;
  available = 0;
  used = 0;
  base = 0;
  kick = -1;
  /** The guest notifier; made at realization. */
  readonly call = native.eventfd(0);
  readonly error = native.eventfd(0);
  poll: native.Poll | undefined;
  constructor(size: number) {
    this.size = size;
  }
}

export class FrontEnd implements PciFunction {
  /** What killed QEMU, if anything did. */
  fatal: string | undefined;
  /** What QEMU wrote to its stderr. */
  readonly complaints: string[] = [];
  /** Requests that were sent so far, by number; for assertions on their order. */
  readonly sent: number[] = [];
  readonly windowSize: number;
  readonly config: Registers;
  /** Answers no backend request while set: QEMU's main loop is busy elsewhere. */
  busy = false;
  readonly features: bigint;
  readonly protocolFeatures: bigint;

  readonly #wire: Wire;
  readonly #channel: Wire;
  readonly #channelPoll: native.Poll;
  readonly #options: Required<FrontEndOptions>;
  readonly #queues: Queue[];
  readonly #ram: number;
  #ramUsed = HIGH_RAM;
  readonly #window: FakeWindow;
  readonly #configSpace: Uint8Array<ArrayBuffer>;
  readonly #commonData = new DataView(new ArrayBuffer(CommonCfg.size));
  readonly #common = CommonCfg.view(this.#commonData);
  readonly #registers: Registers;
  #status = 0;
  #driverFeatures = 0n;
  #generation = 0;
  #started = false;
  #interrupt: (() => void) | undefined;
  #open = true;

  /** Connects to the back-end at `path` and realizes the device. The back-end has to be another process. */
  constructor(path: string, options: FrontEndOptions = {}) {
    this.#options = { queues: 8, queueSize: 64, configSize: 80, ramSize: 64 * MiB, virtioId: 39, ...options };
    const { queues, queueSize, configSize, ramSize, virtioId } = this.#options;
    this.#ram = native.createMemory("device-vm-ram", ramSize, false);
    this.#queues = Array.from({ length: queues }, () => new Queue(queueSize));
    this.#wire = new Wire(native.connect(path));

    this.#features(Request.GET_FEATURES);
    this.protocolFeatures = this.#features(Request.GET_PROTOCOL_FEATURES);
    if (this.protocolFeatures & ProtocolFeature.CONFIGURE_MEM_SLOTS) this.#die("CONFIGURE_MEM_SLOTS was offered");
    if (!(this.protocolFeatures & ProtocolFeature.CONFIG)) throw new Error("the back-end has no config space");
    const agreed = this.protocolFeatures & PROTOCOL_FEATURES;
    this.#send(Request.SET_PROTOCOL_FEATURES, Features.encode({ value: agreed }));
    const most = U64.view(this.#exchange(Request.GET_QUEUE_NUM).data).value;
    if (most < queues) throw new Error(`the back-end has at most ${most} queues`);
    const [ours, theirs] = native.socketPair();
    this.#send(Request.SET_BACKEND_REQ_FD, new Uint8Array(0), [theirs], true);
    closeSync(theirs);
    this.#channel = new Wire(ours);
    this.#send(Request.SET_OWNER, new Uint8Array(0));
    this.features = this.#features(Request.GET_FEATURES);
    this.#queues.forEach((queue, index) => {
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
      this.#sendFd(Request.SET_VRING_ERR, index, queue.error);
    });
    const shmem = this.#exchange(Request.GET_SHMEM_CONFIG);
    if (ShmemConfig.view(shmem.data).regions !== 1) throw new Error("not one shared memory region");
    this.windowSize = getU64(shmem.data, ShmemConfig.size);
    if (!isPowerOfTwo(this.windowSize) || this.windowSize % PAGE_SIZE !== 0) {
      this.#die("the shared memory regions' total size is not a power of two");
    }
    this.#window = new FakeWindow(this.windowSize, (reason) => this.#die(reason));

    this.#configSpace = makeConfigSpace(PCI_DEVICE_ID_BASE + virtioId, configSize, this.windowSize);
    this.config = bytesAsRegisters(this.#configSpace, (offset) => this.#configWritten(offset));
    this.#registers = new VirtioRegisters(this);
    this.#channelPoll = new native.Poll(ours, () => this.#serveChannel());
    this.#channelPoll.start(native.POLL_READABLE);
    this.#queues.forEach((queue, index) => {
      queue.poll = new native.Poll(queue.call, () => {
        if (native.eventfdRead(queue.call) > 0 && this.#queues[index].vector === 0) this.#interrupt?.();
      });
      queue.poll.start(native.POLL_READABLE);
    });
  }

  /** What is mapped in the window now. */
  get maps(): readonly Mapping[] {
    return this.#window.maps;
  }

  get started(): boolean {
    return this.#started;
  }

  // PciFunction.

  registers(bar: number): Registers {
    if (bar !== REGISTER_BAR) throw new RangeError(`BAR ${bar} has no registers`);
    return this.#registers;
  }

  memory(bar: number, offset: number, length: number): ArrayBuffer {
    if (bar !== WINDOW_BAR) throw new RangeError(`BAR ${bar} is no memory`);
    return this.#window.piece(offset, length);
  }

  barSize(bar: number): number {
    if (bar === MSIX_BAR) return PAGE_SIZE;
    if (bar === REGISTER_BAR) return Layout.SIZE;
    return bar === WINDOW_BAR ? this.windowSize : 0;
  }

  allocate(bytes: number): DmaMemory {
    const length = Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE;
    const address = this.#ramUsed;
    if (!inBounds(address, length, this.#options.ramSize)) throw new RangeError("the device VM has no more memory");
    this.#ramUsed += length;
    return { buffer: native.mapFile(this.#ram, address, length, native.PROT_READ | native.PROT_WRITE), address };
  }

  interrupt(callback: () => void): void {
    this.#interrupt = callback;
  }

  /** As when the guest closes its VFIO file: the function is reset. */
  close(): void {
    if (!this.#open) return;
    this.#interrupt = undefined;
    this.reset();
  }

  // The machine.

  /** The device VM ends: QEMU exits. */
  quit(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#channelPoll.close();
    this.#channel.close();
    this.#wire.close();
    for (const queue of this.#queues) {
      queue.poll?.close();
      closeSync(queue.call);
      closeSync(queue.error);
      if (queue.kick >= 0) closeSync(queue.kick);
    }
    this.#window.release();
    closeSync(this.#ram);
  }

  /** Whether the back-end said that a queue is broken, since this was last asked. */
  queueError(index: number): boolean {
    return native.eventfdRead(this.#queues[index].error) > 0;
  }

  /** Status 0, FLR, system_reset. */
  reset(): void {
    this.#stop();
    this.#status = 0;
    this.#driverFeatures = 0n;
    this.#window.clear();
    for (const queue of this.#queues) {
      Object.assign(queue, { size: this.#options.queueSize, vector: NO_VECTOR, enabled: false, base: 0 });
      Object.assign(queue, { descriptors: 0, available: 0, used: 0 });
    }
  }

  /** The eventfd that a notification of the queue signals, while the device runs; -1 otherwise. */
  kickFd(index: number): number {
    return this.#queues[index].kick;
  }

  /** A change of the guest's memory map, which has nothing to do with us, brings a new table all the same. */
  memoryChanged(): void {
    this.#commit();
  }

  /** The virtio device status. */
  get status(): number {
    return this.#status;
  }

  /** Sends any request, as no QEMU would; for hostile tests. */
  get wire(): Wire {
    return this.#wire;
  }

  // What VirtioRegisters calls.

  readDeviceConfig(offset: number, width: number): number {
    const { configSize } = this.#options;
    const request = new Uint8Array(DeviceConfig.size + configSize);
    request.set(DeviceConfig.encode({ offset: 0, size: configSize }));
    let reply: WireMessage;
    try {
      reply = this.#exchange(Request.GET_CONFIG, request);
    } catch (error) {
      this.#die("the config space could not be read");
      throw error;
    }
    if (reply.payload.length !== DeviceConfig.size + configSize) throw new Error("GET_CONFIG's reply has another size");
    if (!inBounds(offset, width, configSize)) return width === 4 ? 0xffffffff : (1 << (8 * width)) - 1;
    const at = DeviceConfig.size + offset;
    if (width === 1) return reply.data.getUint8(at);
    return width === 2 ? reply.data.getUint16(at, true) : reply.data.getUint32(at, true);
  }

  writeDeviceConfig(): void {
    const { configSize } = this.#options;
    const payload = new Uint8Array(DeviceConfig.size + configSize);
    payload.set(DeviceConfig.encode({ offset: 0, size: configSize }));
    this.#send(Request.SET_CONFIG, payload, [], true);
  }

  notify(index: number): void {
    const queue = this.#queues[index];
    if (queue && queue.kick >= 0) native.eventfdWrite(queue.kick);
  }

  readCommon(offset: number, width: number): number {
    const common = this.#common;
    const queue = this.#queues[common.queueSelect];
    const select = common.deviceFeatureSelect;
    const offered = this.features & ~F_PROTOCOL_FEATURES;
    Object.assign(common, {
      deviceFeature: select < 2 ? Number((offered >> BigInt(32 * select)) & 0xffffffffn) : 0,
      numQueues: this.#queues.length,
      deviceStatus: this.#status,
      configGeneration: this.#generation & 0xff,
      queueSize: queue?.size ?? 0,
      queueMsixVector: queue?.vector ?? NO_VECTOR,
      queueEnable: queue?.enabled ? 1 : 0,
      queueNotifyOff: common.queueSelect,
      queueDesc: queue?.descriptors ?? 0,
      queueDriver: queue?.available ?? 0,
      queueDevice: queue?.used ?? 0,
    });
    const data = this.#commonData;
    if (width === 1) return data.getUint8(offset);
    return width === 2 ? data.getUint16(offset, true) : data.getUint32(offset, true);
  }

  writeCommon(offset: number, width: number, value: number): void {
    const { offsets } = CommonCfg;
    const common = this.#common;
    const queue = this.#queues[common.queueSelect];
    const half = (old: number, high: boolean) =>
      high ? (old % 2 ** 32) + value * 2 ** 32 : Math.floor(old / 2 ** 32) * 2 ** 32 + value;
    const expect = (bytes: number) => {
      if (width !== bytes) this.complaints.push(`a write of ${width} bytes to the register at ${offset}`);
    };
    if (offset === offsets.deviceFeatureSelect) common.deviceFeatureSelect = value;
    else if (offset === offsets.driverFeatureSelect) common.driverFeatureSelect = value;
    else if (offset === offsets.driverFeature) {
      const shift = BigInt(32 * common.driverFeatureSelect);
      this.#driverFeatures = (this.#driverFeatures & ~(0xffffffffn << shift)) | (BigInt(value) << shift);
    } else if (offset === offsets.configMsixVector) common.configMsixVector = value;
    else if (offset === offsets.queueSelect) common.queueSelect = value;
    else if (offset === offsets.deviceStatus) {
      expect(1);
      this.#setStatus(value);
    } else if (!queue) return;
    else if (offset === offsets.queueSize) queue.size = value;
    else if (offset === offsets.queueMsixVector) queue.vector = value === 0 ? 0 : NO_VECTOR;
    else if (offset === offsets.queueEnable) queue.enabled = value === 1;
    else {
      expect(4);
      for (const [name, at] of [
        ["descriptors", offsets.queueDesc],
        ["available", offsets.queueDriver],
        ["used", offsets.queueDevice],
      ] as const) {
        if (offset === at || offset === at + 4) queue[name] = half(queue[name], offset !== at);
      }
    }
  }

  // vhost.

  #setStatus(value: number): void {
    if (value === 0) {
      this.reset();
      return;
    }
    // A driver that asks for what was not offered does not get FEATURES_OK.
    if (value & Status.FEATURES_OK && this.#driverFeatures & ~this.features) value &= ~Status.FEATURES_OK;
    this.#status = value;
    if (value & Status.DRIVER_OK) this.#start();
    else this.#stop();
  }

  #start(): void {
    if (this.#started) return;
    this.#send(Request.SET_FEATURES, Features.encode({ value: this.#driverFeatures | F_PROTOCOL_FEATURES }));
    this.#setMemTable();
    this.#queues.forEach((queue, index) => {
      if (!queue.enabled) return;
      this.#send(Request.SET_VRING_NUM, VringState.encode({ index, num: queue.size }));
      this.#send(Request.SET_VRING_BASE, VringState.encode({ index, num: queue.base }));
      const [descriptors, available, used] = [queue.descriptors, queue.available, queue.used].map(userAddress);
      this.#send(Request.SET_VRING_ADDR, VringAddr.encode({ index, descriptors, available, used }));
      if (queue.kick < 0) queue.kick = native.eventfd(1);
      this.#sendFd(Request.SET_VRING_KICK, index, queue.kick);
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
    });
    this.#queues.forEach((_, index) => {
      this.#send(Request.SET_VRING_ENABLE, VringState.encode({ index, num: 1 }), [], true);
    });
    this.#started = true;
    this.#queues.forEach((queue, index) => {
      this.#sendFd(Request.SET_VRING_CALL, index, queue.call);
    });
  }

  #stop(): void {
    if (!this.#started) return;
    this.#started = false;
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

  /** QEMU commits a change of memory: the back-end gets a new table, if there is room in it. */
  #commit(): void {
    if (!this.#started) return;
    if (2 + this.maps.length > MAX_REGIONS) {
      this.complaints.push("No buffer space available");
      return;
    }
    this.#setMemTable();
  }

  #setMemTable(): void {
    const { ramSize } = this.#options;
    const ram = (guestAddress: number, size: number) => ({
      region: { guestAddress, size, userAddress: userAddress(guestAddress), mmapOffset: guestAddress },
      fd: this.#ram,
    });
    const regions = [
      ram(0, LOW_RAM),
      ram(HIGH_RAM, ramSize - HIGH_RAM),
      ...this.maps.map(({ offset, length, fd, fdOffset }) => ({
        region: {
          guestAddress: WINDOW_GUEST_ADDRESS + offset,
          size: length,
          userAddress: WINDOW_USER_ADDRESS + offset,
          mmapOffset: fdOffset,
        },
        fd,
      })),
    ];
    const payload = Buffer.concat([
      MemTable.encode({ regions: regions.length }),
      ...regions.map(({ region }) => MemoryRegion.encode(region)),
    ]);
    const fds = regions.map(({ fd }) => fd);
    this.#send(Request.SET_MEM_TABLE, payload, fds, true);
  }

  // The back-end's requests.

  #serveChannel(): void {
    if (this.busy || !this.#open) return;
    let message: WireMessage;
    try {
      message = this.#channel.receive("a backend request");
    } catch {
      // The back-end closed it.
      this.#channelPoll.stop();
      return;
    }
    try {
      this.#backendRequest(message);
    } finally {
      for (const fd of message.fds) closeSync(fd);
    }
  }

  #backendRequest(message: WireMessage): void {
    const { request, flags, payload, data, fds } = message;
    const name = Object.entries(BackendRequest).find(([, number]) => number === request)?.[0] ?? String(request);
    if (!this.#started) {
      this.#die(`the backend request ${name} came while the device was stopped`);
      return;
    }
    let refusal: string | undefined;
    let work: (() => void) | undefined;
    if (request === BackendRequest.CONFIG_CHANGE_MSG) {
      this.#generation++;
      if (this.#common.configMsixVector === 0) this.#interrupt?.();
    } else if (payload.length !== ShmemMap.size) {
      refusal = `${name} of ${payload.length} bytes`;
    } else {
      const { shmid, fdOffset, shmOffset: offset, length } = ShmemMap.view(data);
      if (shmid !== 0) refusal = `shared memory region ${shmid} not found`;
      else if (!inBounds(offset, length, this.windowSize)) refusal = "Bad offset/len";
      else if (request === BackendRequest.SHMEM_MAP) {
        refusal = this.#window.refuses(offset, length, fdOffset, fds);
        work = () => this.#window.map(offset, length, fdOffset, fds[0]);
      } else if (request === BackendRequest.SHMEM_UNMAP) {
        const index = this.maps.findIndex((map) => map.offset === offset && map.length === length);
        if (index < 0) refusal = "Shared memory mapping not found";
        work = () => this.#window.unmap(index);
      } else refusal = `unexpected message ${request}`;
    }
    if (refusal !== undefined) this.complaints.push(refusal);
    // The reply goes out before the memory changes.
    if (flags & HeaderFlags.NEED_REPLY) {
      this.#channel.send(request, HeaderFlags.REPLY, U64.encode({ value: refusal === undefined ? 0 : 1 }));
    }
    if (refusal === undefined) {
      work?.();
      if (work) this.#commit();
    }
  }

  #configWritten(offset: number): void {
    // Without bus mastering a virtio device stops.
    if (offset === 4 && !(this.#configSpace[4] & BUS_MASTER) && this.#status & Status.DRIVER_OK) {
      this.#status &= ~Status.DRIVER_OK;
      this.#stop();
    }
  }

  #die(reason: string): void {
    this.fatal ??= reason;
  }

  #features(request: number): bigint {
    return Features.view(this.#exchange(request).data).value;
  }

  #exchange(request: number, payload: Uint8Array = new Uint8Array(0)): WireMessage {
    this.sent.push(request);
    return this.#wire.exchange(request, payload);
  }

  /** A request without a reply of its own; with `acknowledged` it waits for the back-end's acknowledgement. */
  #send(request: number, payload: Uint8Array, fds: readonly number[] = [], acknowledged = false): void {
    this.sent.push(request);
    if (!acknowledged) {
      this.#wire.send(request, 0, payload, fds);
      return;
    }
    const reply = this.#wire.exchange(request, payload, HeaderFlags.NEED_REPLY, fds);
    if (U64.view(reply.data).value !== 0) throw new Error(`the back-end refused request ${request}`);
  }

  #sendFd(request: number, index: number, fd: number): void {
    this.#send(request, U64.encode({ value: index }), [fd], true);
  }
}

const userAddress = (guestAddress: number) => RAM_USER_ADDRESS + guestAddress;
