/**
 * A device process as small as can be, on any PciFunction: sets the virtio device up, says HELLO, and answers commands
 * from one BAR's worth of bytes. Tests replace what it does with `onCommand`, and send garbage with `sendRaw`.
 */
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import { ABI_VERSION, Hello, HelloFlags, LinkCommand, LinkFeature, Queue } from "../../shared/spec/link.js";
import {
  Command,
  DeviceInfo,
  Header,
  HeaderFlags,
  Irq,
  IrqInfo,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionInfo,
} from "../../shared/spec/vfio-user.js";
import { CommonCfg, Feature, Status } from "../../shared/spec/virtio.js";
import { setU64 } from "../../shared/struct/struct.js";
import { Layout, NOTIFY_MULTIPLIER, REGISTER_BAR } from "./front-end-config.js";
import { TestRing } from "./front-end-ring.js";

/** A message from the bridge, whole. */
export interface LinkMessage {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly data: DataView;
}

export interface DeviceOptions {
  /** Bytes of each buffer for messages from the bridge, and how many are offered. */
  readonly bufferSize?: number;
  readonly buffers?: number;
  readonly postedRegions?: number;
  readonly msixVectors?: number;
  /** Bytes of each region of the device's own. */
  readonly ownRegions?: readonly number[];
  /** HELLO asks for no driver-VM memory in the window. */
  readonly isolated?: boolean;
  /** Negotiates VIRTIO_F_EVENT_IDX. */
  readonly eventIndex?: boolean;
  /** Negotiates INSPECT, which `onCommand` answers. */
  readonly inspectable?: boolean;
}

const RING_SIZE = 64;
export const BAR_SIZE = 0x4000;

export function message(id: number, command: number, flags: number, body = new Uint8Array(0), errno = 0): Uint8Array {
  const size = Header.size + body.length;
  return Buffer.concat([Header.encode({ id, command, size, flags, errno }), body]);
}

export class TestDevice {
  readonly bar = new Uint8Array(BAR_SIZE);
  /** All that came, in order. */
  readonly received: LinkMessage[] = [];
  /** Replies that nobody waited for: none from a bridge that answers each command once. */
  readonly strays: LinkMessage[] = [];
  /** Returns true when it dealt with a command itself. */
  onCommand: ((message: LinkMessage) => boolean) | undefined;
  readonly rings: TestRing[] = [];
  readonly #registers: Registers;
  readonly #options: Required<DeviceOptions>;
  #in: DmaMemory | undefined;
  #out: DmaMemory | undefined;
  #partial: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #nextId = 0;
  readonly #replies = new Map<number, (message: LinkMessage) => void>();
  readonly #watchers = new Set<() => void>();

  constructor(
    readonly pci: PciFunction,
    options: DeviceOptions = {},
  ) {
    const defaults = {
      bufferSize: 4096,
      buffers: 32,
      postedRegions: 1,
      msixVectors: 4,
      ownRegions: [],
      isolated: false,
      eventIndex: false,
      inspectable: false,
    };
    this.#options = { ...defaults, ...options };
    this.#registers = pci.registers(REGISTER_BAR);
  }

  /** Reset to DRIVER_OK, buffers offered. */
  start(): void {
    const { offsets } = CommonCfg;
    const registers = this.#registers;
    registers.write8(offsets.deviceStatus, 0);
    let status = Status.ACKNOWLEDGE | Status.DRIVER;
    registers.write8(offsets.deviceStatus, status);
    registers.write32(offsets.driverFeatureSelect, 1);
    registers.write32(offsets.deviceFeatureSelect, 1);
    const offered = BigInt(registers.read32(offsets.deviceFeature)) << 32n;
    const upper = Feature.VERSION_1 | (offered & Feature.ACCESS_PLATFORM);
    registers.write32(offsets.driverFeature, Number(upper >> 32n));
    registers.write32(offsets.driverFeatureSelect, 0);
    const { eventIndex, inspectable } = this.#options;
    const lower = (eventIndex ? Feature.RING_EVENT_IDX : 0n) | (inspectable ? LinkFeature.INSPECT : 0n);
    registers.write32(offsets.driverFeature, Number(lower));
    status |= Status.FEATURES_OK;
    registers.write8(offsets.deviceStatus, status);
    if (!(registers.read8(offsets.deviceStatus) & Status.FEATURES_OK)) throw new Error("no FEATURES_OK");
    this.pci.interrupt(() => this.poll());
    const queues = registers.read16(offsets.numQueues);
    this.rings.length = 0;
    for (let index = 0; index < queues; index++) {
      const memory = this.pci.allocate(8192);
      const ring = new TestRing(memory.buffer, memory.address, 0, RING_SIZE, eventIndex);
      this.rings.push(ring);
      registers.write16(offsets.queueSelect, index);
      registers.write16(offsets.queueSize, RING_SIZE);
      registers.write16(offsets.queueMsixVector, 0);
      for (const [offset, at] of [
        [offsets.queueDesc, ring.descriptors],
        [offsets.queueDriver, ring.available],
        [offsets.queueDevice, ring.used],
      ] as const) {
        registers.write32(offset, memory.address + at);
        registers.write32(offset + 4, 0);
      }
      registers.write16(offsets.queueEnable, 1);
    }
    const { buffers, bufferSize } = this.#options;
    this.#in = this.pci.allocate(buffers * bufferSize);
    this.#out = this.pci.allocate(2 * 1024 * 1024);
    this.#partial = new Uint8Array(0);
    registers.write8(offsets.deviceStatus, status | Status.DRIVER_OK);
    for (let i = 0; i < buffers; i++) this.#offer(i);
    this.notify(Queue.TO_DEVICE);
  }

  /** start(), and HELLO; resolves when the bridge has answered it. */
  async startAndGreet(): Promise<LinkMessage> {
    this.start();
    return this.request(LinkCommand.HELLO, this.hello());
  }

  get numRegions(): number {
    return NUM_PCI_REGIONS + this.#options.ownRegions.length;
  }

  hello(): Uint8Array<ArrayBuffer> {
    const { postedRegions, isolated } = this.#options;
    const flags = isolated ? HelloFlags.ISOLATED : 0;
    const regions = this.numRegions;
    const body = new Uint8Array(Hello.size + 8 * regions + 4 * NUM_PCI_IRQS);
    const data = new DataView(body.buffer);
    Object.assign(Hello.view(data), { abiVersion: ABI_VERSION, postedRegions, regions, flags });
    for (let i = 0; i < regions; i++) setU64(data, Hello.size + 8 * i, this.#regionSize(i));
    const irqs = Hello.size + 8 * regions;
    for (let i = 0; i < NUM_PCI_IRQS; i++) data.setUint32(irqs + 4 * i, this.#irqCount(i), true);
    return body;
  }

  /** Kicks a queue. */
  notify(queue: number): void {
    this.#registers.write16(Layout.NOTIFY + queue * NOTIFY_MULTIPLIER, queue);
  }

  ring(doorbell: number): void {
    this.notify(Queue.FIRST_DOORBELL + doorbell);
  }

  /** Sends a command and resolves with the reply. */
  request(command: number, body = new Uint8Array(0)): Promise<LinkMessage> {
    const id = this.#nextId++ & 0xffff;
    return new Promise((resolve) => {
      this.#replies.set(id, resolve);
      this.sendRaw(message(id, command, HeaderFlags.TYPE_COMMAND, body));
    });
  }

  reply(to: LinkMessage, body = new Uint8Array(0), errno = 0): void {
    const flags = HeaderFlags.TYPE_REPLY | (errno ? HeaderFlags.ERROR : 0);
    this.sendRaw(message(to.id, to.command, flags, body, errno));
  }

  /** Puts bytes on queue 1, in buffers of at most `bufferSize`. */
  sendRaw(bytes: Uint8Array, bufferSize = 64 * 1024): void {
    const out = this.#out;
    if (!out) throw new Error("not started");
    const ring = this.rings[Queue.FROM_DEVICE];
    // Waits for nothing: the ring and the memory are larger than what is ever under way.
    const start = this.#outAt + bytes.length > out.buffer.byteLength ? 0 : this.#outAt;
    new Uint8Array(out.buffer).set(bytes, start);
    for (let at = 0; at < bytes.length; at += bufferSize) {
      const length = Math.min(bufferSize, bytes.length - at);
      ring.add(this.#outSlot, { address: out.address + start + at, length });
      this.#outSlot = (this.#outSlot + 1) % RING_SIZE;
    }
    this.#outAt = start + bytes.length;
    if (ring.shouldKick()) this.notify(Queue.FROM_DEVICE);
  }
  #outAt = 0;
  #outSlot = 0;

  /** Takes what the bridge sent; called on each interrupt. */
  poll(): void {
    const ring = this.rings[Queue.TO_DEVICE];
    const memory = this.#in;
    if (!ring || !memory) return;
    let offered = false;
    for (let used = ring.take(); used; used = ring.take()) {
      const { bufferSize } = this.#options;
      const bytes = new Uint8Array(memory.buffer, used.id * bufferSize, used.length);
      this.#partial = Uint8Array.from([...this.#partial, ...bytes]);
      this.#offer(used.id);
      offered = true;
      const header = Header.view(new DataView(this.#partial.buffer));
      if (this.#partial.length < header.size) continue;
      if (this.#partial.length > header.size) throw new Error("two messages in one buffer");
      const { id, command, flags, errno } = header;
      const body = this.#partial.slice(Header.size);
      this.#partial = new Uint8Array(0);
      this.#handle({ id, command, flags, errno, body, data: new DataView(body.buffer) });
    }
    if (offered && ring.shouldKick()) this.notify(Queue.TO_DEVICE);
    for (const watcher of this.#watchers) watcher();
  }

  /** The next chain of a queue that the bridge is done with. */
  used(queue: number): Promise<{ id: number; length: number }> {
    return new Promise((resolve) => {
      const look = () => {
        const found = this.rings[queue].take();
        if (!found) return;
        this.#watchers.delete(look);
        resolve(found);
      };
      this.#watchers.add(look);
      look();
    });
  }

  /** Resolves with the first message, from `after` on, that `wanted` accepts. */
  waitFor(wanted: number | ((message: LinkMessage) => boolean), after = 0): Promise<LinkMessage> {
    const matches = typeof wanted === "number" ? (found: LinkMessage) => found.command === wanted : wanted;
    return new Promise((resolve) => {
      const look = () => {
        const found = this.received.slice(after).find(matches);
        if (!found) return;
        this.#watchers.delete(look);
        resolve(found);
      };
      this.#watchers.add(look);
      look();
    });
  }

  #offer(buffer: number): void {
    const { bufferSize } = this.#options;
    const address = (this.#in?.address ?? 0) + buffer * bufferSize;
    this.rings[Queue.TO_DEVICE].add(buffer, { address, length: bufferSize, writable: true });
  }

  #handle(received: LinkMessage): void {
    if ((received.flags & HeaderFlags.TYPE_MASK) === HeaderFlags.TYPE_REPLY) {
      const resolve = this.#replies.get(received.id);
      this.#replies.delete(received.id);
      if (resolve === undefined) this.strays.push(received);
      else resolve(received);
      return;
    }
    this.received.push(received);
    if (this.onCommand?.(received)) return;
    const reply = (body = new Uint8Array(0)) => {
      if (!(received.flags & HeaderFlags.NO_REPLY)) this.reply(received, body);
    };
    const { data, body } = received;
    const index = body.length >= 12 ? data.getUint32(8, true) : 0;
    switch (received.command) {
      case Command.DEVICE_GET_INFO:
        reply(DeviceInfo.encode({ argsz: 16, flags: 3, numRegions: this.numRegions, numIrqs: NUM_PCI_IRQS }));
        break;
      case Command.DEVICE_GET_REGION_INFO:
        // With flags that the bridge must take away: nothing can be mapped.
        reply(RegionInfo.encode({ argsz: 32, flags: 0xf, index, size: this.#regionSize(index), capOffset: 32 }));
        break;
      case Command.DEVICE_GET_IRQ_INFO:
        reply(IrqInfo.encode({ argsz: 16, flags: 1, index, count: this.#irqCount(index) }));
        break;
      case Command.REGION_READ: {
        const { offset, count } = RegionAccess.view(data);
        reply(Uint8Array.from([...body.slice(0, RegionAccess.size), ...this.bar.slice(offset, offset + count)]));
        break;
      }
      case Command.REGION_WRITE: {
        const { offset } = RegionAccess.view(data);
        this.bar.set(body.subarray(RegionAccess.size), offset);
        reply(body.slice(0, RegionAccess.size));
        break;
      }
      default:
        reply();
    }
  }

  #regionSize(index: number): number {
    if (index >= NUM_PCI_REGIONS) return this.#options.ownRegions[index - NUM_PCI_REGIONS] ?? 0;
    if (index === Region.CONFIG) return 4096;
    return index === Region.BAR0 ? BAR_SIZE : 0;
  }

  #irqCount(index: number): number {
    if (index === Irq.MSIX) return this.#options.msixVectors;
    return index === Irq.INTX || index === Irq.ERR || index === Irq.REQ ? 1 : 0;
  }
}
