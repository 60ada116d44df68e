/**
 * A vhost-user front-end that plays stock QEMU's vhost-user-test-device-pci *and* the hardware that the guest sees:
 * over the real socket, with real shared memory, eventfds and the window. As in QEMU, whoever waits for the back-end
 * waits with the "big lock" held: register accesses are synchronous, and the back-end's own requests are served in
 * between.
 *
 * What would kill stock QEMU 11.1 is recorded in `fatal`, which tests must find undefined.
 *
 * Its parts: front-end-wire, front-end-vhost and front-end-channel speak vhost-user, front-end-iommu is the guest's
 * IOMMU, front-end-window keeps the shared memory region; front-end-registers, front-end-config and front-end-common
 * are the guest's view, front-end-ring a queue as its driver has it, front-end-device a device process on it,
 * front-end-bridge the real bridge in front. Devices for tests: register-device, copy-device and migratable-device,
 * sharing-device, regions-device, every-kind-device. pci-bridge plays the bridge instead.
 */
import { closeSync } from "node:fs";
import type { DmaMemory, PciFunction, Registers } from "../../guest/vfio/pci-function.js";
import * as native from "../../native/index.js";
import { inBounds, isPowerOfTwo } from "../../shared/bits.js";
import { MiB, PAGE_SIZE } from "../../shared/limits.js";
import { Queue } from "../../shared/spec/link.js";
import { ProtocolFeature } from "../../shared/spec/vhost-user.js";
import { Feature, PCI_DEVICE_ID_BASE, Status } from "../../shared/spec/virtio.js";
import { getUint } from "../../shared/struct/struct.js";
import { BackendChannel } from "./front-end-channel.js";
import { CommonRegisters, VirtQueue } from "./front-end-common.js";
import { Layout, MSIX_BAR, makeConfigSpace, REGISTER_BAR, WINDOW_BAR } from "./front-end-config.js";
import { FakeIommu } from "./front-end-iommu.js";
import { bytesAsRegisters, VirtioRegisters } from "./front-end-registers.js";
import { HIGH_RAM, ramRegions, type TableEntry, Vhost } from "./front-end-vhost.js";
import { FakeWindow, type Mapping } from "./front-end-window.js";
import type { Wire } from "./front-end-wire.js";

const MAX_REGIONS = 8;
const WINDOW_USER_ADDRESS = 0x7e00_0000_0000;
const WINDOW_GUEST_ADDRESS = 0x40_0000_0000;
const BUS_MASTER = 4;
const IOVA_BASE = 0x8000_0000;

export interface FrontEndOptions {
  /** num_vqs: all queues, doorbells included. */
  readonly queues?: number;
  readonly queueSize?: number;
  readonly configSize?: number;
  readonly ramSize?: number;
  readonly virtioId?: number;
  /** QEMU's property event_idx: whether VIRTIO_F_EVENT_IDX is passed on to the guest. */
  readonly eventIndex?: boolean;
  /** iommu_platform=on, and a virtual IOMMU: what is allocated has addresses of its own there, page by page. */
  readonly iommu?: boolean;
}

export class FrontEnd implements PciFunction {
  /** What killed QEMU, if anything did. */
  fatal: string | undefined;
  /** What QEMU wrote to its stderr. */
  readonly complaints: string[] = [];
  readonly config: Registers;
  readonly common: CommonRegisters;
  readonly queues: readonly VirtQueue[];
  /** The eventfd that a notification of each queue signals, while the device runs; -1 otherwise. */
  readonly kicks: Int32Array;
  readonly window: FakeWindow;
  readonly iommu: FakeIommu | undefined;
  translated = false;
  /** Answers no backend request while set: QEMU's main loop is busy elsewhere. */
  busy = false;
  /** Counts changes of the config space, as the guest sees it. */
  generation = 0;

  readonly #vhost: Vhost;
  readonly #channel: BackendChannel;
  readonly #options: Required<FrontEndOptions>;
  readonly #ram: number;
  #ramUsed = HIGH_RAM;
  /** Memory in front of it was used before. */
  #ramDirty = 0;
  readonly #configSpace: Uint8Array<ArrayBuffer>;
  readonly #registers: Registers;
  #status = 0;
  #started = false;
  /** The last start failed; QEMU has the device's end of the channel all the same. */
  #startFailed = false;
  #isDecoding = true;
  #interrupt: (() => void) | undefined;
  #open = true;
  readonly #reservations: native.Reservation[] = [];

  /** Connects to the back-end at `path` and realizes the device. The back-end has to be another process. */
  constructor(path: string, options: FrontEndOptions = {}) {
    this.#options = {
      queues: 8,
      queueSize: 64,
      configSize: 80,
      ramSize: 64 * MiB,
      virtioId: 39,
      eventIndex: true,
      iommu: false,
      ...options,
    };
    const { queues, queueSize, configSize, ramSize, virtioId } = this.#options;
    this.#ram = native.createMemory("device-vm-ram", ramSize, false);
    this.kicks = new Int32Array(queues).fill(-1);
    this.queues = Array.from({ length: queues }, (_, index) => new VirtQueue(queueSize, this.kicks, index));
    this.#vhost = new Vhost(path, this.queues);
    if (this.#options.iommu) this.iommu = new FakeIommu(this.wire);
    const { windowSize } = this;
    if (this.protocolFeatures & ProtocolFeature.CONFIGURE_MEM_SLOTS) this.die("CONFIGURE_MEM_SLOTS was offered");
    if (!isPowerOfTwo(windowSize) || windowSize % PAGE_SIZE !== 0) {
      this.die("the shared memory regions' total size is not a power of two");
    }
    this.window = new FakeWindow(windowSize, (reason) => this.die(reason));
    this.#configSpace = makeConfigSpace(PCI_DEVICE_ID_BASE + virtioId, configSize, windowSize);
    this.config = bytesAsRegisters(this.#configSpace, (offset) => this.#configWritten(offset));
    this.common = new CommonRegisters(this);
    this.#registers = new VirtioRegisters(this);
    this.#channel = new BackendChannel(this.#vhost.channel, this);
    for (const queue of this.queues) this.#watch(queue, "eventfd");
  }

  get features(): bigint {
    const { eventIndex, iommu } = this.#options;
    const absent = (eventIndex ? 0n : Feature.RING_EVENT_IDX) | (iommu ? 0n : Feature.ACCESS_PLATFORM);
    return this.#vhost.features & ~absent;
  }

  get protocolFeatures(): bigint {
    return this.#vhost.protocolFeatures;
  }

  get windowSize(): number {
    return this.#vhost.windowSize;
  }

  /** Requests that were sent so far, by number; for assertions on their order. */
  get sent(): number[] {
    return this.#vhost.sent;
  }

  /** Sends any request, as no QEMU would; for hostile tests. */
  get wire(): Wire {
    return this.#vhost.wire;
  }

  /** What is mapped in the window now. */
  get maps(): readonly Mapping[] {
    return this.window.maps;
  }

  get started(): boolean {
    return this.#started;
  }

  /** Whether a request of the back-end's is one that QEMU survives. */
  get takesRequests(): boolean {
    return this.#started || this.#startFailed;
  }

  // PciFunction.

  registers(bar: number): Registers {
    if (bar !== REGISTER_BAR) throw new RangeError(`BAR ${bar} has no registers`);
    return this.#registers;
  }

  memory(bar: number, offset: number, length: number): ArrayBuffer {
    if (bar !== WINDOW_BAR) throw new RangeError(`BAR ${bar} is no memory`);
    return this.window.piece(offset, length);
  }

  barSize(bar: number): number {
    if (bar === MSIX_BAR) return PAGE_SIZE;
    if (bar === REGISTER_BAR) return Layout.SIZE;
    return bar === WINDOW_BAR ? this.windowSize : 0;
  }

  /** The device process that allocated memory has ended. */
  freeAll(): void {
    this.#ramDirty = Math.max(this.#ramDirty, this.#ramUsed);
    this.#ramUsed = HIGH_RAM;
  }

  allocate(bytes: number): DmaMemory {
    const length = Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE;
    const address = this.#ramUsed;
    if (!inBounds(address, length, this.#options.ramSize)) throw new RangeError("the device VM has no more memory");
    this.#ramUsed += length;
    if (this.iommu) return this.#allocateByPages(this.iommu, address, length);
    const buffer = native.mapFile(this.#ram, address, length, native.PROT_READ | native.PROT_WRITE);
    new Uint8Array(buffer, 0, Math.min(length, Math.max(0, this.#ramDirty - address))).fill(0);
    return { buffer, address, start: 0 };
  }

  /** Pages in the wrong order, which their addresses in the IOMMU put right. */
  #allocateByPages(iommu: FakeIommu, address: number, length: number): DmaMemory {
    const iova = IOVA_BASE + address;
    const reservation = new native.Reservation(length, length);
    for (let at = 0; at < length; at += PAGE_SIZE) {
      const page = address + length - PAGE_SIZE - at;
      iommu.map(iova + at, page);
      reservation.map(at, PAGE_SIZE, this.#ram, page, native.PROT_READ | native.PROT_WRITE);
    }
    const buffer = reservation.piece(0);
    this.#reservations.push(reservation);
    return { buffer, address: iova, start: 0 };
  }

  interrupt(callback: () => void, task?: native.PollTask): void {
    this.#interrupt = callback;
    if (task !== undefined) this.#watch(this.queues[Queue.TO_DEVICE], task);
  }

  #watch(queue: VirtQueue, task: native.PollTask): void {
    const called = () => {
      if (queue.vector === 0) this.#interrupt?.();
    };
    queue.poll?.close();
    queue.poll = new native.Poll(queue.call, called, task);
    queue.poll.start(native.POLL_READABLE);
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
    this.#channel.close();
    this.wire.close();
    for (const queue of this.queues) {
      queue.poll?.close();
      closeSync(queue.call);
      closeSync(queue.error);
      if (queue.kick >= 0) closeSync(queue.kick);
    }
    this.window.release();
    for (const reservation of this.#reservations) reservation.release();
    closeSync(this.#ram);
  }

  /** Status 0, FLR, system_reset. */
  reset(): void {
    this.#stop();
    this.#startFailed = false;
    this.#status = 0;
    this.common.driverFeatures = 0n;
    this.window.clear();
    for (const queue of this.queues) queue.reset();
  }

  /** QMP `stop`: the rings stop, and what is mapped stays. */
  pause(): void {
    this.#stop();
  }

  /** QMP `cont`. With more regions than fit into a table QEMU begins, and does not get there. */
  resume(): void {
    if (this.#status & Status.DRIVER_OK) this.#start();
  }

  /**
   * Memory decoding is switched off or on, or the function goes to D3hot and back: the table is without the window's
   * maps meanwhile.
   */
  setDecoding(on: boolean): void {
    this.#isDecoding = on;
    this.commit();
  }

  /** The eventfd that a notification of the queue signals, while the device runs; -1 otherwise. */
  kickFd(index: number): number {
    return this.queues[index].kick;
  }

  /** A change of the guest's memory map, which has nothing to do with us, brings a new table all the same. */
  memoryChanged(): void {
    this.commit();
  }

  // What the registers and the back-end's requests do.

  /** The virtio device status. */
  get status(): number {
    return this.#status;
  }

  setStatus(value: number): void {
    if (value === 0) {
      this.reset();
      return;
    }
    // A driver that asks for what was not offered does not get FEATURES_OK, nor does one that goes around the IOMMU.
    const { driverFeatures } = this.common;
    const isRefused = driverFeatures & ~this.features || (this.iommu && !(driverFeatures & Feature.ACCESS_PLATFORM));
    if (value & Status.FEATURES_OK && isRefused) value &= ~Status.FEATURES_OK;
    this.#status = value;
    if (value & Status.DRIVER_OK) this.#start();
    else this.#stop();
  }

  readDeviceConfig(offset: number, width: number): number {
    const { configSize } = this.#options;
    let data: DataView;
    try {
      data = this.#vhost.getConfig(configSize);
    } catch (error) {
      this.die("the config space could not be read");
      throw error;
    }
    if (!inBounds(offset, width, configSize)) return width === 4 ? 0xffffffff : (1 << (8 * width)) - 1;
    return getUint(data, offset, width);
  }

  writeDeviceConfig(): void {
    this.#vhost.setConfig(this.#options.configSize);
  }

  notify(index: number): void {
    const queue = this.queues[index];
    if (queue && queue.kick >= 0) native.eventfdWrite(queue.kick);
  }

  configChanged(): void {
    this.generation++;
    if (this.common.configMsixVector === 0) this.#interrupt?.();
  }

  /** QEMU commits a change of memory: the back-end gets a new table, if there is room in it. */
  commit(): void {
    if (!this.#started) return;
    const table = this.#memTable();
    if (table.length > MAX_REGIONS) this.complain("No buffer space available");
    else this.#vhost.setMemTable(table);
  }

  complain(what: string): void {
    this.complaints.push(what);
  }

  die(reason: string): void {
    this.fatal ??= reason;
  }

  #start(): void {
    if (this.#started) return;
    const table = this.#memTable();
    this.#startFailed = table.length > MAX_REGIONS;
    if (this.#startFailed) {
      this.#vhost.setFeatures(this.common.driverFeatures);
      this.complain("vhost_set_mem_table failed: No buffer space available (105)");
      return;
    }
    this.#vhost.start(this.common.driverFeatures, table, this.iommu);
    this.#started = true;
    this.#vhost.started();
  }

  #stop(): void {
    if (!this.#started) return;
    this.#started = false;
    this.#vhost.stop();
  }

  #memTable(): TableEntry[] {
    return [
      ...ramRegions(this.#ram, this.#options.ramSize),
      ...(this.#isDecoding ? this.maps : []).map(({ offset, length, fd, fdOffset }) => ({
        region: {
          guestAddress: WINDOW_GUEST_ADDRESS + offset,
          size: length,
          userAddress: WINDOW_USER_ADDRESS + offset,
          mmapOffset: fdOffset,
        },
        fd,
      })),
    ];
  }

  #configWritten(offset: number): void {
    // Without bus mastering a virtio device stops.
    if (offset === 4 && !(this.#configSpace[4] & BUS_MASTER) && this.#status & Status.DRIVER_OK) {
      this.#status &= ~Status.DRIVER_OK;
      this.#stop();
    }
  }
}
