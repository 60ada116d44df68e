/**
 * The bridge and its virtio device in the test's own process, straight behind a PciFunction: a test plays the bridge,
 * and a dishonest one as easily as an honest one, down to the rings' bytes.
 */
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import { Errno } from "../../shared/errors.js";
import { MiB, PAGE_SIZE } from "../../shared/limits.js";
import { ABI_VERSION, Config, LinkCommand, MAGIC, Queue } from "../../shared/spec/link.js";
import { Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import { CommonCfg, Feature, PCI_DEVICE_ID_BASE, Status } from "../../shared/spec/virtio.js";
import { DeviceQueue } from "../../shared/virtqueue/device.js";
import { Layout, makeConfigSpace, NOTIFY_MULTIPLIER, REGISTER_BAR, WINDOW_BAR } from "./front-end-config.js";
import { littleEndian, registersOver } from "./front-end-registers.js";

const RAM_ADDRESS = 0x1000_0000;
const RAM_SIZE = 8 * MiB;
const MAX_QUEUE_SIZE = 64;

export interface Received {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly body: Buffer<ArrayBuffer>;
}

interface QueueState {
  size: number;
  enabled: boolean;
  vector: number;
  readonly addresses: DataView;
}

export class PciBridge implements PciFunction {
  readonly window = new ArrayBuffer(16 * MiB);
  readonly ram = new ArrayBuffer(RAM_SIZE);
  /** Change what the device says of itself, before it is looked at. */
  readonly deviceConfig = Config.encode({
    magic: MAGIC,
    abiVersion: ABI_VERSION,
    doorbells: 4,
    windowSize: 16 * MiB,
    maxMessageSize: MiB,
  });
  readonly configBytes = makeConfigSpace(PCI_DEVICE_ID_BASE + 39, Config.size, 16 * MiB);
  offeredFeatures: bigint = Feature.VERSION_1;
  acceptsFeatures = true;
  generation = 0;
  /** Called at each read of the device configuration. */
  onConfigRead: () => void = () => {};
  status = 0;
  readonly notified: number[] = [];
  readonly queues: QueueState[];
  closed = false;
  interrupts = 0;
  /** No interrupt gets through. */
  masked = false;
  readonly #devices = new Map<number, DeviceQueue>();
  readonly #common = CommonCfg.view();
  #features = 0n;
  #allocated = 0;
  #interrupt: (() => void) | undefined;
  #partial = Buffer.alloc(0);
  #nextId = 1;
  readonly #watchers = new Set<() => void>();

  constructor(queues = 7) {
    this.queues = Array.from({ length: queues }, () => ({
      size: MAX_QUEUE_SIZE,
      enabled: false,
      vector: 0xffff,
      addresses: new DataView(new ArrayBuffer(24)),
    }));
  }

  // PciFunction.

  readonly config: Registers = registersOver(
    (offset, width) => littleEndian(this.configBytes, offset, width),
    () => {},
  );

  registers(bar: number): Registers {
    if (bar !== REGISTER_BAR) throw new RangeError(`BAR ${bar} has no registers`);
    return registersOver(
      (offset, width) => this.#read(offset, width),
      (offset, width, value) => this.#write(offset, width, value),
    );
  }

  memory(bar: number, offset: number, length: number): ArrayBuffer {
    if (bar !== WINDOW_BAR || offset !== 0 || length !== this.window.byteLength) throw new RangeError("no such memory");
    return this.window;
  }

  barSize(bar: number): number {
    if (bar === REGISTER_BAR) return Layout.SIZE;
    return bar === WINDOW_BAR ? this.window.byteLength : 0;
  }

  /** Allocates from one buffer, but each time returns one of its own: the views are copied by nobody. */
  allocate(bytes: number): DmaMemory {
    const start = this.#allocated;
    this.#allocated += Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE;
    if (this.#allocated > RAM_SIZE) throw new RangeError("no more memory");
    const memory = { buffer: new ArrayBuffer(bytes), address: RAM_ADDRESS + start, start: 0 };
    this.#pieces.push(memory);
    return memory;
  }

  readonly #pieces: DmaMemory[] = [];

  interrupt(callback: () => void): void {
    this.#interrupt = callback;
  }

  close(): void {
    this.closed = true;
  }

  // The bridge's side.

  /** The memory that holds `address`, and where in it. */
  find(address: number): { buffer: ArrayBuffer; offset: number } {
    for (const { buffer, address: start } of this.#pieces) {
      if (address >= start && address < start + buffer.byteLength) return { buffer, offset: address - start };
    }
    throw new RangeError(`nothing at ${address}`);
  }

  /** The addresses of a queue's descriptor table, available ring and used ring. */
  addresses(index: number): [number, number, number] {
    const { addresses } = this.queues[index];
    return [0, 8, 16].map((at) => Number(addresses.getBigUint64(at, true))) as [number, number, number];
  }

  raiseInterrupt(): void {
    if (this.masked) return;
    this.interrupts++;
    this.#interrupt?.();
  }

  /**
   * Bytes into the driver's buffers, `count` at a time, as they are, and an interrupt if the driver wants one. Says
   * `used` bytes for the last one if given.
   */
  sendRaw(bytes: Uint8Array, used?: number): void {
    const queue = this.#device(Queue.TO_DEVICE);
    for (let done = 0; done < Math.max(1, bytes.length); ) {
      if (!queue.next()) throw new Error("the driver offers no buffer");
      const length = Math.min(bytes.length - done, queue.writable);
      queue.write(0, bytes, done, length);
      done += Math.max(1, length);
      queue.complete(done >= bytes.length ? (used ?? length) : length);
    }
    if (queue.shouldCall()) this.raiseInterrupt();
  }

  send(command: number, body: Uint8Array = new Uint8Array(0), flags = 0): number {
    const id = this.#nextId++;
    this.sendRaw(Buffer.concat([Header.encode({ id, command, size: Header.size + body.length, flags }), body]));
    return id;
  }

  reply({ id, command }: Received, body: Uint8Array = new Uint8Array(0), errno = 0): void {
    const flags = HeaderFlags.TYPE_REPLY | (errno === 0 ? 0 : HeaderFlags.ERROR);
    this.sendRaw(Buffer.concat([Header.encode({ id, command, size: Header.size + body.length, flags, errno }), body]));
  }

  /** The next message from the driver. */
  async receive(): Promise<Received> {
    for (;;) {
      const message = this.poll();
      if (message !== undefined) return message;
      await new Promise<void>((resolve) => {
        this.#watchers.add(resolve);
      });
    }
  }

  /** The next whole message from the driver, if one is there. */
  poll(): Received | undefined {
    const queue = this.#device(Queue.FROM_DEVICE);
    while (queue.next()) {
      const bytes = Buffer.alloc(queue.readable);
      queue.read(0, bytes, 0, bytes.length);
      queue.complete(0);
      this.#partial = Buffer.concat([this.#partial, bytes]);
      const header = Header.view(new DataView(this.#partial.buffer, this.#partial.byteOffset));
      const { id, command, flags, errno, size } = header;
      if (size > this.#partial.length) continue;
      const body = Buffer.from(this.#partial.subarray(Header.size, size));
      this.#partial = Buffer.alloc(0);
      return { id, command, flags, errno, body };
    }
    return undefined;
  }

  /** Sends a command and waits for its reply, whatever else comes. */
  async request(command: number, body: Uint8Array = new Uint8Array(0)): Promise<Received> {
    const id = this.send(command, body);
    for (;;) {
      const message = await this.receive();
      if (message.id === id && (message.flags & HeaderFlags.TYPE_MASK) === HeaderFlags.TYPE_REPLY) return message;
    }
  }

  /** Does not take register memory, and answers HELLO. */
  async welcome(): Promise<Received> {
    let hello = await this.receive();
    if (hello.command === LinkCommand.SHARE_REGISTERS) {
      this.reply(hello, undefined, Errno.EFAULT);
      hello = await this.receive();
    }
    if (hello.command !== LinkCommand.HELLO) throw new Error(`command ${hello.command} came before HELLO`);
    this.reply(hello);
    return hello;
  }

  /** The device's side of a queue that the driver set up. */
  queue(index: number): DeviceQueue {
    return this.#device(index);
  }

  #device(index: number): DeviceQueue {
    const known = this.#devices.get(index);
    if (known !== undefined) return known;
    const eventIndex = (this.#features & Feature.RING_EVENT_IDX) !== 0n;
    const queue = new DeviceQueue({
      pieceSize: RAM_SIZE,
      locate: (address, length) => {
        const { offset } = this.find(address);
        const piece = this.#pieces.findIndex(
          (memory) => address >= memory.address && address + length <= memory.address + memory.buffer.byteLength,
        );
        return piece * RAM_SIZE + offset;
      },
      bytes: (piece) => new Uint8Array(this.#pieces[piece].buffer),
    });
    const [descriptors, available, used] = this.addresses(index).map((address) => {
      const piece = this.#pieces.findIndex(
        (memory) => address >= memory.address && address < memory.address + memory.buffer.byteLength,
      );
      return piece * RAM_SIZE + this.find(address).offset;
    });
    queue.start({ size: this.queues[index].size, descriptors, available, used, base: 0, eventIndex });
    this.#devices.set(index, queue);
    return queue;
  }

  #read(offset: number, width: number): number {
    if (offset >= Layout.DEVICE && offset < Layout.NOTIFY) {
      this.onConfigRead();
      return littleEndian(this.deviceConfig, offset - Layout.DEVICE, width);
    }
    const common = this.#common;
    const queue = this.queues[common.queueSelect];
    const shift = BigInt(32 * common.deviceFeatureSelect);
    switch (offset) {
      case CommonCfg.offsets.deviceFeature:
        return Number((this.offeredFeatures >> shift) & 0xffffffffn);
      case CommonCfg.offsets.numQueues:
        return this.queues.length;
      case CommonCfg.offsets.deviceStatus:
        return this.status;
      case CommonCfg.offsets.configGeneration:
        return this.generation & 0xff;
      case CommonCfg.offsets.queueSize:
        return queue?.size ?? 0;
      case CommonCfg.offsets.queueMsixVector:
        return queue.vector;
      case CommonCfg.offsets.queueNotifyOff:
        return common.queueSelect;
      default:
        return 0;
    }
  }

  #write(offset: number, _width: number, value: number): void {
    if (offset >= Layout.NOTIFY) {
      this.notified.push((offset - Layout.NOTIFY) / NOTIFY_MULTIPLIER);
      for (const watcher of this.#watchers) watcher();
      this.#watchers.clear();
      return;
    }
    const { offsets } = CommonCfg;
    const common = this.#common;
    const queue = this.queues[common.queueSelect];
    if (offset === offsets.deviceFeatureSelect) common.deviceFeatureSelect = value;
    else if (offset === offsets.driverFeatureSelect) common.driverFeatureSelect = value;
    else if (offset === offsets.driverFeature)
      this.#features |= BigInt(value) << BigInt(32 * common.driverFeatureSelect);
    else if (offset === offsets.queueSelect) common.queueSelect = value;
    else if (offset === offsets.deviceStatus) {
      if (value === 0) this.#devices.clear();
      this.status = this.acceptsFeatures ? value : value & ~Status.FEATURES_OK;
    } else if (offset === offsets.queueSize) queue.size = value;
    else if (offset === offsets.queueMsixVector) queue.vector = value;
    else if (offset === offsets.queueEnable) queue.enabled = value === 1;
    else if (offset >= offsets.queueDesc && offset < CommonCfg.size) {
      queue.addresses.setUint32(offset - offsets.queueDesc, value, true);
    }
  }

  get driverFeatures(): bigint {
    return this.#features;
  }
}
