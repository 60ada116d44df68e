/**
 * A device for attacks: registers that do DMA and interrupts on command, as the copy device's
 * (test/fakes/copy-device.ts), but with bounds on what one command costs, and true to its contract whatever it is told.
 */
import { type Device, type DeviceContext, DmaError } from "../../guest/device.js";
import { getUint, setUint } from "../../shared/struct/struct.js";
import { BAR_SIZE, Commands, Registers, Statuses } from "../fakes/copy-device.js";

const MAX_LENGTH = 0x3fff;
const MAX_JOBS = 32;
const STATE_SIZE = 1024;

/** Memory in front of registers that may be ioeventfds. */
const SHARING_BAR = {
  size: 0x4000,
  prefetchable: true,
  shared: [{ offset: 0x1000, size: 0x1000 }],
  ioeventfds: [
    { offset: 0x10, size: 4, datamatch: 5 },
    { offset: 0x20, size: 0 },
    { offset: 0x28, size: 8, shadow: true },
  ],
} as const;

export class FuzzDevice implements Device {
  readonly identity = {
    vendorId: 0xfff4,
    deviceId: 0x0003,
    classCode: 0xff0000,
    bars: { 0: { size: BAR_SIZE, is64Bit: true }, 4: { size: 64, io: true }, 5: SHARING_BAR },
    rom: Uint8Array.of(0x55, 0xaa, 1, 2, 3),
    msix: { vectors: 8, bar: 2, offset: 0 },
    intx: true,
    capabilities: {
      pm: { softReset: true },
      pcie: { linkSpeed: 5, linkWidth: 16, maxPayload: 512 },
      msi: { vectors: 8, perVectorMasking: true },
      vendor: [{ size: 8, registers: { vendorScratch: { offset: 4, size: 4, writable: 0xff00ff00 } } }],
      serialNumber: "00-11-22-33-44-55-66-77",
      errorReporting: true,
    },
  } as const;
  readonly regions = [
    { type: 1, subtype: 1, size: 4096, shared: true },
    { type: 1, subtype: 2, size: 100, writable: false, ioeventfds: [{ offset: 0, size: 0 }] },
    { type: 1, subtype: 3, size: 0x2001, shared: [{ offset: 0x1000, size: 0x1000 }] },
  ] as const;
  readonly #data = new DataView(new ArrayBuffer(BAR_SIZE));
  /** State of 1 KiB, and a piece of it in front of the rest. */
  readonly migration = {
    save: () => new Uint8Array(this.#data.buffer, 0, STATE_SIZE).slice(),
    load: (state: Uint8Array, pieces: readonly Uint8Array[]) => {
      if (state.length !== STATE_SIZE || pieces.some((piece) => piece.length > 8)) throw new RangeError("not a state");
      new Uint8Array(this.#data.buffer).set(state);
    },
    preCopy: (first: boolean) => (first ? Uint8Array.of(1, 2, 3) : undefined),
  };
  readonly #jobs = new Set<Promise<void>>();
  #context: DeviceContext | undefined;

  start(context: DeviceContext): void {
    this.#context = context;
  }

  readBar(bar: number, offset: number, size: number): number {
    if (bar !== 0) return 0;
    return getUint(this.#data, offset, size);
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    if (bar !== 0) return;
    setUint(this.#data, offset, size, value);
    if (offset === Registers.COMMAND) this.#run(value);
  }

  ioEvent(_bar: number, _index: number, value: number | undefined): void {
    this.#data.setUint32(Registers.SCRATCH, value ?? 0, true);
  }

  async reset(): Promise<void> {
    await this.quiesce();
    new Uint8Array(this.#data.buffer).fill(0);
  }

  async quiesce(): Promise<void> {
    await Promise.all(this.#jobs);
  }

  close(): void {}

  #run(command: number): void {
    const context = this.#context;
    if (context === undefined) throw new Error("not started");
    const length = this.#data.getUint32(Registers.LENGTH, true) & MAX_LENGTH;
    if (command === Commands.TRIGGER) context.interrupts.trigger(length % this.identity.msix.vectors);
    if ((command === Commands.COPY || command === Commands.COPY_SYNC) && this.#jobs.size < MAX_JOBS) {
      const job = this.#copy(context, length, command === Commands.COPY_SYNC).finally(() => this.#jobs.delete(job));
      this.#jobs.add(job);
    }
  }

  async #copy({ dma, interrupts }: DeviceContext, length: number, sync: boolean): Promise<void> {
    const source = Number(this.#data.getBigUint64(Registers.SOURCE, true));
    const target = Number(this.#data.getBigUint64(Registers.TARGET, true));
    const bytes = new Uint8Array(length);
    let status: number = Statuses.DONE;
    try {
      if (sync) {
        dma.readSync(source, bytes);
        dma.writeSync(target, bytes);
      } else {
        await dma.read(source, bytes);
        await dma.write(target, bytes);
      }
    } catch (error) {
      status = error instanceof DmaError ? Statuses.DMA_ERROR : Statuses.OTHER_ERROR;
    }
    this.#data.setUint32(Registers.STATUS, status, true);
    interrupts.trigger(status === Statuses.DONE ? 1 : 0);
  }
}
