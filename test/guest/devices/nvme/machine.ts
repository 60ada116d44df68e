/**
 * A driver VM in miniature for device tests: memory with maps, interrupts, and a Device driven straight through its
 * interface. Maps can lack permissions, be missing, or lie outside the window, so that they are reached by messages
 * only.
 */
import { type Dma, DmaError, type Interrupts, type Segment } from "../../../../guest/device.js";
import type { NvmeController } from "../../../../guest/devices/nvme/controller.js";
import type { ScatterList } from "../../../../guest/scatter-list.js";
import { LaneContext } from "../../../../native/lane.js";
import type { DmaMemory, NvmeTransport } from "../../../../scripts/drivers/nvme-queue.js";
import { type Log, quietLog } from "../../../../shared/log.js";
import { pageAligned } from "../../../../shared/page-aligned.js";

export interface FakeMap {
  readonly address: number;
  readonly size: number;
  /** Where in the memory. */
  readonly offset: number;
  readonly readable?: boolean;
  readonly writable?: boolean;
  /** False: by messages only. */
  readonly windowed?: boolean;
}

/** For devices that share nothing. */
export const nothingShared = () => new Uint8Array(0);

const notUsed = (): never => {
  throw new Error("not used");
};

export class FakeDma implements Dma {
  bytesRead = 0;
  bytesWritten = 0;
  /** Has those of the maps that are in the window, as the framework's has. */
  readonly lanes: LaneContext;
  #maps: FakeMap[] = [];
  /** DMA done by messages. */
  messages = 0;
  /** What each message waits for. */
  gate: Promise<unknown> = Promise.resolve();
  readonly bytes: Uint8Array;
  readonly data: DataView;
  readonly #inFlight = new Set<Promise<void>>();

  constructor(
    readonly memory: ArrayBuffer,
    vectors = 0,
  ) {
    this.lanes = new LaneContext(vectors);
    this.bytes = new Uint8Array(memory);
    this.data = new DataView(memory);
  }

  get maps(): readonly FakeMap[] {
    return this.#maps;
  }

  set maps(maps: readonly FakeMap[]) {
    this.#maps = [...maps];
    this.lanes.unmapAll();
    for (const { address, size, offset, readable = true, writable = true, windowed = true } of maps) {
      if (windowed && size > 0) this.lanes.map(address, size, this.memory, offset, readable, writable);
    }
  }

  locate(address: number, length: number, access: "read" | "write", into: Segment): number {
    into.length = 0;
    const map = this.#find(address, access);
    if (map === undefined || map.windowed === false) return 0;
    into.bytes = this.bytes;
    into.data = this.data;
    into.offset = map.offset + address - map.address;
    into.length = Math.min(length, map.address + map.size - address);
    return into.length;
  }

  view(): undefined {
    return undefined;
  }

  allocate(length: number): Uint8Array<ArrayBuffer> {
    return pageAligned(length);
  }

  async read(address: number, target: Uint8Array): Promise<void> {
    await this.#byMessages("read", address, target.length, (at, done, length) =>
      target.set(this.bytes.subarray(at, at + length), done),
    );
  }

  async write(address: number, source: Uint8Array): Promise<void> {
    await this.#byMessages("write", address, source.length, (at, done, length) =>
      this.bytes.set(source.subarray(done, done + length), at),
    );
  }

  readonly readSync = notUsed;
  readonly writeSync = notUsed;

  async readList(list: ScatterList, target: Uint8Array): Promise<void> {
    await this.#list(list, (address, from, to) => this.read(address, target.subarray(from, to)));
  }

  async writeList(list: ScatterList, source: Uint8Array): Promise<void> {
    await this.#list(list, (address, from, to) => this.write(address, source.subarray(from, to)));
  }

  isIdle(): boolean {
    return this.#inFlight.size === 0;
  }

  async settled(): Promise<void> {
    await Promise.allSettled(this.#inFlight);
  }

  readonly readListSync = notUsed;
  readonly writeListSync = notUsed;

  account(read: number, written: number): void {
    this.bytesRead += read;
    this.bytesWritten += written;
  }

  async #list(list: ScatterList, move: (address: number, from: number, to: number) => Promise<void>): Promise<void> {
    const moves: Promise<void>[] = [];
    let at = 0;
    for (let n = 0; n < list.count; n++) {
      moves.push(move(list.addresses[n], at, at + list.lengths[n]));
      at += list.lengths[n];
    }
    const failed = (await Promise.allSettled(moves)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
  }

  async #byMessages(
    access: "read" | "write",
    address: number,
    length: number,
    copy: (at: number, done: number, length: number) => void,
  ): Promise<void> {
    const before = this.messages;
    const moving = this.#moveParts(access, address, length, copy);
    if (this.messages > before) this.#inFlight.add(moving);
    try {
      await moving;
    } finally {
      this.#inFlight.delete(moving);
    }
  }

  async #moveParts(
    access: "read" | "write",
    address: number,
    length: number,
    copy: (at: number, done: number, length: number) => void,
  ): Promise<void> {
    for (let done = 0; done < length; ) {
      const map = this.#find(address + done, access);
      if (map === undefined) throw new DmaError(address + done, length - done, access);
      const part = Math.min(length - done, map.address + map.size - address - done);
      if (map.windowed === false) {
        this.messages++;
        await new Promise((resolve) => setImmediate(resolve));
        await this.gate;
      }
      copy(map.offset + address + done - map.address, done, part);
      done += part;
    }
  }

  #find(address: number, access: "read" | "write"): FakeMap | undefined {
    return this.maps.find(
      (map) =>
        address >= map.address &&
        address < map.address + map.size &&
        (access === "read" ? map.readable : map.writable) !== false,
    );
  }
}

export class FakeInterrupts implements Interrupts {
  count = 0;
  /** As in a driver VM without MSI and MSI-X. */
  byPin = false;
  /** The level of INTA#. */
  asserted = false;
  readonly #pending: number[] = [];
  readonly #waiting: ((() => void) | undefined)[] = [];

  trigger(vector: number): void {
    this.count++;
    const resolve = this.#waiting[vector];
    this.#waiting[vector] = undefined;
    if (resolve !== undefined) resolve();
    else this.#pending[vector] = (this.#pending[vector] ?? 0) + 1;
  }

  raise(vector: number): void {
    this.asserted = true;
    this.trigger(vector);
  }

  lower(): void {
    this.asserted = false;
  }

  reportError(): boolean {
    return false;
  }

  requestRelease(): boolean {
    return false;
  }

  /** Interrupts of a vector that nobody waited for. */
  pending(vector: number): number {
    return this.#pending[vector] ?? 0;
  }

  wait(vector: number): Promise<void> {
    if (this.pending(vector) > 0) {
      this.#pending[vector] = 0;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#waiting[vector] = resolve;
    });
  }
}

/** The address of the machine's memory: above 4 GiB, and not equal to any offset. */
export const MEMORY_ADDRESS = 0x1_2340_0000;

export class Machine implements NvmeTransport {
  readonly dma: FakeDma;
  readonly interrupts = new FakeInterrupts();
  readonly memory: DmaMemory;
  readonly device: NvmeController;
  /** What the driver writes its doorbells to; undefined for register writes. */
  doorbells: Int32Array | undefined;
  /** The part of BAR 0 that the device shares, if any. */
  readonly shared: { readonly offset: number; readonly words: Int32Array<ArrayBuffer> } | undefined;

  private constructor(device: NvmeController, size: number) {
    this.device = device;
    const parts = device.identity.bars[0]?.shared;
    const part = Array.isArray(parts) ? parts[0] : undefined;
    this.shared = part && { offset: part.offset, words: new Int32Array(part.size / 4) };
    this.dma = new FakeDma(new ArrayBuffer(size), device.identity.msix?.vectors);
    this.dma.maps = [{ address: MEMORY_ADDRESS, size, offset: 0 }];
    this.memory = { address: MEMORY_ADDRESS, bytes: this.dma.bytes, data: this.dma.data };
  }

  /**
   * Starts the device in a machine with `size` bytes of memory, all of it mapped and in the window. `hasLanes`: loops
   * in C++ reach it as well.
   */
  static async start(
    device: NvmeController,
    size = 8 * 1024 * 1024,
    log: Log = quietLog,
    hasLanes = true,
  ): Promise<Machine> {
    const machine = new Machine(device, size);
    const { dma, interrupts } = machine;
    const run = () => {
      throw new Error("it keeps its own list of jobs");
    };
    const { words } = machine.shared ?? {};
    const shared = words === undefined ? nothingShared : () => new Uint8Array(words.buffer);
    const lanes = { context: dma.lanes, interrupted: () => {} };
    device.start({ dma, interrupts, log, run, shared, ...(hasLanes && { lanes }) });
    return machine;
  }

  /** All memory is reached by messages from now on. */
  leaveWindow(): void {
    this.dma.maps = this.dma.maps.map((map) => ({ ...map, windowed: false }));
  }

  /** As the library has it: what lies within the register file is the file's. */
  read(offset: number, size = 4): number {
    const file = this.device.registers[0];
    return offset + size <= file.size ? file.read(offset, size) : 0;
  }

  write(offset: number, value: number, size = 4): void {
    const inShared = offset - (this.shared?.offset ?? Number.POSITIVE_INFINITY);
    if (this.shared !== undefined && inShared >= 0 && inShared < this.shared.words.byteLength) {
      const bytes = new Uint8Array(Uint32Array.of(value).buffer, 0, size);
      new Uint8Array(this.shared.words.buffer).set(bytes, inShared);
      this.device.sharedWritten(0, offset, size);
      return;
    }
    const file = this.device.registers[0];
    if (offset + size <= file.size) file.write(offset, size, value);
    else this.device.writeBar(0, offset, size, value);
  }

  /** The function's reset. */
  async reset(): Promise<void> {
    await this.device.reset();
    this.device.registers[0].reset();
  }

  readRegister(offset: number): Promise<number> {
    return Promise.resolve(this.read(offset));
  }

  writeRegister(offset: number, value: number): Promise<void> {
    this.write(offset, value >>> 0);
    return Promise.resolve();
  }

  waitInterrupt(vector: number): Promise<void> {
    return this.interrupts.wait(vector);
  }

  /** Submission queues that the controller shows to people. */
  get queueCount(): number {
    const state: unknown = this.device.inspect?.();
    const queues: unknown = state instanceof Object && Reflect.get(state, "submissionQueues");
    return Array.isArray(queues) ? queues.length : -1;
  }

  async stop(): Promise<void> {
    await this.reset();
    await this.device.close();
  }
}
