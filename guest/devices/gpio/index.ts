/**
 * General-purpose pins as a PCI device: 16 outputs, 16 inputs, an interrupt when chosen inputs change. All of its state
 * is in registers, so it can be moved to another process, pins as they are; only what came is left to be checked.
 */
import { UserError } from "../../../shared/errors.js";
import type { Device, DeviceContext } from "../../device.js";
import { RegisterFile } from "../../pci/registers.js";

/** No vendor fff0 is known to the PCI ID database; who ships a device puts identifiers of their own here. */
export const VENDOR_ID = 0xfff0;
export const DEVICE_ID = 0x0002;

const PINS = 16;
const ALL = 2 ** PINS - 1;

/**
 * What moves the inputs: the outputs, which they are wired to; their being read, which they count; or the clock, whose
 * periods they count.
 */
export const INPUTS: readonly string[] = ["outputs", "reads", "time"];
export const DEFAULT_PERIOD_MS = 1000;
const MAX_PERIOD_MS = 3_600_000;

export interface GpioOptions {
  /** One of INPUTS; the first when left out. */
  readonly inputs?: string;
  /** For "time": milliseconds from one number to the next. */
  readonly periodMs?: number;
}

/** @throws UserError for an option that will not do */
export function createGpio({ inputs = "outputs", periodMs = DEFAULT_PERIOD_MS }: GpioOptions = {}): Device {
  if (!INPUTS.includes(inputs)) {
    throw new UserError(`what moves the inputs is one of ${INPUTS.join(", ")}, not "${inputs}"`, 2);
  }
  if (!Number.isInteger(periodMs) || periodMs < 1 || periodMs > MAX_PERIOD_MS) {
    throw new UserError(`a period is 1 to ${MAX_PERIOD_MS} milliseconds, not ${periodMs}`, 2);
  }
  let context: DeviceContext;
  let clock: NodeJS.Timeout | undefined;

  /** A bit for each pin. */
  const registers = new RegisterFile(0x20, {
    INPUT: { offset: 0x00, size: 4, onRead: readInputs },
    OUTPUT: { offset: 0x04, size: 4, writable: ALL, onWrite: writeOutputs },
    /** Inputs whose way up is an event, and those whose way down is one. */
    RISING: { offset: 0x08, size: 4, writable: ALL },
    FALLING: { offset: 0x0c, size: 4, writable: ALL },
    /** Inputs that had an event since 1 was written here. The interrupt is up while there are any. */
    EVENTS: { offset: 0x10, size: 4, writeOneToClear: ALL, onWrite: acknowledge },
    PINS: { offset: 0x14, size: 4, reset: PINS },
  });

  function readInputs(): number {
    const pins = registers.get("INPUT");
    if (inputs === "reads") count();
    return pins;
  }
  function writeOutputs(pins: number): void {
    if (inputs === "outputs") setInputs(pins);
  }
  function acknowledge(left: number): void {
    if (left === 0) context.interrupts.lower();
  }
  function count(): void {
    setInputs((registers.get("INPUT") + 1) & ALL);
  }
  function setInputs(pins: number): void {
    const before = registers.get("INPUT");
    registers.set("INPUT", pins);
    const rose = pins & ~before & registers.get("RISING");
    const fell = before & ~pins & registers.get("FALLING");
    const events = registers.get("EVENTS");
    registers.set("EVENTS", events | rose | fell);
    if (((rose | fell) & ~events) !== 0) context.interrupts.raise(0);
  }
  function stopClock(): void {
    clearInterval(clock);
    clock = undefined;
  }
  function startClock(): void {
    stopClock();
    if (inputs === "time") clock = setInterval(count, periodMs).unref();
  }

  return {
    identity: {
      vendorId: VENDOR_ID,
      deviceId: DEVICE_ID,
      classCode: 0x08_80_00, // base system peripheral, other
      bars: { 0: { size: 0x1000 }, 1: { size: 0x1000 } },
      msix: { vectors: 1, bar: 1, offset: 0 },
      intx: true,
    },
    registers: { 0: registers },
    start(given) {
      context = given;
      startClock();
    },
    pause: stopClock,
    resume: startClock,
    close: stopClock,
    migration: {
      load() {
        const pins = (["INPUT", "OUTPUT", "RISING", "FALLING", "EVENTS"] as const).map((name) => registers.get(name));
        if (registers.get("PINS") !== PINS || pins.some((bits) => bits > ALL)) throw new RangeError("other pins");
      },
    },
  };
}
