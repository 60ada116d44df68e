/**
 * A device that shares: BAR 0 has registers, ioeventfds among them, and two parts that are memory; all of BAR 2 is
 * memory. Register 0x00 of BAR 0 counts accesses that reached the device; 0x08 reads, and 0x0c writes, the first word
 * of part 0, so that a driver VM without other means can tell that device and driver VM see the same memory.
 */
import type { Device, DeviceContext } from "../../guest/device.js";

export const FIRST = { offset: 0x4000, size: 0x2000 } as const;
export const SECOND = { offset: 0x1000, size: 0x1000 } as const;
export const WHOLE = 0x4000;
export const Registers = { ACCESSES: 0, READ_SHARED: 8, WRITE_SHARED: 0xc, SCRATCH: 0x40 } as const;
/** Indices of BAR 0's ioeventfds. */
export const Events = { PLAIN: 0, SEVEN: 1, NINE: 2, SHADOW: 3, ANY_SIZE: 4 } as const;
export const EVENTS = [
  { offset: 0x100, size: 4 },
  { offset: 0x104, size: 4, datamatch: 7 },
  { offset: 0x104, size: 4, datamatch: 9 },
  { offset: 0x108, size: 8, shadow: true },
  { offset: 0x110, size: 0 },
] as const;
/** What `reset` puts at the start of the second part. */
export const PREPARED = 0x52;

export class SharingDevice implements Device {
  readonly identity = {
    vendorId: 0xfff4,
    deviceId: 0x0004,
    classCode: 0xff0000,
    bars: {
      0: { size: 0x8000, shared: [FIRST, SECOND], ioeventfds: EVENTS },
      2: { size: WHOLE, is64Bit: true, prefetchable: true, shared: true },
    },
    msix: { vectors: 2, bar: 4, offset: 0 },
  } as const;
  readonly accesses: string[] = [];
  readonly events: string[] = [];
  /** Assign to make it fail. */
  onEvent: () => void = () => {};
  readonly #waiting = new Set<() => void>();
  #context: DeviceContext | undefined;
  #scratch = 0;

  start(context: DeviceContext): void {
    this.#context = context;
    this.reset();
  }

  /** The memory of a part, as the device has it. */
  shared(bar: number, index?: number): Uint8Array<ArrayBuffer> {
    if (this.#context === undefined) throw new Error("not started");
    return this.#context.shared(bar, index);
  }

  readBar(bar: number, offset: number, size: number): number {
    this.accesses.push(`r${size} ${bar}:${offset.toString(16)}`);
    if (offset === Registers.ACCESSES) return this.accesses.length;
    return offset === Registers.READ_SHARED ? this.#word().getUint32(0, true) : this.#scratch;
  }

  writeBar(bar: number, offset: number, size: number, value: number): void {
    this.accesses.push(`w${size} ${bar}:${offset.toString(16)}=${value.toString(16)}`);
    if (offset === Registers.WRITE_SHARED) this.#word().setUint32(0, value, true);
    this.#scratch = value;
  }

  ioEvent(bar: number, index: number, value: number | undefined): void {
    this.events.push(`${bar}:${index}=${value}`);
    for (const look of this.#waiting) look();
    this.onEvent();
  }

  /** Waits until at least `count` events were heard of. */
  heard(count: number): Promise<void> {
    return new Promise((resolve) => {
      const look = () => {
        if (this.events.length < count) return;
        this.#waiting.delete(look);
        resolve();
      };
      this.#waiting.add(look);
      look();
    });
  }

  reset(): void {
    this.#scratch = 0;
    this.shared(0, 1)[0] = PREPARED;
  }

  quiesce(): void {}

  close(): void {}

  #word(): DataView {
    const bytes = this.shared(0, 0);
    return new DataView(bytes.buffer, bytes.byteOffset, 4);
  }
}

export default function create(): Device {
  return new SharingDevice();
}
