/**
 * The vhost-user back-end of one virtio-vfio-user device: what stock QEMU's vhost-user-test-device-pci talks to.
 *
 * A table of requests and their handlers. QEMU waits for each answer with its big lock held, so every handler is
 * synchronous, and every request that wants an answer gets one. What the device *does* is the owner's: it hears of
 * queues that start and stop, and of kicks. Left out, since QEMU must not use them with shared memory: memory slots
 * (CONFIGURE_MEM_SLOTS kills QEMU on a reset), logging, in-flight buffers, STATUS and RESET_DEVICE.
 *
 * The other files of this folder: back-end-device.ts, what stands behind a back-end; connection.ts, the messages and
 * their fds; vrings.ts and vring.ts, the virtqueues, and whether they were paused or reset; memory.ts, the device VM's
 * memory, and iotlb.ts and iotlb-misses.ts, where it is behind a virtual IOMMU; window.ts and window-request.ts,
 * driver-VM memory put into the device VM.
 */
import * as native from "../../../native/index.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_QUEUES } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import {
  DeviceConfig,
  Features,
  HeaderFlags,
  IotlbMessage,
  MAX_CONFIG_SIZE,
  ProtocolFeature,
  Request,
  ShmemConfig,
  U64,
  VringAddr,
  VringState,
} from "../../../shared/spec/vhost-user.js";
import { Feature } from "../../../shared/spec/virtio.js";
import { Share } from "../../../shared/turn.js";
import type { DeviceQueue } from "../../../shared/virtqueue/device.js";
import { StateMemory } from "../state/state-memory.js";
import type { BackEndDevice, BackEndOptions, SavedBackEnd } from "./back-end-device.js";
import { AwaitedTable, FEATURES, PROTOCOL_FEATURES } from "./back-end-device.js";
import { Connection, type Message, takeFd } from "./connection.js";
import { IotlbMisses } from "./iotlb-misses.js";
import { type DeviceVmMemory, parseMemTable } from "./memory.js";
import { Vrings } from "./vrings.js";
import type { Window } from "./window.js";

interface Handler {
  /** Bytes that the payload must have; -1 when the handler checks. */
  readonly size: number;
  /** Answers by itself, whether or not NEED_REPLY is set. */
  readonly replies?: boolean;
  readonly run: (backEnd: BackEnd, message: Message) => void;
}

export class BackEnd {
  readonly #connection: Connection;
  readonly #window: Window;
  readonly #memory: DeviceVmMemory;
  readonly #device: BackEndDevice;
  readonly #reportGone: (reason: string) => void;
  readonly #log: Log;
  readonly #vrings: Vrings;
  readonly #misses: IotlbMisses;
  /** Since the device was started, until it is reset. */
  #started = false;
  /** VIRTIO's, and the device's own, that the driver has taken. */
  features = 0n;
  readonly #table = new AwaitedTable(() => this.#state.control.touch());
  #replyAck = false;
  readonly #out = new Uint8Array(DeviceConfig.size + MAX_CONFIG_SIZE);
  readonly #outView = new DataView(this.#out.buffer);
  readonly #state: StateMemory;
  readonly #fd: number;

  /** Serves the connected socket `fd`, which it takes over. */
  constructor(fd: number, options: BackEndOptions) {
    this.#fd = fd;
    this.#state = options.state ?? StateMemory.temporary();
    this.#state.fds.keep(fd);
    this.#window = options.window;
    this.#memory = options.memory;
    this.#device = options.device;
    this.#reportGone = options.gone;
    this.#log = options.log;
    this.#vrings = new Vrings(options.memory, options.log, this.#state.fds);
    this.#misses = new IotlbMisses(options.memory, options.window, options.log, () => this.#memoryChanged());
    const { share = new Share(), fds, resumes = false } = options;
    const message = (received: Message) => this.#handle(received);
    const events = { message, gone: (reason: string) => this.#gone(reason) };
    this.#connection = new Connection(fd, events, { share, fds, memory: this.#state.stream("frontEnd"), resumes });
  }

  save(): SavedBackEnd {
    const negotiated = { replyAck: this.#replyAck, features: String(this.features) };
    const started = { started: this.#started, awaitsTable: this.#table.isAwaited };
    return { socket: this.#state.fds.idOf(this.#fd), ...negotiated, ...started, vrings: this.#vrings.save() };
  }

  /** Goes on where another bridge was, the memory being there. @throws StateError, or another Error */
  restore(saved: SavedBackEnd): void {
    this.#started = saved.started;
    this.#replyAck = saved.replyAck;
    this.features = BigInt(saved.features);
    this.#vrings.restore(saved.vrings);
    if (saved.awaitsTable) this.#table.wait(() => this.#failed());
  }

  /** Whether a queue runs, or would if its memory were here. */
  runs(index: number): boolean {
    return this.#vrings.at(index)?.isToRun === true;
  }

  /** After `restore`, and the window's: behind an IOMMU, what the bridge before knew is asked for again. */
  askForMemory(): void {
    if (!this.#memory.translates || this.#vrings.stopped) return;
    this.#misses.start();
    this.#vrings.memoryChanged(() => {});
  }

  /** Everything that it has to do with is restored, too. */
  goOn(): void {
    this.#connection.goOn();
  }

  /** Rings that ran stand still, and may go on. */
  get isStopped(): boolean {
    return this.#vrings.stopped;
  }

  inspect(): object {
    return {
      running: this.#started && !this.#vrings.stopped,
      eventIndex: this.#vrings.eventIndex,
      memoryRegions: this.#memory.regions,
      iotlb: this.#memory.translates ? this.#misses.inspect() : undefined,
      queues: this.#vrings.inspect(),
    };
  }

  /** Queues that the front-end has mentioned so far; after realization, all. */
  get queues(): number {
    return this.#vrings.length;
  }

  /** The ring of a queue, running or not; undefined when there is no such queue. */
  queue(index: number): DeviceQueue | undefined {
    return this.#vrings.at(index)?.queue;
  }

  /** The eventfd that the driver's notifications of a queue signal, or -1. It stays the back-end's. */
  kickFd(index: number): number {
    const vring = this.#vrings.at(index);
    return vring?.enabled ? vring.kick : -1;
  }

  /** Interrupts the driver for a queue, if it wants that; whether it did. */
  call(index: number): boolean {
    return this.#vrings.at(index)?.call() === true;
  }

  /** Tells the front-end that a queue is broken; QEMU logs it. */
  reportBroken(index: number): void {
    this.#vrings.at(index)?.reportBroken();
  }

  /** Comes to the end of a front-end that has closed its end, when the next one is there already. */
  endIfHungUp(): void {
    if (!this.#connection.isHungUp) return;
    this.#connection.close();
    this.#gone("the front-end closed the connection");
  }

  close(): void {
    this.#connection.close();
    this.#release("the bridge closes");
  }

  #gone(reason: string): void {
    this.#release(reason);
    this.#reportGone(reason);
  }

  #release(reason: string): void {
    this.#table.came();
    this.#state.control.touch();
    this.#reset(reason);
    this.#window.detach(reason);
    this.#vrings.release();
    this.#memory.clear();
  }

  #reset(reason: string): void {
    this.#window.forbid(reason);
    if (!this.#started) return;
    this.#started = false;
    this.#device.reset(reason);
  }

  /** One whose answer nobody saw is handled again. */
  #handle(message: Message): void {
    this.#state.control.hold();
    try {
      this.#handleOnce(message);
    } finally {
      this.#state.control.release();
    }
  }

  #handleOnce(message: Message): void {
    const { request } = message;
    const needsAck = this.#replyAck && (message.flags & HeaderFlags.NEED_REPLY) !== 0;
    const handler = BackEnd.#handlers.get(request);
    let failure = 0;
    try {
      if (!handler) throw new ProtocolError(`vhost-user request ${request} is not supported`);
      if (message.lostFds) {
        this.#log.error({ request }, "out of file descriptors for the front-end: raise LimitNOFILE");
        throw new ProtocolError("file descriptors are missing", Errno.EMFILE);
      }
      if (message.flags & HeaderFlags.REPLY) throw new ProtocolError(`an unexpected reply to request ${request}`);
      if (handler.size >= 0 && message.size !== handler.size) {
        throw new ProtocolError(`vhost-user request ${request} has ${message.size} bytes, not ${handler.size}`);
      }
      handler.run(this, message);
    } catch (error) {
      // The front-end waits for an answer that cannot be given: better that it sees the end of the connection.
      if (error instanceof PeerGone || handler?.replies) throw error;
      this.#log.warn({ request, reason: (error as Error).message }, "refused a vhost-user request");
      failure = 1;
    }
    const acknowledge = () => (needsAck && !handler?.replies ? this.#replyU64(request, failure) : undefined);
    if (request === Request.SET_MEM_TABLE) this.#window.afterTable(this.#memory.regions, acknowledge);
    else acknowledge();
  }

  #reply(request: number, size: number): void {
    this.#state.control.release();
    this.#connection.send(request, HeaderFlags.REPLY, this.#out, size);
  }

  #replyU64(request: number, value: number): void {
    U64.view(this.#outView).value = value;
    this.#reply(request, U64.size);
  }

  #replyFeatures(request: number, value: bigint): void {
    Features.view(this.#outView).value = value;
    this.#reply(request, Features.size);
  }

  #setFeatures(message: Message): void {
    const { value } = Features.view(message.data);
    if ((value & ~FEATURES) !== 0n) throw new ProtocolError(`features 0x${value.toString(16)} were not offered`);
    this.features = value;
    const eventIndex = (value & Feature.RING_EVENT_IDX) !== 0n;
    this.#vrings.eventIndex = eventIndex;
    this.#memory.translates = (value & Feature.ACCESS_PLATFORM) !== 0n;
    this.#log.info({ eventIndex, iommu: this.#memory.translates }, "features negotiated");
    if (!this.#vrings.stopped) return;
    // QEMU begins a start with the features, and sends no memory table when that has too many regions. Then it does not
    // start.
    this.#table.wait(() => this.#failed());
  }

  #failed(): void {
    if (!this.#vrings.stopped) return;
    const reason = "the front-end did not start the device again: its memory has more regions than fit into one table";
    this.#device.failed(reason);
    this.#window.release();
  }

  #setProtocolFeatures(message: Message): void {
    const { value } = Features.view(message.data);
    if ((value & ~PROTOCOL_FEATURES) !== 0n) {
      throw new ProtocolError(`protocol features 0x${value.toString(16)} were not offered`);
    }
    this.#replyAck = (value & ProtocolFeature.REPLY_ACK) !== 0n;
    if ((value & ProtocolFeature.SHMEM) === 0n) {
      this.#log.error(
        "the front-end has no shared memory regions (QEMU 11.1 or newer is needed): no memory can be mapped",
      );
    }
  }

  #setBackendRequestFd(message: Message): void {
    const fd = takeFd(message);
    if (fd < 0) throw new ProtocolError("SET_BACKEND_REQ_FD without an fd");
    if (native.fileStatus(fd).kind !== "socket") {
      closePeerFd(fd);
      throw new ProtocolError("the backend request channel is not a socket");
    }
    this.#window.attach(fd);
  }

  #setMemTable(message: Message): void {
    this.#table.came();
    this.#window.beforeTable();
    const entries = parseMemTable(message);
    try {
      this.#memory.set(entries);
    } finally {
      this.#memoryChanged();
    }
  }

  #memoryChanged(): void {
    this.#vrings.memoryChanged((index) => this.#enabled(index));
    this.#haveResumed();
    this.#device.memoryChanged();
  }

  #setVringEnable(message: Message): void {
    const { index, num } = VringState.view(message.data);
    const vring = this.#vrings.mention(index);
    if (num === 0) {
      this.#pause();
      vring.enabled = false;
      return;
    }
    if (vring.enabled) return;
    const { isStarting } = this.#vrings;
    if (this.#vrings.wasReset()) this.#reset("the device was reset");
    if (isStarting) this.#misses.start();
    this.#vrings.enable(index);
    this.#enabled(index);
    this.#haveResumed();
  }

  #haveResumed(): void {
    if (!this.#vrings.haveResumed()) return;
    this.#device.resumed();
    this.#window.release();
  }

  #setKick(message: Message): void {
    const index = this.#vrings.setFd(message, "kick");
    if (index >= 0) this.#enabled(index);
  }

  #enabled(index: number): void {
    this.#started = true;
    this.#device.enabled(index);
  }

  /** Before a queue stops. */
  #pause(): void {
    if (!this.#vrings.pause()) return;
    this.#misses.stop();
    this.#window.hold();
    this.#device.pausing();
  }

  #getVringBase(message: Message): void {
    this.#pause();
    Object.assign(VringState.view(this.#outView), this.#vrings.stop(message));
    this.#reply(Request.GET_VRING_BASE, VringState.size);
  }

  #getConfig(message: Message): void {
    if (message.size < DeviceConfig.size) throw new ProtocolError("GET_CONFIG without its header");
    const { offset, size } = DeviceConfig.view(message.data);
    if (offset + size > MAX_CONFIG_SIZE) throw new ProtocolError(`GET_CONFIG of ${size} bytes at ${offset}`);
    Object.assign(DeviceConfig.view(this.#outView), { offset, size, flags: 0 });
    this.#out.set(this.#device.config().subarray(offset, offset + size), DeviceConfig.size);
    this.#reply(Request.GET_CONFIG, DeviceConfig.size + size);
  }

  #getShmemConfig(): void {
    Object.assign(ShmemConfig.view(this.#outView), { regions: 1 });
    this.#outView.setUint32(ShmemConfig.offsets.padding, 0);
    U64.view(this.#outView, ShmemConfig.size).value = this.#window.size;
    this.#reply(Request.GET_SHMEM_CONFIG, ShmemConfig.size + U64.size);
  }

  static readonly #handlers = new Map<number, Handler>([
    [Request.GET_FEATURES, { size: 0, replies: true, run: (b) => b.#replyFeatures(Request.GET_FEATURES, FEATURES) }],
    [Request.SET_FEATURES, { size: Features.size, run: (b, m) => b.#setFeatures(m) }],
    [Request.SET_OWNER, { size: 0, run: () => {} }],
    [Request.RESET_OWNER, { size: 0, run: () => {} }],
    [
      Request.GET_PROTOCOL_FEATURES,
      { size: 0, replies: true, run: (b) => b.#replyFeatures(Request.GET_PROTOCOL_FEATURES, PROTOCOL_FEATURES) },
    ],
    [Request.SET_PROTOCOL_FEATURES, { size: Features.size, run: (b, m) => b.#setProtocolFeatures(m) }],
    [Request.GET_QUEUE_NUM, { size: 0, replies: true, run: (b) => b.#replyU64(Request.GET_QUEUE_NUM, MAX_QUEUES) }],
    [Request.SET_BACKEND_REQ_FD, { size: 0, run: (b, m) => b.#setBackendRequestFd(m) }],
    [Request.SET_MEM_TABLE, { size: -1, run: (b, m) => b.#setMemTable(m) }],
    [Request.SET_VRING_NUM, { size: VringState.size, run: (b, m) => b.#vrings.setNum(m) }],
    [Request.SET_VRING_ADDR, { size: VringAddr.size, run: (b, m) => b.#vrings.setAddresses(m) }],
    [Request.SET_VRING_BASE, { size: VringState.size, run: (b, m) => b.#vrings.setBase(m) }],
    [Request.GET_VRING_BASE, { size: VringState.size, replies: true, run: (b, m) => b.#getVringBase(m) }],
    [Request.SET_VRING_KICK, { size: U64.size, run: (b, m) => b.#setKick(m) }],
    [Request.SET_VRING_CALL, { size: U64.size, run: (b, m) => b.#vrings.setFd(m, "call") }],
    [Request.SET_VRING_ERR, { size: U64.size, run: (b, m) => b.#vrings.setFd(m, "error") }],
    [Request.SET_VRING_ENABLE, { size: VringState.size, run: (b, m) => b.#setVringEnable(m) }],
    [Request.IOTLB_MSG, { size: IotlbMessage.size, run: (b, m) => b.#misses.handle(m) }],
    [Request.GET_CONFIG, { size: -1, replies: true, run: (b, m) => b.#getConfig(m) }],
    // All fields are read-only for the driver: a write is ignored.
    [Request.SET_CONFIG, { size: -1, run: () => {} }],
    [Request.GET_SHMEM_CONFIG, { size: 0, replies: true, run: (b) => b.#getShmemConfig() }],
  ]);
}
