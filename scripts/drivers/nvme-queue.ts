/**
 * What the NVMe driver needs of the world, and a pair of queues: commands in, completions out, doorbells in registers
 * or in memory.
 */
import { DOORBELL_OFFSET, DOORBELL_STRIDE } from "../../guest/devices/nvme/registers.js";
import { COMPLETION_ENTRY_SIZE, Command, Completion, SUBMISSION_ENTRY_SIZE } from "../../guest/devices/nvme/spec.js";

/** Memory that the controller reaches by DMA. */
export interface DmaMemory {
  /** Page-aligned. */
  readonly address: number;
  readonly bytes: Uint8Array;
  readonly data: DataView;
}

/** What the driver needs of the world. Register offsets are those of BAR 0; accesses are of 32 bits. */
export interface NvmeTransport {
  readRegister(offset: number): Promise<number>;
  writeRegister(offset: number, value: number): Promise<void>;
  readonly memory: DmaMemory;
  /** The doorbells, where they are mapped: all of them are written there then. */
  readonly doorbells?: Int32Array | undefined;
  /**
   * Resolves at the vector's next interrupt, or at once when one came since the last call. Rejects when the device is
   * gone.
   */
  waitInterrupt(vector: number): Promise<void>;
}

export const PAGE = 4096;

/** Pages of the transport's memory, in any order. */
export class Pages {
  readonly #free: number[] = [];
  #waiting: (() => void)[] = [];

  constructor(
    readonly memory: DmaMemory,
    used: number,
  ) {
    for (let at = memory.bytes.length - PAGE; at >= used; at -= PAGE) this.#free.push(at);
  }

  /** Offsets of `count` pages; waits until there are so many. */
  async take(count: number): Promise<number[]> {
    while (this.#free.length < count) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.#free.splice(this.#free.length - count, count);
  }

  give(pages: readonly number[]): void {
    this.#free.push(...pages);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

/** A command's fields; all but the opcode are 0 when left out. */
export interface CommandFields {
  readonly opcode: number;
  readonly flags?: number;
  readonly namespaceId?: number;
  /** 64-bit fields are BigInt where a test needs values above 2^53. */
  readonly prp1?: number | bigint;
  readonly prp2?: number | bigint;
  readonly dwords?: readonly number[];
}

export interface CompletionFields {
  /** Without the phase and Do Not Retry. */
  readonly status: number;
  readonly doNotRetry: boolean;
  readonly result: number;
  readonly sqhd: number;
}

interface Waiter {
  readonly resolve: (completion: CompletionFields) => void;
  readonly reject: (error: unknown) => void;
}

/** Offsets in the transport's memory of the buffers of Doorbell Buffer Config. */
interface ShadowBuffers {
  readonly doorbells: number;
  readonly events: number;
}

/** A submission queue and its completion queue. */
export class QueuePair {
  /** Doorbells go here, and to registers only where the controller asks for it. */
  shadow: ShadowBuffers | undefined;
  /** Writes of doorbell registers. */
  rings = 0;
  readonly #transport: NvmeTransport;
  readonly #waiting = new Map<number, Waiter>();
  readonly #freeIds: number[] = [];
  #idWaiters: (() => void)[] = [];
  #tail = 0;
  #head = 0;
  #phase = 1;
  #ringing: Promise<void> | undefined;

  constructor(
    transport: NvmeTransport,
    readonly id: number,
    readonly entries: number,
    /** Offsets in the transport's memory. */
    readonly submissionOffset: number,
    readonly completionOffset: number,
    readonly vector: number,
    /** Bytes from one doorbell to the next. */
    readonly stride = DOORBELL_STRIDE,
  ) {
    this.#transport = transport;
    const { bytes } = transport.memory;
    bytes.fill(0, submissionOffset, submissionOffset + entries * SUBMISSION_ENTRY_SIZE);
    bytes.fill(0, completionOffset, completionOffset + entries * COMPLETION_ENTRY_SIZE);
    for (let id = entries - 2; id >= 0; id--) this.#freeIds.push(id);
  }

  /** Sends a command and resolves with its completion, good or bad. */
  async submit(fields: CommandFields): Promise<CompletionFields> {
    while (this.#freeIds.length === 0) await new Promise<void>((resolve) => this.#idWaiters.push(resolve));
    const id = this.#freeIds.pop() as number;
    const { data } = this.#transport.memory;
    const at = this.submissionOffset + this.#tail * SUBMISSION_ENTRY_SIZE;
    writeCommand(data, at, id, fields);
    this.#tail = (this.#tail + 1) % this.entries;
    const done = new Promise<CompletionFields>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    // One doorbell write for all that is submitted in this turn.
    this.#ringing ??= Promise.resolve().then(() => {
      this.#ringing = undefined;
      return this.#ring(0, this.#tail);
    });
    const [completion] = await Promise.all([done, this.#ringing]);
    return completion;
  }

  /** Takes what is in the completion queue; call it after an interrupt. Returns how many entries. */
  async reap(): Promise<number> {
    const { data } = this.#transport.memory;
    let count = 0;
    for (;;) {
      const entry = Completion.view(data, this.completionOffset + this.#head * COMPLETION_ENTRY_SIZE);
      const status = entry.STATUS;
      if ((status & 1) !== this.#phase) break;
      const waiter = this.#waiting.get(entry.CID);
      if (waiter === undefined) throw new Error(`a completion for command ${entry.CID}, which was not sent`);
      this.#waiting.delete(entry.CID);
      this.#freeIds.push(entry.CID);
      waiter.resolve({
        status: (status >>> 1) & 0x7ff,
        doNotRetry: status >>> 15 === 1,
        result: entry.DW0,
        sqhd: entry.SQHD,
      });
      this.#head = (this.#head + 1) % this.entries;
      if (this.#head === 0) this.#phase ^= 1;
      count++;
    }
    const waiters = this.#idWaiters;
    this.#idWaiters = [];
    for (const wake of waiters) wake();
    if (count > 0) await this.#ring(1, this.#head);
    return count;
  }

  /** Rings the submission queue's doorbell (0) or the completion queue's (1). */
  async #ring(which: 0 | 1, value: number): Promise<void> {
    const { shadow } = this;
    const { doorbells } = this.#transport;
    const offset = (this.id * 2 + which) * this.stride;
    if (doorbells !== undefined) {
      Atomics.store(doorbells, offset / 4, value);
      return;
    }
    if (shadow !== undefined) {
      const { bytes } = this.#transport.memory;
      const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      const old = Atomics.exchange(words, (shadow.doorbells + offset) / 4, value);
      const event = Atomics.load(words, (shadow.events + offset) / 4);
      // 7.13: whether the step from `old` to `value` passes the event index; all of them have 16 bits.
      if (((value - event - 1) & 0xffff) >= ((value - old) & 0xffff)) return;
    }
    this.rings++;
    await this.#transport.writeRegister(DOORBELL_OFFSET + offset, value);
  }

  /** The device is gone: nothing more comes. */
  fail(error: unknown): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  get pending(): number {
    return this.#waiting.size;
  }
}

/** Writes a submission queue entry. */
export function writeCommand(data: DataView, at: number, id: number, fields: CommandFields): void {
  const entry = Command.view(data, at);
  entry.OPC = fields.opcode;
  entry.FLAGS = fields.flags ?? 0;
  entry.CID = id;
  entry.NSID = fields.namespaceId ?? 0;
  entry.MPTR = 0;
  data.setBigUint64(at + Command.offsets.PRP1, BigInt(fields.prp1 ?? 0), true);
  data.setBigUint64(at + Command.offsets.PRP2, BigInt(fields.prp2 ?? 0), true);
  for (let n = 0; n < 6; n++) data.setUint32(at + Command.offsets.CDW10 + n * 4, fields.dwords?.[n] ?? 0, true);
}
