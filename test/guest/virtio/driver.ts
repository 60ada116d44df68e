/**
 * A driver of virtio devices for tests, over a vfio-user client (VIRTIO 1.2, 3.1 and 4.1), with rings that a test can
 * lay out as it likes.
 */
import { randomBytes } from "node:crypto";
import type { ExecutionContext } from "ava";
import type { Device } from "../../../guest/device.js";
import { MiB } from "../../../shared/limits.js";
import { Capability, CommandBits, Header } from "../../../shared/spec/pci.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import {
  availableRingBytes,
  CommonCfg,
  CommonCfgMore,
  Descriptor,
  DescriptorFlags,
  descriptorTableBytes,
  Feature,
  PciCap,
  PciCapType,
  PciNotifyCap,
  Status,
  UsedEntry,
  usedRingBytes,
} from "../../../shared/spec/virtio.js";
import type { Client } from "../../../shared/vfio-user/client/client.js";
import { passed } from "../../../shared/virtqueue/event-index.js";
import { interrupt } from "../devices/serve.js";
import { connectDevice, type Kind, memory } from "../link/machine.js";

/** Where the driver VM's memory is: above 4 GiB, so that both halves of an address count. */
export const BASE = 0x1_2340_0000;
const SIZE = 4 * MiB;

/** "messages": on the local link, with memory that the client gave no file for. */
export type VirtioKind = Kind | "messages";
export const KINDS: readonly VirtioKind[] = ["local", "messages", "virtio", "isolated"];

export interface Buffer_ {
  readonly address: number;
  readonly length: number;
  readonly isWritable?: boolean;
}

export async function connect(t: ExecutionContext, device: Device, kind: VirtioKind = "local") {
  const machine = await connectDevice(kind === "messages" ? "local" : kind, device);
  t.teardown(machine.end);
  const { client } = machine;
  const { fd, bytes } = memory(t, SIZE);
  const map = { address: BASE, size: SIZE, flags: 3 };
  if (kind === "messages") {
    client.registerMemory(BASE, bytes);
    await client.mapMemory(map);
  } else await client.mapMemory({ ...map, fd });
  const driver = new VirtioDriver(client, bytes);
  await driver.find();
  return { ...machine, driver, bytes };
}

export class VirtioDriver {
  /** Offsets in BAR 0 by the structure's type. */
  readonly places: Record<number, { offset: number; length: number }> = {};
  notifyMultiplier = 0;
  #free = 0;

  constructor(
    readonly client: Client,
    readonly bytes: Uint8Array,
  ) {}

  async read(offset: number, size: number): Promise<number> {
    return Buffer.from(await this.client.regionRead(Region.BAR0, offset, size)).readUIntLE(0, size);
  }

  write(offset: number, size: number, value: number): Promise<void> {
    const bytes = Buffer.alloc(size);
    bytes.writeUIntLE(value, 0, size);
    return this.client.regionWrite(Region.BAR0, offset, bytes);
  }

  /** Fields of the common structure. */
  get(field: keyof typeof CommonCfg.offsets | "queueReset", size: 1 | 2 | 4): Promise<number> {
    return this.read(commonAt(field), size);
  }

  set(field: keyof typeof CommonCfg.offsets | "queueReset", size: 1 | 2 | 4, value: number): Promise<void> {
    return this.write(commonAt(field), size, value);
  }

  /** Enables DMA and finds the structures by the capabilities. */
  async find(): Promise<void> {
    const { client } = this;
    const command = CommandBits.MEMORY | CommandBits.BUS_MASTER;
    await client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(command, 0));
    const config = Buffer.from(await client.regionRead(Region.CONFIG, 0, 256));
    for (let at = config[Header.CAPABILITIES]; at !== 0; at = config[at + 1]) {
      if (config[at] !== Capability.VENDOR) continue;
      const view = PciCap.view(new DataView(config.buffer, config.byteOffset), at);
      this.places[view.cfgType] = { offset: view.offset, length: view.length };
      if (view.cfgType === PciCapType.NOTIFY)
        this.notifyMultiplier = config.readUInt32LE(at + PciNotifyCap.offsets.notifyOffMultiplier);
    }
  }

  async reset(): Promise<void> {
    await this.set("deviceStatus", 1, 0);
    while ((await this.get("deviceStatus", 1)) !== 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  async offered(): Promise<bigint> {
    await this.set("deviceFeatureSelect", 4, 0);
    const low = await this.get("deviceFeature", 4);
    await this.set("deviceFeatureSelect", 4, 1);
    return (BigInt(await this.get("deviceFeature", 4)) << 32n) | BigInt(low);
  }

  /** Resolves with the status after FEATURES_OK. */
  async negotiate(features: bigint): Promise<number> {
    await this.reset();
    await this.set("deviceStatus", 1, Status.ACKNOWLEDGE | Status.DRIVER);
    for (const select of [0, 1]) {
      await this.set("driverFeatureSelect", 4, select);
      await this.set("driverFeature", 4, Number((features >> BigInt(32 * select)) & 0xffff_ffffn));
    }
    await this.set("deviceStatus", 1, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK);
    return this.get("deviceStatus", 1);
  }

  async queue(index: number, size: number, features: bigint, vector = index + 1): Promise<Ring> {
    const ring = new Ring(this, index, size, (features & Feature.RING_EVENT_IDX) !== 0n);
    await ring.setUp(vector);
    return ring;
  }

  driverOk(): Promise<void> {
    const all = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK;
    return this.set("deviceStatus", 1, all);
  }

  /** Memory of the driver VM's. */
  allocate(length: number, alignment = 16): number {
    const at = Math.ceil(this.#free / alignment) * alignment;
    this.#free = at + length;
    return BASE + at;
  }

  at(address: number, length: number): Buffer {
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + address - BASE, length);
  }

  put(data: Uint8Array): Buffer_ {
    const address = this.allocate(data.length);
    this.at(address, data.length).set(data);
    return { address, length: data.length };
  }

  room(length: number): Buffer_ {
    return { address: this.allocate(length), length, isWritable: true };
  }
}

/** A split ring of the driver's. */
export class Ring {
  readonly descriptors: number;
  readonly available: number;
  readonly used: number;
  /** As a driver's is before anything happens. */
  availableIndex = 0;
  usedIndex = 0;
  #nextDescriptor = 0;

  constructor(
    public driver: VirtioDriver,
    readonly index: number,
    readonly size: number,
    readonly eventIndex: boolean,
  ) {
    this.descriptors = driver.allocate(descriptorTableBytes(size));
    this.available = driver.allocate(availableRingBytes(size));
    this.used = driver.allocate(usedRingBytes(size));
  }

  async setUp(vector: number): Promise<void> {
    const { driver, index, size } = this;
    await driver.set("queueSelect", 2, index);
    await driver.set("queueSize", 2, size);
    await driver.set("queueMsixVector", 2, vector);
    const fields = { queueDesc: this.descriptors, queueDriver: this.available, queueDevice: this.used } as const;
    for (const [field, address] of Object.entries(fields)) {
      const at = CommonCfg.offsets[field as keyof typeof fields];
      await driver.write(at, 4, address >>> 0);
      await driver.write(at + 4, 4, Math.floor(address / 2 ** 32));
    }
    await driver.set("queueEnable", 2, 1);
  }

  describe(n: number, address: number, length: number, flags: number, next = 0): void {
    this.driver
      .at(this.descriptors + n * Descriptor.size, Descriptor.size)
      .set(Descriptor.encode({ address, length, flags, next }));
  }

  /** Lays out a chain and makes it available; its head. */
  add(...buffers: readonly Buffer_[]): number {
    const numbers = buffers.map(() => this.#nextDescriptor++ % this.size);
    buffers.forEach(({ address, length, isWritable }, n) => {
      const isLast = n === buffers.length - 1;
      const flags = (isLast ? 0 : DescriptorFlags.NEXT) | (isWritable ? DescriptorFlags.WRITE : 0);
      this.describe(numbers[n], address, length, flags, isLast ? 0 : numbers[n + 1]);
    });
    this.offer(numbers[0]);
    return numbers[0];
  }

  /** The same in an indirect table. */
  addIndirect(...buffers: readonly Buffer_[]): number {
    const length = buffers.length * Descriptor.size;
    const table = this.driver.allocate(length);
    buffers.forEach(({ address, length: size, isWritable }, n) => {
      const isLast = n === buffers.length - 1;
      const flags = (isLast ? 0 : DescriptorFlags.NEXT) | (isWritable ? DescriptorFlags.WRITE : 0);
      const bytes = Descriptor.encode({ address, length: size, flags, next: n + 1 });
      this.driver.at(table + n * Descriptor.size, Descriptor.size).set(bytes);
    });
    const head = this.#nextDescriptor++ % this.size;
    this.describe(head, table, length, DescriptorFlags.INDIRECT);
    this.offer(head);
    return head;
  }

  offer(head: number): void {
    const ring = this.driver.at(this.available, availableRingBytes(this.size));
    ring.writeUInt16LE(head, 4 + 2 * (this.availableIndex % this.size));
    this.availableIndex = (this.availableIndex + 1) & 0xffff;
    ring.writeUInt16LE(this.availableIndex, 2);
  }

  async kick(): Promise<void> {
    const { driver, index } = this;
    await driver.write(driver.places[PciCapType.NOTIFY].offset + index * driver.notifyMultiplier, 2, index);
  }

  /** Whether the device wants to hear of the last `count` chains. */
  wantsKick(count: number): boolean {
    const ring = this.driver.at(this.used, usedRingBytes(this.size));
    if (!this.eventIndex) return (ring.readUInt16LE(0) & 1) === 0;
    return passed(ring.readUInt16LE(4 + UsedEntry.size * this.size), this.availableIndex, count);
  }

  /** Wants to be interrupted for the entry after so many. */
  interruptAfter(index: number): void {
    this.driver.at(this.available, availableRingBytes(this.size)).writeUInt16LE(index & 0xffff, 4 + 2 * this.size);
  }

  /** What the device has given back: heads and lengths. */
  takeUsed(): { id: number; length: number }[] {
    const ring = this.driver.at(this.used, usedRingBytes(this.size));
    const taken: { id: number; length: number }[] = [];
    for (const end = ring.readUInt16LE(2); this.usedIndex !== end; this.usedIndex = (this.usedIndex + 1) & 0xffff) {
      const at = 4 + UsedEntry.size * (this.usedIndex % this.size);
      taken.push({ id: ring.readUInt32LE(at), length: ring.readUInt32LE(at + 4) });
    }
    return taken;
  }

  /** Waits until the device has given so many back. */
  async completed(count: number): Promise<{ id: number; length: number }[]> {
    const all = this.takeUsed();
    while (all.length < count) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      all.push(...this.takeUsed());
    }
    return all;
  }
}

function commonAt(field: keyof typeof CommonCfg.offsets | "queueReset"): number {
  return field === "queueReset" ? CommonCfgMore.offsets.queueReset : CommonCfg.offsets[field];
}

/** Eventfds for the vectors 0 to count - 1. */
export async function bind(t: ExecutionContext, client: Client, count: number) {
  const interrupts = Array.from({ length: count }, () => interrupt(t));
  await client.setIrqs({ index: Irq.MSIX, eventfds: interrupts.map(({ fd }) => fd) });
  return interrupts;
}

export const some = (length: number) => randomBytes(length);
