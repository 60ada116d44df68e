/**
 * A virtio device as a PCI device (VIRTIO 1.2, 4.1): notifications, interrupts, reset, and its life. Whatever the
 * driver does, the worst that comes of it is DEVICE_NEEDS_RESET.
 */
import { inBounds } from "../../shared/bits.js";
import { ProtocolError } from "../../shared/errors.js";
import { Feature, Isr, isDeviceFeature, MAX_QUEUE_SIZE, NO_VECTOR, Status } from "../../shared/spec/virtio.js";
import { type Device, type DeviceContext, DmaError, type Migration, type PciIdentity } from "../device.js";
import { CommonConfig } from "./common-config.js";
import type { VirtioContext, VirtioDevice } from "./device.js";
import { identityOf, MAX_QUEUES, NOTIFY_MULTIPLIER, PLACE, vectorsOf } from "./pci-layout.js";
import { Virtqueue } from "./queue.js";
import { DEFAULT_QUEUE_SIZE, isQueueSize, problemOf } from "./queue-settings.js";
import { decodeState, encodeState } from "./state.js";

/** Offered by every device. ACCESS_PLATFORM: its addresses are those of DMA, and so go through an IOMMU. */
const TRANSPORT_FEATURES =
  Feature.VERSION_1 |
  Feature.ACCESS_PLATFORM |
  Feature.RING_INDIRECT_DESC |
  Feature.RING_EVENT_IDX |
  Feature.RING_RESET;

/** Makes a PCI device of a virtio device. @throws RangeError when the declaration cannot be: an author's bug */
export function virtioDevice(device: VirtioDevice): Device {
  checkDeclaration(device);
  return new Transport(device);
}

class Transport implements Device, VirtioContext {
  readonly identity: PciIdentity;
  readonly registers: NonNullable<Device["registers"]>;
  readonly migration: Migration;
  readonly queues: readonly Virtqueue[];
  features = 0n;
  isLive = false;
  readonly #device: VirtioDevice;
  readonly #common: CommonConfig;
  readonly #queueSizes: readonly number[];
  readonly #offered: bigint;
  #context!: DeviceContext;
  #isr = 0;

  constructor(device: VirtioDevice) {
    this.#device = device;
    this.#offered = TRANSPORT_FEATURES | (device.features ?? 0n);
    this.#queueSizes = device.queues.map(({ size = DEFAULT_QUEUE_SIZE }) => size);
    this.#common = new CommonConfig(
      { features: this.#offered, queueSizes: this.#queueSizes, vectors: vectorsOf(device) },
      {
        accepts: (features) => device.accepts?.(features) ?? true,
        negotiated: (features) => {
          this.features = features;
        },
        driverOk: () => this.#driverOk(),
        reset: () => this.#resetByDriver(),
        enableQueue: (index) => this.#enableQueue(index),
        resetQueue: (index) => void this.#resetQueue(index),
      },
    );
    this.registers = { 0: this.#common.registers };
    this.identity = identityOf(device, {
      read: (offset, size) => this.#readPlace(offset, size),
      write: (offset, size, value) => this.#writePlace(offset, size, value),
    });
    this.queues = this.#makeQueues();
    this.migration = { save: () => this.#save(), load: (state) => this.#load(state) };
  }

  // For the author: VirtioContext.

  get dma() {
    return this.#context.dma;
  }

  get log() {
    return this.#context.log;
  }

  run(job: (signal: AbortSignal) => void | Promise<void>): void {
    this.#context.run(job);
  }

  configChanged(): void {
    this.#common.nextGeneration();
    if (this.isLive) this.#interrupt(Isr.CONFIG, this.#common.configVector);
  }

  needsReset(reason: string): void {
    const { status } = this.#common;
    if (status & Status.DEVICE_NEEDS_RESET) return;
    this.log.warn({ reason }, "the device has to be reset by its driver");
    this.isLive = false;
    for (const queue of this.queues) void queue.stop();
    this.#common.addStatus(Status.DEVICE_NEEDS_RESET);
    if (status & Status.DRIVER_OK) this.#interrupt(Isr.CONFIG, this.#common.configVector);
  }

  // For the framework: Device.

  async start(context: DeviceContext): Promise<void> {
    this.#context = context;
    await this.#device.start?.(this);
  }

  readBar(bar: number, offset: number, size: number): number {
    return bar === 0 ? this.#readStructure(offset, size) : 0;
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar === 0) this.#writeStructure(offset, size, value);
  }

  ioEvent(_bar: number, index: number): void {
    this.#notified(index);
  }

  /** Nothing goes on when this resolves; by the driver VM's VMM, and by the driver. */
  async reset(): Promise<void> {
    this.isLive = false;
    await Promise.all(this.queues.map((queue) => queue.stop()));
    await this.#device.reset?.();
    this.features = 0n;
    this.#takeIsr();
    this.#common.toPowerOn();
    this.#device.config?.reset();
  }

  pause(): void | Promise<void> {
    return this.#device.pause?.();
  }

  async resume(): Promise<void> {
    await this.#device.resume?.();
    // What came meanwhile was not looked at.
    for (const queue of this.queues) queue.notify();
  }

  async close(): Promise<void> {
    await this.#device.close?.();
  }

  inspect(): unknown {
    return {
      features: `0x${this.features.toString(16)}`,
      isLive: this.isLive,
      queues: this.queues.map(({ name, isRunning, positions }, n) => {
        return { name, ...this.#common.queues[n], isRunning, positions };
      }),
      config: this.#device.config?.inspect(),
      device: this.#device.inspect?.(),
    };
  }

  async #save(): Promise<Uint8Array> {
    return encodeState({
      features: this.features,
      isr: this.#isr,
      queues: this.#common.queues,
      positions: this.queues.map(({ isRunning, positions }) => (isRunning ? positions : undefined)),
      config: this.#device.config?.save() ?? new Uint8Array(0),
      own: (await this.#device.save?.()) ?? new Uint8Array(0),
    });
  }

  async #load(bytes: Uint8Array): Promise<void> {
    const { config } = this.#device;
    const state = decodeState(bytes, this.queues.length, config?.size ?? 0);
    const isPossible = state.queues.every((each, n) => {
      return !each.isEnabled || problemOf(each, this.#queueSizes[n]) === undefined;
    });
    if (!isPossible || (state.features & ~this.#offered) !== 0n) throw new RangeError("the state of another device");
    config?.load(state.config);
    await this.#device.load?.(state.own);
    this.features = state.features;
    this.#isr = state.isr;
    this.#common.restore(state.features, state.queues);
    const { status } = this.#common;
    if ((status & Status.DRIVER_OK) === 0 || status & Status.DEVICE_NEEDS_RESET) return;
    this.isLive = true;
    this.#device.ready?.();
    for (const [n, positions] of state.positions.entries()) if (positions) this.#startQueue(n, ...positions);
  }

  // The structures.

  #readStructure(offset: number, size: number): number {
    if (offset === PLACE.ISR) return this.#takeIsr();
    const { config } = this.#device;
    const at = offset - PLACE.DEVICE;
    return config !== undefined && inBounds(at, size, config.size) ? config.read(at, size) : 0;
  }

  #writeStructure(offset: number, size: number, value: number): void {
    if (offset >= PLACE.NOTIFY) {
      this.#notified((offset - PLACE.NOTIFY) / NOTIFY_MULTIPLIER);
      return;
    }
    const { config } = this.#device;
    const at = offset - PLACE.DEVICE;
    if (config !== undefined && inBounds(at, size, config.size)) config.write(at, size, value);
  }

  /** The same with the common structure, by way of config space. */
  #readPlace(offset: number, size: number): number {
    const { registers } = this.#common;
    return inBounds(offset, size, registers.size) ? registers.read(offset, size) : this.#readStructure(offset, size);
  }

  #writePlace(offset: number, size: number, value: number): void {
    const { registers } = this.#common;
    if (inBounds(offset, size, registers.size)) registers.write(offset, size, value);
    else this.#writeStructure(offset, size, value);
  }

  #takeIsr(): number {
    const isr = this.#isr;
    this.#isr = 0;
    if (isr !== 0) this.#context.interrupts.lower();
    return isr;
  }

  #notified(queue: number): void {
    if (this.isLive && !this.#common.queues[queue]?.isResetting) this.queues[queue]?.notify();
  }

  #interrupt(cause: number, vector: number): void {
    const { interrupts } = this.#context;
    if (interrupts.byPin) {
      this.#isr |= cause;
      interrupts.raise(0);
    } else if (vector !== NO_VECTOR) {
      interrupts.trigger(vector);
    }
  }

  // What the driver does.

  #resetByDriver(): void {
    this.reset().catch((error) => this.log.error({ err: error }, "the device failed to reset: an error in its code"));
  }

  #driverOk(): void {
    this.isLive = true;
    this.#device.ready?.();
    for (const [n, { isEnabled }] of this.#common.queues.entries()) if (isEnabled) this.#startQueue(n);
  }

  #enableQueue(index: number): void {
    const problem = problemOf(this.#common.queues[index], this.#queueSizes[index]);
    if (problem !== undefined) {
      this.#common.queueIsDisabled(index);
      this.needsReset(`${this.queues[index].name}: ${problem}`);
    } else if (this.isLive) {
      this.#startQueue(index);
    }
  }

  async #resetQueue(index: number): Promise<void> {
    const before = this.#common.queues[index];
    await this.queues[index].stop();
    // Unless the device was reset meanwhile.
    if (before === this.#common.queues[index]) this.#common.queueIsReset(index);
  }

  #startQueue(index: number, nextAvailable = 0, nextUsed = 0): void {
    const eventIndex = (this.features & Feature.RING_EVENT_IDX) !== 0n;
    const indirect = (this.features & Feature.RING_INDIRECT_DESC) !== 0n;
    const { size, descriptors, available, used } = this.#common.queues[index];
    this.queues[index].start({ size, descriptors, available, used, eventIndex, indirect }, nextAvailable, nextUsed);
  }

  #makeQueues(): Virtqueue[] {
    const context = () => this.#context;
    const owner = {
      get dma() {
        return context().dma;
      },
      run: (job: (signal: AbortSignal) => Promise<void>) => this.#context.run(job),
      interrupt: ({ index }: Virtqueue) => this.#interrupt(Isr.QUEUE, this.#common.queues[index].vector),
      broken: ({ name }: Virtqueue, error: unknown) => this.#broken(name, error),
    };
    return this.#device.queues.map((declaration, index) => new Virtqueue(index, declaration, owner));
  }

  #broken(queue: string, error: unknown): void {
    if (error instanceof ProtocolError || error instanceof DmaError) {
      this.needsReset(`${queue}: ${error.message}`);
    } else {
      this.log.error({ err: error, queue }, "the device failed: an error in its code");
      this.needsReset(`${queue}: an error of the device's`);
    }
  }
}

function checkDeclaration({ id, queues, features = 0n, config }: VirtioDevice): void {
  if (!Number.isInteger(id) || id < 1 || id > 0x3f) throw new RangeError(`there is no virtio device type ${id}`);
  if (queues.length < 1 || queues.length > MAX_QUEUES) throw new RangeError(`${queues.length} queues`);
  for (const { name, size = DEFAULT_QUEUE_SIZE } of queues) {
    if (!isQueueSize(size, MAX_QUEUE_SIZE)) throw new RangeError(`${name} of ${size} entries`);
  }
  for (let bit = 0; bit < 64; bit++) {
    if ((features >> BigInt(bit)) & 1n && !isDeviceFeature(bit)) throw new RangeError(`feature bit ${bit}`);
  }
  if (config !== undefined && config.size > PLACE.NOTIFY - PLACE.DEVICE) {
    throw new RangeError(`a configuration of ${config.size} bytes`);
  }
}
