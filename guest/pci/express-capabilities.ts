/**
 * The capabilities of PCI Express as register tables (PCI Express Base 3.0): the one in the conventional list (7.8),
 * and of the extended space advanced error reporting (7.10), device serial number (7.12) and vendor-specific (7.18).
 *
 * The link is a fiction and never changes. Left out: active state power management, slots and root ports, error
 * injection, and that sticky bits outlive a function-level reset: ours are reset with the rest.
 */
import {
  ErrorReporting as Aer,
  Express,
  ExtendedCapability as ExtendedId,
  Capability as Id,
  SerialNumber,
  VendorExtended,
} from "../../shared/spec/pci.js";
import type { Capability } from "./capabilities.js";
import type { ExpressOptions, OtherExtendedCapability, VendorExtendedCapability } from "./identity.js";
import type { Register } from "./registers.js";

/** The number that stands for each speed (GT/s), lanes and payload (bytes, as the power of two above 128). */
const SPEEDS: readonly number[] = [0, 2.5, 5];
const WIDTHS: readonly number[] = [1, 2, 4, 8, 12, 16, 32];
const PAYLOADS: readonly number[] = [128, 256, 512, 1024, 2048, 4096];

/**
 * `functionReset` is called on Initiate Function Level Reset, which reads as zero. @throws RangeError for an option
 * that does not exist
 */
export function express(options: ExpressOptions, functionReset: () => void): Capability {
  const { linkSpeed = 2.5, linkWidth = 1, maxPayload = 128 } = options;
  const speed = SPEEDS.indexOf(linkSpeed);
  const payload = PAYLOADS.indexOf(maxPayload);
  if (speed < 1 || payload < 0 || !WIDTHS.includes(linkWidth)) {
    throw new RangeError(`PCI Express: there is no ${linkSpeed} GT/s, x${linkWidth} or payload of ${maxPayload} bytes`);
  }
  const link = speed | (linkWidth << Express.LINK_WIDTH_SHIFT);
  const speeds = (2 ** speed - 1) << Express.LINK_CAPABILITIES_2_SPEEDS_SHIFT;
  const registers: Record<string, Register> = {
    flags: { offset: Express.FLAGS, size: 2, reset: Express.FLAGS_ENDPOINT_V2 },
    deviceCapabilities: {
      offset: Express.DEVICE_CAPABILITIES,
      size: 4,
      reset: Express.DEVICE_CAPABILITIES_VALUE | payload,
    },
    deviceControl: {
      offset: Express.DEVICE_CONTROL,
      size: 2,
      reset: Express.DEVICE_CONTROL_RESET_VALUE,
      writable: Express.DEVICE_CONTROL_WRITABLE,
      onWrite: (_value, _previous, written) => {
        if ((written & Express.DEVICE_CONTROL_FLR) !== 0) functionReset();
      },
    },
    deviceStatus: { offset: Express.DEVICE_STATUS, size: 2, writeOneToClear: Express.DEVICE_STATUS_ERRORS },
    linkCapabilities: {
      offset: Express.LINK_CAPABILITIES,
      size: 4,
      reset: link | Express.LINK_CAPABILITIES_ASPM_OPTIONALITY,
    },
    linkControl: { offset: Express.LINK_CONTROL, size: 2, writable: Express.LINK_CONTROL_WRITABLE },
    linkStatus: { offset: Express.LINK_STATUS, size: 2, reset: link },
    deviceCapabilities2: { offset: Express.DEVICE_CAPABILITIES_2, size: 4, reset: Express.COMPLETION_TIMEOUT_DISABLE },
    deviceControl2: { offset: Express.DEVICE_CONTROL_2, size: 2, writable: Express.COMPLETION_TIMEOUT_DISABLE },
    linkCapabilities2: { offset: Express.LINK_CAPABILITIES_2, size: 4, reset: speeds },
    linkControl2: {
      offset: Express.LINK_CONTROL_2,
      size: 2,
      reset: speed,
      writable: Express.LINK_CONTROL_2_WRITABLE,
    },
  };
  return { name: "pcie", id: Id.PCI_EXPRESS, size: Express.SIZE, registers };
}

/** @throws RangeError when it is not an EUI-64 */
export function serialNumber(number: string | bigint): Capability {
  const value = typeof number === "bigint" ? number : parseSerialNumber(number);
  if (value < 0n || value >= 1n << 64n) throw new RangeError(`the serial number ${number} does not fit into 64 bits`);
  return {
    name: "serialNumber",
    id: ExtendedId.SERIAL_NUMBER,
    size: SerialNumber.SIZE,
    registers: {
      lower: { offset: SerialNumber.LOWER, size: 4, reset: Number(value & 0xffff_ffffn) },
      upper: { offset: SerialNumber.UPPER, size: 4, reset: Number(value >> 32n) },
    },
  };
}

function parseSerialNumber(text: string): bigint {
  if (!/^[0-9a-f]{2}([-:]?)(?:[0-9a-f]{2}\1){6}[0-9a-f]{2}$/i.test(text)) {
    throw new RangeError(
      `the serial number "${text}" is not 16 hexadecimal digits, with "-" or ":" between bytes or without`,
    );
  }
  return BigInt(`0x${text.replaceAll(/[-:]/g, "")}`);
}

/** Registers that nothing sets: their masks and severities hold what software writes. The header log reads as zeros. */
export function errorReporting(): Capability {
  const uncorrectable = Aer.UNCORRECTABLE_ERRORS;
  const correctable = Aer.CORRECTABLE_ERRORS;
  return {
    name: "errorReporting",
    id: ExtendedId.ERROR_REPORTING,
    size: Aer.SIZE,
    registers: {
      uncorrectableStatus: { offset: Aer.UNCORRECTABLE_STATUS, size: 4, writeOneToClear: uncorrectable },
      uncorrectableMask: { offset: Aer.UNCORRECTABLE_MASK, size: 4, writable: uncorrectable },
      severity: { offset: Aer.UNCORRECTABLE_SEVERITY, size: 4, reset: Aer.FATAL_ERRORS, writable: uncorrectable },
      correctableStatus: { offset: Aer.CORRECTABLE_STATUS, size: 4, writeOneToClear: correctable },
      correctableMask: { offset: Aer.CORRECTABLE_MASK, size: 4, reset: Aer.ADVISORY, writable: correctable },
    },
  };
}

export function vendorExtended(name: string, { id, revision, size, registers }: VendorExtendedCapability): Capability {
  const fits = (value: number, most: number) => Number.isInteger(value) && value >= 0 && value <= most;
  if (!fits(id, VendorExtended.MAX_ID) || !fits(revision, VendorExtended.MAX_REVISION)) {
    throw new RangeError(`there is no vendor-specific extended capability ${id} of revision ${revision}`);
  }
  const header: Register = {
    offset: VendorExtended.HEADER,
    size: 4,
    reset: (id | (revision << 16) | (size << 20)) >>> 0,
  };
  return { name, id: ExtendedId.VENDOR, size, registers: { ...registers, $header: header } };
}

export function otherExtended(name: string, { id, version, size, registers }: OtherExtendedCapability): Capability {
  return { name, id, version, size, registers };
}
