/**
 * A virtio-vfio-user device in this process, for the guest library to drive: registers, rings and device configuration
 * as QEMU has them, and a bridge behind them that is the test's. `corrupt` lets any of it lie.
 */
import assert from "node:assert/strict";
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import { inBounds } from "../../shared/bits.js";
import { ABI_VERSION, Config, ConfigStatus, MAGIC } from "../../shared/spec/link.js";
import {
  CommonCfg,
  Feature,
  PCI_DEVICE_ID_BASE,
  RING_ENTRIES_OFFSET,
  RING_INDEX_OFFSET,
  UsedEntry,
} from "../../shared/spec/virtio.js";
import { getUint, setUint } from "../../shared/struct/struct.js";
import { DeviceQueue } from "../../shared/virtqueue/device.js";
import type { RingMemory } from "../../shared/virtqueue/memory.js";
import {
  Layout,
  MSIX_BAR,
  makeConfigSpace,
  NOTIFY_MULTIPLIER,
  REGISTER_BAR,
  WINDOW_BAR,
} from "../fakes/front-end-config.js";
import { registersOver } from "../fakes/front-end-registers.js";
import type { Choices } from "./choices.js";
import { oddNumber, spoil } from "./mutate.js";

export const WINDOW_SIZE = 0x20_0000;
const QUEUES = 12;
const QUEUE_SIZE = 64;
const DOORBELLS = QUEUES - 3;
/** The device's view of memory: each allocation has a stretch of addresses of its own. */
const STRIDE = 0x80_0000;
const FIRST_ADDRESS = 0x4000_0000;

class Memory implements RingMemory {
  readonly pieceSize = STRIDE;
  readonly pieces: Uint8Array<ArrayBuffer>[] = [];

  allocate(bytes: number): DmaMemory {
    const length = Math.ceil(bytes / 4096) * 4096;
    assert.ok(length <= STRIDE && this.pieces.length < 16, `an allocation of ${bytes} bytes`);
    const piece = new Uint8Array(length);
    this.pieces.push(piece);
    return { buffer: piece.buffer, address: FIRST_ADDRESS + (this.pieces.length - 1) * STRIDE, start: 0 };
  }

  locate(address: number, length: number): number {
    const offset = address - FIRST_ADDRESS;
    const piece = this.pieces[Math.floor(offset / STRIDE)];
    return piece && inBounds(offset % STRIDE, length, piece.length) ? offset : -1;
  }

  bytes(piece: number): Uint8Array {
    return this.pieces[piece];
  }
}

interface QueueRegisters {
  size: number;
  enabled: boolean;
  readonly addresses: [number, number, number];
}

export class HostilePci implements PciFunction {
  readonly config: Registers;
  readonly memoryOfVm = new Memory();
  readonly window = new Uint8Array(WINDOW_SIZE);
  /** Queues that were notified, since the bridge looked. */
  readonly notified = new Set<number>();
  /** Calls back into the driver. */
  raise: () => void = () => {};
  readonly #queues: QueueRegisters[] = [];
  readonly #running: DeviceQueue[] = [];
  readonly #common = new DataView(new ArrayBuffer(CommonCfg.size));
  readonly #view = CommonCfg.view(this.#common);
  readonly #device: Uint8Array;
  readonly #lies: Choices | undefined;
  readonly #features: bigint;
  /** Of the lower half, as the driver took them. */
  #driverFeatures = 0;

  /** With `lies`, registers and configuration now and then say something else. */
  constructor(random: Choices, lies: boolean) {
    const space = makeConfigSpace(PCI_DEVICE_ID_BASE + 39, Config.size, WINDOW_SIZE);
    this.#device = Config.encode({
      magic: MAGIC,
      abiVersion: ABI_VERSION,
      doorbells: DOORBELLS,
      status: ConfigStatus.BRIDGE_UP,
      windowSize: WINDOW_SIZE,
      maxMessageSize: 0x10_1000,
    });
    this.#features = Feature.VERSION_1 | (random.chance(60) ? Feature.RING_EVENT_IDX : 0n);
    this.#lies = lies ? random.fork() : undefined;
    if (lies) {
      if (random.chance(50)) spoil(random, this.#device, Config);
      if (random.chance(50))
        for (let n = random.below(4); n > 0; n--) space[random.between(0x34, 0xc0)] = random.below(256);
    }
    this.config = registersOver(
      (offset, width) => readBytes(space, offset, width),
      () => {},
    );
    for (let n = 0; n < QUEUES; n++) this.#queues.push({ size: QUEUE_SIZE, enabled: false, addresses: [0, 0, 0] });
  }

  registers(bar: number): Registers {
    assert.ok(bar >= 0 && bar < 6);
    return registersOver(
      (offset, width) => this.#read(offset, width),
      (offset, width, value) => this.#write(offset, width, value),
    );
  }

  memory(bar: number, offset: number, length: number): ArrayBuffer {
    assert.ok(inBounds(offset, length, this.barSize(bar)), `BAR ${bar} is mapped from ${offset} for ${length} bytes`);
    return offset === 0 && length === WINDOW_SIZE ? this.window.buffer : new ArrayBuffer(length);
  }

  barSize(bar: number): number {
    if (bar === MSIX_BAR) return 4096;
    if (bar === REGISTER_BAR) return Layout.SIZE;
    return bar === WINDOW_BAR ? WINDOW_SIZE : 0;
  }

  allocate(bytes: number): DmaMemory {
    return this.memoryOfVm.allocate(bytes);
  }

  interrupt(callback: () => void): void {
    this.raise = callback;
  }

  close(): void {
    this.raise = () => {};
  }

  /** The device side of a queue; undefined when the driver has not enabled it. */
  queue(index: number): DeviceQueue | undefined {
    return this.#running[index];
  }

  /** Overwrites a part of a used ring, which is the device's to write. */
  corruptUsedRing(random: Choices, index: number): void {
    const queue = this.#queues[index];
    const at = this.memoryOfVm.locate(queue.addresses[2], RING_ENTRIES_OFFSET + UsedEntry.size * queue.size);
    if (!queue.enabled || at < 0) return;
    const bytes = this.memoryOfVm.bytes(Math.floor(at / STRIDE));
    const start = at % STRIDE;
    if (random.chance(70))
      spoil(random, bytes, UsedEntry, start + RING_ENTRIES_OFFSET + UsedEntry.size * random.below(queue.size));
    else {
      const view = new DataView(bytes.buffer, start);
      const event = RING_ENTRIES_OFFSET + UsedEntry.size * queue.size;
      view.setUint16(event, oddNumber(random, 2, view.getUint16(event, true)), true);
      view.setUint16(RING_INDEX_OFFSET, oddNumber(random, 2, view.getUint16(RING_INDEX_OFFSET, true)), true);
    }
  }

  #selected(): QueueRegisters | undefined {
    return this.#queues[this.#view.queueSelect];
  }

  #read(offset: number, width: number): number {
    if (offset >= Layout.DEVICE && offset < Layout.NOTIFY)
      return readBytes(this.#device, offset - Layout.DEVICE, width);
    if (offset + width > CommonCfg.size) return 0;
    const queue = this.#selected();
    const half = this.#view.deviceFeatureSelect;
    Object.assign(this.#view, {
      deviceFeature: Number((this.#features >> BigInt(32 * (half & 1))) & 0xffff_ffffn),
      numQueues: QUEUES,
      queueSize: queue?.size ?? 0,
      queueEnable: queue?.enabled ? 1 : 0,
      queueNotifyOff: this.#view.queueSelect,
    });
    const value = getUint(this.#common, offset, width);
    // Not the status: a device that never resets only costs time.
    if (offset !== CommonCfg.offsets.deviceStatus && this.#lies?.chance(2)) return oddNumber(this.#lies, width, value);
    return value;
  }

  #write(offset: number, width: number, value: number): void {
    if (offset >= Layout.NOTIFY) {
      this.notified.add((offset - Layout.NOTIFY) / NOTIFY_MULTIPLIER);
      return;
    }
    if (offset + width > CommonCfg.size) return;
    setUint(this.#common, offset, width, value);
    const { offsets } = CommonCfg;
    const queue = this.#selected();
    if (offset === offsets.deviceStatus && value === 0) {
      for (const each of this.#queues) Object.assign(each, { size: QUEUE_SIZE, enabled: false });
      this.#running.length = 0;
    } else if (offset === offsets.driverFeature && this.#view.driverFeatureSelect === 0) this.#driverFeatures = value;
    else if (!queue) return;
    else if (offset === offsets.queueSize) queue.size = value;
    else if (offset === offsets.queueEnable && value === 1) this.#enable(queue);
    else if (offset >= offsets.queueDesc) {
      const slot = Math.floor((offset - offsets.queueDesc) / 8);
      const old = queue.addresses[slot];
      const high = (offset - offsets.queueDesc) % 8 === 4;
      queue.addresses[slot] = high ? (old % 2 ** 32) + value * 2 ** 32 : Math.floor(old / 2 ** 32) * 2 ** 32 + value;
    }
  }

  #enable(queue: QueueRegisters): void {
    queue.enabled = true;
    const [descriptors, available, used] = queue.addresses.map((address) => this.memoryOfVm.locate(address, 1));
    const running = new DeviceQueue(this.memoryOfVm);
    const eventIndex = (this.#driverFeatures & Number(Feature.RING_EVENT_IDX)) !== 0;
    running.start({ size: queue.size, descriptors, available, used, base: 0, eventIndex });
    this.#running[this.#view.queueSelect] = running;
  }
}

/** All ones outside, as on a bus. */
function readBytes(bytes: Uint8Array, offset: number, width: number): number {
  if (!inBounds(offset, width, bytes.length)) return 2 ** (8 * width) - 1;
  return getUint(new DataView(bytes.buffer, bytes.byteOffset), offset, width);
}
