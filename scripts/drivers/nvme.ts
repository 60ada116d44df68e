/**
 * A small NVMe driver: enables a controller, makes I/O queues, reads, writes, flushes and deallocates, on any
 * namespace, by doorbells in registers or in memory. It sees the controller through NvmeTransport alone, so it runs
 * over a vfio-user socket as well as straight on a device object.
 *
 * nvme-queue.ts has its queues and what it needs of the world, nvme-over-vfio-user.ts a socket for that.
 *
 * Left out: everything that a driver needs to be robust. An error status is a thrown NvmeError, a controller that does
 * not get ready an Error.
 */

import {
  Cns,
  IDENTIFY_SIZE,
  IdentifyController,
  IdentifyNamespace,
  LbaFormat,
  Oacs,
} from "../../guest/devices/nvme/commands/identify.js";
import { Cc, Csts, DOORBELL_STRIDE } from "../../guest/devices/nvme/registers.js";
import {
  AdminOpcode,
  COMPLETION_ENTRY_SIZE,
  CQES,
  DSM_DEALLOCATE,
  DsmRange,
  Feature,
  NvmOpcode,
  RW_FUA,
  SQES,
  SUBMISSION_ENTRY_SIZE,
} from "../../guest/devices/nvme/spec.js";
import { setU64 } from "../../shared/struct/struct.js";
import { type CommandFields, type CompletionFields, type NvmeTransport, PAGE, Pages, QueuePair } from "./nvme-queue.js";

const REGISTER = { CAP_LOW: 0x00, CAP_HIGH: 0x04, CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30 } as const;
const ENABLE = Cc.EN | (SQES << 16) | (CQES << 20);
/** Register reads until the controller has to be ready. */
const READY_ATTEMPTS = 100_000;

class NvmeError extends Error {
  override readonly name = "NvmeError";
  constructor(
    readonly opcode: number,
    readonly status: number,
  ) {
    super(`NVMe command 0x${opcode.toString(16)} ended with status 0x${status.toString(16)}`);
  }
}

export interface NvmeDriverOptions {
  /** I/O queue pairs; fewer when the controller has fewer. */
  readonly queues?: number;
  readonly entries?: number;
  readonly adminEntries?: number;
  /** Doorbells in memory, where the controller has them. */
  readonly shadowDoorbells?: boolean;
}

export interface NamespaceInfo {
  readonly id: number;
  /** Bytes. */
  readonly blockSize: number;
  readonly blockCount: number;
}

export class NvmeDriver {
  readonly queues: QueuePair[] = [];
  /** The active ones, at `open` or the last `rescan`. */
  namespaces: readonly NamespaceInfo[] = [];
  /** Optional admin commands. */
  oacs = 0;
  /** Bytes of one command's data. */
  maxTransfer = 0;
  serial = "";
  model = "";
  #admin!: QueuePair;
  #pages!: Pages;
  #used = 0;
  #next = 0;
  #closed = false;
  #stride = DOORBELL_STRIDE;

  private constructor(readonly transport: NvmeTransport) {}

  /** Brings a controller up, whatever state it is in, with its I/O queues. */
  static async open(transport: NvmeTransport, options: NvmeDriverOptions = {}): Promise<NvmeDriver> {
    const driver = new NvmeDriver(transport);
    await driver.#enable(options.adminEntries ?? 32);
    await driver.#identify();
    await driver.#createQueues(options.queues ?? 1, options.entries ?? 64, options.shadowDoorbells ?? false);
    return driver;
  }

  /** Of the first namespace. */
  get blockSize(): number {
    return this.namespaces[0].blockSize;
  }

  get blockCount(): number {
    return this.namespaces[0].blockCount;
  }

  /** Asks for the namespaces again. */
  async rescan(): Promise<void> {
    const pages = await this.#pages.take(1);
    await this.#identifyNamespaces(pages[0]);
    this.#pages.give(pages);
  }

  /** An admin command, whatever its status. */
  admin(fields: CommandFields): Promise<CompletionFields> {
    return this.#admin.submit(fields);
  }

  /** An I/O command on the queues in turn, or on one of them. */
  io(fields: CommandFields, queue?: number): Promise<CompletionFields> {
    const index = queue ?? this.#next++ % this.queues.length;
    return this.queues[index].submit(fields);
  }

  /** Reads blocks from `block` on into `target`, a multiple of the block size long. */
  async read(block: number, target: Uint8Array, namespaceId = 1): Promise<void> {
    await this.#transfer(NvmOpcode.READ, namespaceId, block, target, 0);
  }

  async write(block: number, source: Uint8Array, forceUnitAccess = false, namespaceId = 1): Promise<void> {
    await this.#transfer(NvmOpcode.WRITE, namespaceId, block, source, forceUnitAccess ? RW_FUA : 0);
  }

  async flush(namespaceId = 1): Promise<void> {
    await this.check({ opcode: NvmOpcode.FLUSH, namespaceId });
  }

  /** Dataset Management with the attribute Deallocate, whatever its status: [block, blocks] of 1 to 256 ranges. */
  async deallocate(
    ranges: readonly (readonly [number | bigint, number])[],
    { namespaceId = 1, attributes = DSM_DEALLOCATE } = {},
  ): Promise<CompletionFields> {
    const { memory } = this.transport;
    const pages = await this.#pages.take(1);
    for (const [n, [block, blocks]] of ranges.entries()) {
      const at = pages[0] + n * DsmRange.size;
      memory.data.setUint32(at, 0, true);
      memory.data.setUint32(at + DsmRange.offsets.LENGTH, blocks, true);
      memory.data.setBigUint64(at + DsmRange.offsets.LBA_LOW, BigInt(block), true);
    }
    const prp1 = memory.address + pages[0];
    const opcode = NvmOpcode.DATASET_MANAGEMENT;
    const completion = await this.io({ opcode, namespaceId, prp1, dwords: [ranges.length - 1, attributes] });
    this.#pages.give(pages);
    return completion;
  }

  /** An I/O command that has to succeed. */
  async check(fields: CommandFields): Promise<CompletionFields> {
    const completion = await this.io(fields);
    if (completion.status !== 0) throw new NvmeError(fields.opcode, completion.status);
    return completion;
  }

  /** An admin command that has to succeed. */
  async checkAdmin(fields: CommandFields): Promise<CompletionFields> {
    const completion = await this.admin(fields);
    if (completion.status !== 0) throw new NvmeError(fields.opcode, completion.status);
    return completion;
  }

  /** An admin command that fills `length` bytes of ours, at most a page. */
  async adminRead(fields: CommandFields, length: number): Promise<Uint8Array> {
    const pages = await this.#pages.take(1);
    try {
      await this.checkAdmin({ ...fields, prp1: this.transport.memory.address + pages[0] });
      return this.transport.memory.bytes.slice(pages[0], pages[0] + length);
    } finally {
      this.#pages.give(pages);
    }
  }

  /** Tells the controller to shut down, waits for it, and disables it. */
  async close(): Promise<void> {
    const { transport } = this;
    await transport.writeRegister(REGISTER.CC, ENABLE | (1 << 14));
    await this.#until(Csts.SHST_MASK, Csts.SHST_COMPLETE);
    await transport.writeRegister(REGISTER.CC, 0);
    await this.#until(Csts.RDY, 0);
    this.#closed = true;
  }

  async #enable(adminEntries: number): Promise<void> {
    const { transport } = this;
    await transport.writeRegister(REGISTER.CC, 0);
    await this.#until(Csts.RDY, 0);
    const submission = this.#allocate(adminEntries * SUBMISSION_ENTRY_SIZE);
    const completion = this.#allocate(adminEntries * COMPLETION_ENTRY_SIZE);
    this.#stride = DOORBELL_STRIDE << ((await transport.readRegister(REGISTER.CAP_HIGH)) & 0xf);
    this.#admin = new QueuePair(transport, 0, adminEntries, submission, completion, 0, this.#stride);
    await transport.writeRegister(REGISTER.AQA, ((adminEntries - 1) << 16) | (adminEntries - 1));
    await this.#writeAddress(REGISTER.ASQ, submission);
    await this.#writeAddress(REGISTER.ACQ, completion);
    await transport.writeRegister(REGISTER.CC, ENABLE);
    await this.#until(Csts.RDY, Csts.RDY);
    this.#serve(this.#admin);
  }

  async #identify(): Promise<void> {
    const { memory } = this.transport;
    // Queues are made later, but in front of the pages that data uses.
    const at = this.#allocate(IDENTIFY_SIZE);
    const prp1 = memory.address + at;
    await this.checkAdmin({ opcode: AdminOpcode.IDENTIFY, prp1, dwords: [Cns.CONTROLLER] });
    const controller = IdentifyController.view(memory.data, at);
    const { offsets } = IdentifyController;
    const text = (offset: number, length: number): string =>
      Buffer.from(memory.bytes.slice(at + offset, at + offset + length))
        .toString("ascii")
        .trim();
    this.serial = text(offsets.SN, 20);
    this.model = text(offsets.MN, 40);
    // MDTS 0 means no limit; a PRP list of one page is ours.
    this.maxTransfer = Math.min(
      controller.MDTS === 0 ? Number.POSITIVE_INFINITY : PAGE * 2 ** controller.MDTS,
      2 ** 20,
    );
    this.oacs = controller.OACS;
    await this.#identifyNamespaces(at);
  }

  /** `at`: a page. */
  async #identifyNamespaces(at: number): Promise<void> {
    const { memory } = this.transport;
    const prp1 = memory.address + at;
    await this.checkAdmin({ opcode: AdminOpcode.IDENTIFY, prp1, dwords: [Cns.ACTIVE_NAMESPACE_LIST] });
    const list = Array.from({ length: IDENTIFY_SIZE / 4 }, (_, n) => memory.data.getUint32(at + n * 4, true));
    const namespaces: NamespaceInfo[] = [];
    for (const id of list.slice(0, list.indexOf(0))) {
      await this.checkAdmin({ opcode: AdminOpcode.IDENTIFY, namespaceId: id, prp1, dwords: [Cns.NAMESPACE] });
      const { FLBAS, NSZE } = IdentifyNamespace.view(memory.data, at);
      const formats = at + IdentifyNamespace.offsets.LBAF;
      const { LBADS } = LbaFormat.view(memory.data, formats + (FLBAS & 0xf) * LbaFormat.size);
      namespaces.push({ id, blockSize: 2 ** LBADS, blockCount: NSZE });
    }
    this.namespaces = namespaces;
  }

  async #createQueues(wanted: number, entries: number, shadowDoorbells: boolean): Promise<void> {
    const { transport } = this;
    const number = (wanted - 1) | ((wanted - 1) << 16);
    const { result } = await this.checkAdmin({
      opcode: AdminOpcode.SET_FEATURES,
      dwords: [Feature.NUMBER_OF_QUEUES, number],
    });
    const count = Math.min(wanted, (result & 0xffff) + 1, (result >>> 16) + 1);
    for (let id = 1; id <= count; id++) {
      const submission = this.#allocate(entries * SUBMISSION_ENTRY_SIZE);
      const completion = this.#allocate(entries * COMPLETION_ENTRY_SIZE);
      const pair = new QueuePair(transport, id, entries, submission, completion, id, this.#stride);
      const size = ((entries - 1) << 16) | id;
      const { address } = transport.memory;
      await this.checkAdmin({
        opcode: AdminOpcode.CREATE_IO_CQ,
        prp1: address + completion,
        dwords: [size, (id << 16) | 3],
      });
      await this.checkAdmin({
        opcode: AdminOpcode.CREATE_IO_SQ,
        prp1: address + submission,
        dwords: [size, (id << 16) | 1],
      });
      this.queues.push(pair);
      this.#serve(pair);
    }
    if (shadowDoorbells && (this.oacs & Oacs.DOORBELL_BUFFER_CONFIG) !== 0) await this.#useShadowDoorbells();
    this.#pages = new Pages(transport.memory, this.#used);
  }

  /** Both buffers are zeros, as are the queues' heads and tails. */
  async #useShadowDoorbells(): Promise<void> {
    const { address, bytes } = this.transport.memory;
    const [doorbells, events] = [this.#allocate(PAGE), this.#allocate(PAGE)];
    bytes.fill(0, doorbells, doorbells + PAGE);
    bytes.fill(0, events, events + PAGE);
    const opcode = AdminOpcode.DOORBELL_BUFFER_CONFIG;
    await this.checkAdmin({ opcode, prp1: address + doorbells, prp2: address + events });
    for (const pair of this.queues) pair.shadow = { doorbells, events };
  }

  async #transfer(opcode: number, namespaceId: number, block: number, bytes: Uint8Array, flags: number): Promise<void> {
    const { blockSize } = this.#info(namespaceId);
    const size = this.maxTransfer;
    const commands: Promise<void>[] = [];
    for (let done = 0; done < bytes.length; done += size) {
      const part = bytes.subarray(done, done + size);
      commands.push(this.#transferPart(opcode, namespaceId, block + done / blockSize, part, flags));
    }
    await Promise.all(commands);
  }

  #info(namespaceId: number): NamespaceInfo {
    const info = this.namespaces.find(({ id }) => id === namespaceId);
    if (info === undefined) throw new Error(`there is no namespace ${namespaceId}`);
    return info;
  }

  async #transferPart(
    opcode: number,
    namespaceId: number,
    block: number,
    bytes: Uint8Array,
    flags: number,
  ): Promise<void> {
    const { memory } = this.transport;
    const dataPages = Math.ceil(bytes.length / PAGE);
    const listPages = dataPages > 2 ? Math.ceil((dataPages - 2) / 511) : 0;
    const pages = await this.#pages.take(dataPages + listPages);
    try {
      const data = pages.slice(0, dataPages);
      if (opcode === NvmOpcode.WRITE) {
        for (const [n, at] of data.entries()) memory.bytes.set(bytes.subarray(n * PAGE, (n + 1) * PAGE), at);
      }
      const prp1 = memory.address + data[0];
      const prp2 = this.#describe(data.slice(1), pages.slice(dataPages));
      const blocks = bytes.length / this.#info(namespaceId).blockSize;
      const dwords = [block >>> 0, Math.floor(block / 2 ** 32), (blocks - 1) | flags];
      await this.check({ opcode, namespaceId, prp1, prp2, dwords });
      if (opcode === NvmOpcode.READ) {
        data.forEach((at, n) => {
          const part = bytes.subarray(n * PAGE, (n + 1) * PAGE);
          part.set(memory.bytes.subarray(at, at + part.length));
        });
      }
    } finally {
      this.#pages.give(pages);
    }
  }

  /** PRP2 for the pages behind the first: a page, or a list of them, chained where it takes more than a page. */
  #describe(data: readonly number[], lists: readonly number[]): number {
    const { memory } = this.transport;
    if (lists.length === 0) return data.length === 0 ? 0 : memory.address + data[0];
    let list = 0;
    let slot = 0;
    data.forEach((at, n) => {
      if (slot === 511 && n < data.length - 1) {
        setU64(memory.data, lists[list] + slot * 8, memory.address + lists[list + 1]);
        list++;
        slot = 0;
      }
      setU64(memory.data, lists[list] + slot++ * 8, memory.address + at);
    });
    return memory.address + lists[0];
  }

  /** Takes completions at each interrupt, until the driver is closed or the device gone. */
  #serve(pair: QueuePair): void {
    const loop = async (): Promise<void> => {
      while (!this.#closed) {
        await this.transport.waitInterrupt(pair.vector);
        await pair.reap();
      }
    };
    loop().catch((error) => pair.fail(error));
  }

  #allocate(size: number): number {
    const at = this.#used;
    this.#used += Math.ceil(size / PAGE) * PAGE;
    return at;
  }

  async #writeAddress(register: number, offset: number): Promise<void> {
    const address = this.transport.memory.address + offset;
    await this.transport.writeRegister(register, address % 2 ** 32);
    await this.transport.writeRegister(register + 4, Math.floor(address / 2 ** 32));
  }

  async #until(mask: number, value: number): Promise<void> {
    for (let attempt = 0; attempt < READY_ATTEMPTS; attempt++) {
      const status = await this.transport.readRegister(REGISTER.CSTS);
      if (status & Csts.CFS) throw new Error("the controller reports a fatal status");
      if ((status & mask) === value) return;
      await new Promise((resolve) => setImmediate(resolve));
    }
    throw new Error("the controller does not get ready");
  }
}
