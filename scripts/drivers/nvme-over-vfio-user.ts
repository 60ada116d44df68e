/**
 * The NVMe driver's seam over a vfio-user client: registers by REGION_READ and REGION_WRITE, memory in a memfd, MSI-X
 * by eventfds.
 */
import {
  addSeals,
  close,
  createMemory,
  eventfd,
  eventfdRead,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  mapFile,
  POLL_READABLE,
  Poll,
  PROT_READ,
  PROT_WRITE,
} from "../../native/index.js";
import type { PeerGone } from "../../shared/errors.js";
import { Irq, Region } from "../../shared/spec/vfio-user.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import type { DmaMemory, NvmeTransport } from "./nvme-queue.js";

/** Above 4 GiB, so that both halves of an address matter. */
const MEMORY_ADDRESS = 0x1_0000_0000;
const COMMAND_REGISTER = 4;
const MEMORY_AND_BUS_MASTER = 0x6;

/** One vector's eventfd: signals that came, and who waits for the next. */
class Vector {
  readonly fd = eventfd(0);
  readonly #poll: Poll;
  #pending = 0;
  #waiting: (() => void) | undefined;
  signals = 0;

  constructor() {
    this.#poll = new Poll(this.fd, () => {
      const count = eventfdRead(this.fd);
      this.signals += count;
      this.#pending += count;
      if (this.#pending > 0) this.wake();
    });
    this.#poll.start(POLL_READABLE);
  }

  wait(): Promise<void> {
    if (this.#pending > 0) {
      this.#pending = 0;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#waiting = resolve;
    });
  }

  wake(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    this.#waiting = undefined;
    this.#pending = 0;
    waiting();
  }

  close(): void {
    this.#poll.close();
    close(this.fd);
  }
}

export class VfioUserNvme implements NvmeTransport {
  readonly #vectors: Vector[] = [];
  readonly #word = new Uint8Array(4);
  readonly #wordData = new DataView(this.#word.buffer);
  #gone: PeerGone | undefined;
  doorbells: Int32Array | undefined;

  private constructor(
    readonly client: Client,
    readonly memory: DmaMemory,
    readonly memoryFd: number,
  ) {
    void client.closed.then((reason) => {
      this.#gone = reason;
      for (const vector of this.#vectors) vector.wake();
    });
  }

  /** Connects, maps `memoryBytes` of memory for the controller, and binds every MSI-X vector. */
  static async connect(path: string, memoryBytes: number): Promise<VfioUserNvme> {
    return VfioUserNvme.over(await Client.connect(path), memoryBytes);
  }

  /** The same with a client that is connected. */
  static async over(client: Client, memoryBytes: number): Promise<VfioUserNvme> {
    const fd = createMemory("nvme-driver", memoryBytes, false);
    addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    const buffer = mapFile(fd, 0, memoryBytes, PROT_READ | PROT_WRITE);
    const memory = { address: MEMORY_ADDRESS, bytes: new Uint8Array(buffer), data: new DataView(buffer) };
    const transport = new VfioUserNvme(client, memory, fd);
    try {
      await transport.#start();
    } catch (error) {
      transport.close();
      throw error;
    }
    return transport;
  }

  async #start(): Promise<void> {
    const { client, memory, memoryFd } = this;
    await client.mapMemory({ address: memory.address, size: memory.bytes.length, fd: memoryFd });
    const { count } = await client.getIrqInfo(Irq.MSIX);
    for (let n = 0; n < count; n++) this.#vectors.push(new Vector());
    await client.setIrqs({ index: Irq.MSIX, eventfds: this.#vectors.map((vector) => vector.fd) });
    await this.enableFunction();
  }

  /** Memory and bus master, which a reset of the function takes away. */
  async enableFunction(): Promise<void> {
    await this.client.regionWrite(Region.CONFIG, COMMAND_REGISTER, Uint8Array.of(MEMORY_AND_BUS_MASTER, 0));
  }

  /** Maps the doorbells as a VMM does: the one area of BAR 0 that may be mapped. */
  async mapDoorbells(): Promise<Int32Array> {
    const { areas, fd, offset } = await this.client.getRegionInfo(Region.BAR0);
    try {
      const [area] = areas;
      if (areas.length !== 1) throw new Error(`${areas.length} areas of BAR 0 may be mapped`);
      this.doorbells = new Int32Array(mapFile(fd, offset + area.offset, area.size, PROT_READ | PROT_WRITE));
      return this.doorbells;
    } finally {
      if (fd >= 0) close(fd);
    }
  }

  async readRegister(offset: number): Promise<number> {
    await this.client.regionRead(Region.BAR0, offset, this.#word);
    return this.#wordData.getUint32(0, true);
  }

  async writeRegister(offset: number, value: number): Promise<void> {
    this.#wordData.setUint32(0, value, true);
    await this.client.regionWrite(Region.BAR0, offset, this.#word);
  }

  async waitInterrupt(vector: number): Promise<void> {
    if (this.#gone === undefined) await this.#vectors[vector].wait();
    if (this.#gone !== undefined) throw this.#gone;
  }

  /** Interrupts that came, over all vectors. */
  get interrupts(): number {
    return this.#vectors.reduce((sum, { signals }) => sum + signals, 0);
  }

  close(): void {
    this.client.close();
    for (const vector of this.#vectors) vector.close();
    close(this.memoryFd);
  }
}
