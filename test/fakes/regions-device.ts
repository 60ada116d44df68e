/**
 * A device with regions of its own, each of another kind: registers that are trapped, with ioeventfds behind them;
 * memory in part; memory as a whole; one that is only read; one that is only written.
 */
import { type Device, type DeviceContext, type DeviceRegion, FIRST_DEVICE_REGION } from "../../guest/device.js";
import { RegisterFile } from "../../guest/pci/registers.js";

/** Indices. */
export const Own = {
  REGISTERS: FIRST_DEVICE_REGION,
  PART: FIRST_DEVICE_REGION + 1,
  WHOLE: FIRST_DEVICE_REGION + 2,
  READ_ONLY: FIRST_DEVICE_REGION + 3,
  WRITE_ONLY: FIRST_DEVICE_REGION + 4,
} as const;
/** A vendor's type: bit 31, and the PCI vendor id. */
export const TYPE = 0x8000_fff4;
export const PARTS = [
  { offset: 0x2000, size: 0x1000 },
  { offset: 0, size: 0x1000 },
] as const;
export const EVENT = { offset: 0x20, size: 4, datamatch: 5 } as const;

export class RegionsDevice implements Device {
  readonly identity = { vendorId: 0xfff4, deviceId: 0x0009, classCode: 0xff0000, bars: { 0: { size: 0x1000 } } };
  readonly regions: readonly DeviceRegion[] = [
    { type: TYPE, subtype: 1, size: 100, ioeventfds: [EVENT] },
    { type: TYPE, subtype: 2, size: 0x3800, shared: PARTS },
    { type: 1, subtype: 0xffff_ffff, size: 0x2000, shared: true },
    { type: 2, subtype: 0, size: 10, writable: false },
    { type: 3, subtype: 0, size: 10, readable: false },
  ];
  readonly registers = {
    [Own.REGISTERS]: new RegisterFile(8, {
      ID: { offset: 0, size: 4, reset: 0x1234_5678 },
      SCRATCH: { offset: 4, size: 4, writable: 0xffff },
    }),
  };
  readonly migration = {};
  readonly accesses: string[] = [];
  readonly events: string[] = [];
  context: DeviceContext | undefined;
  /** Assign to be told of an event. */
  onEvent: () => void = () => {};

  start(context: DeviceContext): void {
    this.context = context;
  }

  readBar(region: number, offset: number, size: number): number {
    this.accesses.push(`r${size} ${region}:${offset}`);
    return offset + 1;
  }

  writeBar(region: number, offset: number, size: number, value: number): void {
    this.accesses.push(`w${size} ${region}:${offset}=${value}`);
  }

  ioEvent(region: number, index: number, value: number | undefined): void {
    this.events.push(`${region}:${index}=${value}`);
    this.onEvent();
  }
}

/** For `vfio-user-device run`. */
export default function create(): Device {
  return new RegionsDevice();
}
