/**
 * A small PCI device for tests: registers that do DMA and interrupts on command, and that remember how they were
 * accessed. Registers of BAR 0: 0x00 source and 0x08 target (64 bits each), 0x10 length, 0x14 command, 0x18 status.
 */
import {
  type Device,
  type DeviceContext,
  DmaError,
  type PciCapabilities,
  type PciIdentity,
} from "../../guest/device.js";
import { getI64, getUint, setUint } from "../../shared/struct/struct.js";

export const Registers = { SOURCE: 0, TARGET: 8, LENGTH: 0x10, COMMAND: 0x14, STATUS: 0x18, SCRATCH: 0x40 } as const;
/** COPY moves bytes, then triggers vector 1 (0 when it failed). */
export const Commands = { COPY: 1, COPY_SYNC: 2, TRIGGER: 3, THROW: 4 } as const;
export const Statuses = { IDLE: 0, DONE: 1, DMA_ERROR: 2, OTHER_ERROR: 3 } as const;
export const BAR_SIZE = 0x1000;

export class CopyDevice implements Device {
  readonly identity: PciIdentity;
  readonly accesses: string[] = [];
  readonly events: string[] = [];
  /** Assign to make the promises wait, or fail. */
  onReset: () => Promise<void> = async () => {};
  onQuiesce: () => Promise<void> = async () => {};
  #context: DeviceContext | undefined;
  #job: Promise<void> = Promise.resolve();
  readonly #data = new DataView(new ArrayBuffer(BAR_SIZE));

  constructor(capabilities?: PciCapabilities) {
    this.identity = {
      vendorId: 0xfff4,
      deviceId: 0x0002,
      classCode: 0xff0000,
      bars: { 0: { size: BAR_SIZE, is64Bit: true } },
      msix: { vectors: 4, bar: 2, offset: 0 },
      intx: true,
      ...(capabilities && { capabilities }),
    };
  }

  get context(): DeviceContext {
    if (this.#context === undefined) throw new Error("not started");
    return this.#context;
  }

  start(context: DeviceContext): void {
    this.#context = context;
    this.events.push("start");
  }

  readBar(bar: number, offset: number, size: number): number {
    this.accesses.push(`r${size} ${bar}:${offset.toString(16)}`);
    return getUint(this.#data, offset, size);
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    this.accesses.push(`w${size} ${bar}:${offset.toString(16)}=${value.toString(16)}`);
    setUint(this.#data, offset, size, value);
    if (offset === Registers.COMMAND) this.#run(value);
  }

  async reset(): Promise<void> {
    this.events.push("reset");
    await this.onReset();
    await this.#job;
    new Uint8Array(this.#data.buffer).fill(0);
  }

  async quiesce(): Promise<void> {
    this.events.push("quiesce");
    await this.onQuiesce();
    await this.#job;
  }

  close(): void {
    this.events.push("close");
  }

  #run(command: number): void {
    if (command === Commands.THROW) throw new Error("a bug");
    if (command === Commands.TRIGGER) this.context.interrupts.trigger(this.#data.getUint32(Registers.LENGTH, true));
    if (command === Commands.COPY || command === Commands.COPY_SYNC) {
      this.#job = this.#copy(command === Commands.COPY_SYNC).then(
        () => this.#finish(Statuses.DONE, 1),
        (error) => this.#finish(error instanceof DmaError ? Statuses.DMA_ERROR : Statuses.OTHER_ERROR, 0),
      );
    }
  }

  #finish(status: number, vector: number): void {
    this.#data.setUint32(Registers.STATUS, status, true);
    this.context.interrupts.trigger(vector);
  }

  async #copy(sync: boolean): Promise<void> {
    const { dma } = this.context;
    const source = getI64(this.#data, Registers.SOURCE);
    const target = getI64(this.#data, Registers.TARGET);
    const bytes = new Uint8Array(this.#data.getUint32(Registers.LENGTH, true));
    if (sync) {
      dma.readSync(source, bytes);
      dma.writeSync(target, bytes);
    } else {
      await dma.read(source, bytes);
      await dma.write(target, bytes);
    }
  }
}
