/**
 * A VIRTIO device over PCI, from the driver's side (VIRTIO 1.2, 3.1 "Device Initialization" and 4.1.4.3 "Common
 * configuration structure"): status, features, queues, notifications and device configuration.
 */
import { setTimeout as delay } from "node:timers/promises";
import { inBounds } from "../../shared/bits.js";
import { startDeadline } from "../../shared/deadline.js";
import { UserError } from "../../shared/errors.js";
import { CommonCfg, NO_VECTOR, Status } from "../../shared/spec/virtio.js";
import type { DriverQueue } from "../../shared/virtqueue/driver.js";
import type { PciFunction, Registers } from "../vfio/pci-function.js";
import { discover, type Structure, type VirtioLayout } from "./capabilities.js";

const RESET_DEADLINE_MS = 5000;
const RESET_POLL_MS = 2;
/** A device whose configuration changes faster than it can be read is broken. */
const CONFIG_ATTEMPTS = 100;
const NOTIFY_SIZE = 2;
const COMMON = CommonCfg.offsets;

export class VirtioPci {
  readonly #pci: PciFunction;
  readonly #layout: VirtioLayout;
  readonly #common: Registers;
  readonly #notify: Registers;
  /** Where each queue is notified, in the notification structure's BAR; -1 for queues that are not set up. */
  #notifyOffsets = new Float64Array(0);

  /** @throws UserError when the function is no modern VIRTIO device */
  constructor(pci: PciFunction) {
    this.#pci = pci;
    this.#layout = discover(pci);
    this.#common = pci.registers(this.#layout.common.bar);
    this.#notify = pci.registers(this.#layout.notify.bar);
  }

  get numQueues(): number {
    return this.#common.read16(this.#at(COMMON.numQueues));
  }

  /** Bits of Status. */
  get status(): number {
    return this.#common.read8(this.#at(COMMON.deviceStatus));
  }

  /** Changes when the device announces another configuration. */
  get configGeneration(): number {
    return this.#common.read8(this.#at(COMMON.configGeneration));
  }

  addStatus(bits: number): void {
    this.#common.write8(this.#at(COMMON.deviceStatus), this.status | bits);
  }

  /** Resolves when the device is reset (2.4.2). @throws UserError when it does not get there in time */
  async reset(): Promise<void> {
    let isLate = false;
    const stop = startDeadline(RESET_DEADLINE_MS, () => {
      isLate = true;
    });
    this.#notifyOffsets = new Float64Array(0);
    this.#common.write8(this.#at(COMMON.deviceStatus), 0);
    try {
      while (this.status !== 0) {
        if (isLate) throw new UserError("the VIRTIO device does not reset: its back-end may be gone");
        await delay(RESET_POLL_MS);
      }
    } finally {
      stop();
    }
  }

  /**
   * 3.1.1 steps 2 to 6; returns the features that both sides have, those of `optional` only where they are offered.
   * @throws UserError when the device does not offer `features` or accept what is asked for
   */
  negotiate(features: bigint, optional = 0n): bigint {
    const { deviceFeatureSelect, deviceFeature, driverFeatureSelect, driverFeature } = COMMON;
    this.addStatus(Status.ACKNOWLEDGE | Status.DRIVER);
    let agreed = 0n;
    for (const half of [0, 1]) {
      const shift = BigInt(half * 32);
      const wanted = Number((features >> shift) & 0xffff_ffffn);
      this.#common.write32(this.#at(deviceFeatureSelect), half);
      const offered = this.#common.read32(this.#at(deviceFeature));
      if ((offered & wanted) >>> 0 !== wanted) {
        this.addStatus(Status.FAILED);
        throw new UserError(`the VIRTIO device lacks features 0x${features.toString(16)}`);
      }
      this.#common.write32(this.#at(driverFeatureSelect), half);
      const taken = (wanted | (offered & Number((optional >> shift) & 0xffff_ffffn))) >>> 0;
      this.#common.write32(this.#at(driverFeature), taken);
      agreed |= BigInt(taken) << shift;
    }
    this.addStatus(Status.FEATURES_OK);
    if ((this.status & Status.FEATURES_OK) === 0) {
      this.addStatus(Status.FAILED);
      throw new UserError("the VIRTIO device does not accept its features");
    }
    return agreed;
  }

  /** The most descriptors that queue `index` may have; 0 when it is not available. */
  maxQueueSize(index: number): number {
    this.#common.write16(this.#at(COMMON.queueSelect), index);
    return this.#common.read16(this.#at(COMMON.queueSize));
  }

  /** Tells the device of a queue and enables it; `interrupts` puts it on MSI-X vector 0. @throws UserError */
  enableQueue(index: number, queue: DriverQueue, interrupts: boolean): void {
    const most = this.maxQueueSize(index);
    if (queue.size > most) throw new UserError(`queue ${index} of the VIRTIO device has ${most} descriptors at most`);
    const common = this.#common;
    common.write16(this.#at(COMMON.queueSize), queue.size);
    const vector = interrupts ? 0 : NO_VECTOR;
    common.write16(this.#at(COMMON.queueMsixVector), vector);
    if (common.read16(this.#at(COMMON.queueMsixVector)) !== vector) {
      throw new UserError(`the VIRTIO device has no interrupt for queue ${index}`);
    }
    this.#write64(COMMON.queueDesc, queue.descriptorAddress);
    this.#write64(COMMON.queueDriver, queue.availableAddress);
    this.#write64(COMMON.queueDevice, queue.usedAddress);
    this.#setNotifyOffset(index, common.read16(this.#at(COMMON.queueNotifyOff)));
    common.write16(this.#at(COMMON.queueEnable), 1);
  }

  /** Puts configuration changes on MSI-X vector 0. */
  enableConfigInterrupt(): void {
    this.#common.write16(this.#at(COMMON.configMsixVector), 0);
  }

  /** 4.1.5.2 "Available Buffer Notifications". Nothing happens for a queue that is not set up. */
  notify(index: number): void {
    const offset = this.#notifyOffsets[index];
    if (offset >= 0) this.#notify.write16(offset, index);
  }

  /** Where queues that are set up are notified, by their numbers. */
  notifications(queues: readonly number[]): { registers: Registers; offsets: number[] } {
    return { registers: this.#notify, offsets: queues.map((index) => this.#notifyOffsets[index]) };
  }

  /**
   * The first `length` bytes of device configuration, a multiple of 4, read as one: again when it changed meanwhile
   * (2.5.1).
   * @throws UserError when the device has less, or never holds still
   */
  readConfig(length: number): Uint8Array<ArrayBuffer> {
    const { device } = this.#layout;
    if (length > device.length) {
      throw new UserError(`the VIRTIO device has ${device.length} bytes of configuration where ${length} are needed`);
    }
    const registers = this.#pci.registers(device.bar);
    const data = new DataView(new ArrayBuffer(length));
    for (let attempt = 0; attempt < CONFIG_ATTEMPTS; attempt++) {
      const before = this.configGeneration;
      for (let at = 0; at < length; at += 4) data.setUint32(at, registers.read32(device.offset + at), true);
      if (this.configGeneration === before) return new Uint8Array(data.buffer);
    }
    throw new UserError("the VIRTIO device's configuration does not hold still");
  }

  sharedMemory(id: number): Structure | undefined {
    return this.#layout.sharedMemory.get(id);
  }

  #at(offset: number): number {
    return this.#layout.common.offset + offset;
  }

  /** 4.1.3.1: a 64-bit field is accessed as two of 32 bits. */
  #write64(offset: number, value: number): void {
    this.#common.write32(this.#at(offset), value >>> 0);
    this.#common.write32(this.#at(offset + 4), Math.floor(value / 0x1_0000_0000));
  }

  #setNotifyOffset(index: number, queueNotifyOff: number): void {
    const { notify, notifyMultiplier } = this.#layout;
    const offset = queueNotifyOff * notifyMultiplier;
    if (!inBounds(offset, NOTIFY_SIZE, notify.length)) {
      throw new UserError(`queue ${index} of the VIRTIO device would be notified outside of its registers`);
    }
    if (index >= this.#notifyOffsets.length) {
      const grown = new Float64Array(index + 1).fill(-1);
      grown.set(this.#notifyOffsets);
      this.#notifyOffsets = grown;
    }
    this.#notifyOffsets[index] = notify.offset + offset;
  }
}
