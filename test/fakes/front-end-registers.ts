/** Registers as the guest's loads and stores reach them: virtio's in BAR 2, and config space. */
import type { Registers } from "../../guest/vfio/pci-function.js";
import { CommonCfg } from "../../shared/spec/virtio.js";
import type { CommonRegisters } from "./front-end-common.js";
import { Layout, NOTIFY_MULTIPLIER } from "./front-end-config.js";

/** What is behind BAR 2. */
export interface VirtioDevice {
  readonly common: CommonRegisters;
  readDeviceConfig(offset: number, width: number): number;
  writeDeviceConfig(): void;
  notify(queue: number): void;
  /** The eventfd of each queue's notifications, or -1. */
  readonly kicks: Int32Array;
}

/** BAR 2. */
export class VirtioRegisters implements Registers {
  readonly #device: VirtioDevice;

  constructor(device: VirtioDevice) {
    this.#device = device;
  }
  get kicks(): Int32Array {
    return this.#device.kicks;
  }
  read8(offset: number): number {
    return this.#read(offset, 1);
  }
  read16(offset: number): number {
    return this.#read(offset, 2);
  }
  read32(offset: number): number {
    return this.#read(offset, 4);
  }
  write8(offset: number, value: number): void {
    this.#write(offset, 1, value);
  }
  write16(offset: number, value: number): void {
    this.#write(offset, 2, value);
  }
  write32(offset: number, value: number): void {
    this.#write(offset, 4, value);
  }
  #read(offset: number, width: number): number {
    if (offset + width <= CommonCfg.size) return this.#device.common.read(offset, width);
    if (offset >= Layout.DEVICE && offset < Layout.NOTIFY) {
      return this.#device.readDeviceConfig(offset - Layout.DEVICE, width);
    }
    return 0;
  }
  #write(offset: number, width: number, value: number): void {
    if (offset + width <= CommonCfg.size) this.#device.common.write(offset, width, value);
    else if (offset >= Layout.NOTIFY) this.#device.notify((offset - Layout.NOTIFY) / NOTIFY_MULTIPLIER);
    else if (offset >= Layout.DEVICE) this.#device.writeDeviceConfig();
  }
}

/** Config space; `written` hears of each write, with the offset of its 16-bit word. */
export function bytesAsRegisters(bytes: Uint8Array<ArrayBuffer>, written: (offset: number) => void): Registers {
  const data = new DataView(bytes.buffer);
  const after = (offset: number) => written(offset & ~1);
  return {
    read8: (offset) => data.getUint8(offset),
    read16: (offset) => data.getUint16(offset, true),
    read32: (offset) => data.getUint32(offset, true),
    write8(offset, value) {
      data.setUint8(offset, value);
      after(offset);
    },
    write16(offset, value) {
      data.setUint16(offset, value, true);
      after(offset);
    },
    write32(offset, value) {
      data.setUint32(offset, value, true);
      after(offset);
    },
  };
}

export function littleEndian(bytes: Uint8Array, offset: number, width: number): number {
  let value = 0;
  for (let n = width - 1; n >= 0; n--) value = value * 256 + (bytes[offset + n] ?? 0);
  return value;
}

/** Registers of any width by one function for reads and one for writes. */
export function registersOver(
  read: (offset: number, width: number) => number,
  write: (offset: number, width: number, value: number) => void,
): Registers {
  return {
    read8: (offset) => read(offset, 1),
    read16: (offset) => read(offset, 2),
    read32: (offset) => read(offset, 4),
    write8: (offset, value) => write(offset, 1, value),
    write16: (offset, value) => write(offset, 2, value),
    write32: (offset, value) => write(offset, 4, value),
  };
}
