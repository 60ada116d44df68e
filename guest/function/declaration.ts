/**
 * What an author gave as a device, looked at before anything is made of it: that everything has its type, and that
 * numbers fit where PCI puts them. What contradicts itself beyond that (BARs, capabilities, shared parts) is found by
 * the files that lay it out. All of it is a DeclarationError or a RangeError whose message names what it is about.
 */
import type { Device } from "../device.js";
import type {
  BarOptions,
  DeviceRegion,
  IoEventFdOptions,
  MsiOptions,
  PciCapabilities,
  PciIdentity,
  SharedPart,
} from "../pci/identity.js";
import type { RegisterFile } from "../pci/registers.js";
import { checkNames, type Names } from "../pci/registers.js";

export class DeclarationError extends Error {
  override readonly name = "DeclarationError";
}

const METHODS = [
  "start",
  "readBar",
  "writeBar",
  "sharedWritten",
  "ioEvent",
  "reset",
  "quiesce",
  "pause",
  "resume",
  "close",
  "inspect",
] as const satisfies readonly (keyof Device)[];

const MIGRATION_METHODS = ["save", "load", "preCopy"] as const;

/** Bits of each number of an identity. */
const IDS = {
  vendorId: 16,
  deviceId: 16,
  subsystemVendorId: 16,
  subsystemId: 16,
  revisionId: 8,
  classCode: 24,
} as const satisfies Partial<Record<keyof PciIdentity, number>>;
const IDENTITY: Names<Required<PciIdentity>> = {
  vendorId: true,
  deviceId: true,
  subsystemVendorId: true,
  subsystemId: true,
  revisionId: true,
  classCode: true,
  bars: true,
  rom: true,
  msix: true,
  intx: true,
  capabilities: true,
};
const BAR: Names<Required<BarOptions>> = {
  size: true,
  is64Bit: true,
  prefetchable: true,
  io: true,
  shared: true,
  ioeventfds: true,
};
const REGION: Names<Required<DeviceRegion>> = {
  type: true,
  subtype: true,
  size: true,
  readable: true,
  writable: true,
  shared: true,
  ioeventfds: true,
};
const SHARED_PART: Names<SharedPart> = { offset: true, size: true };
const IOEVENTFD: Names<Required<IoEventFdOptions>> = { offset: true, size: true, datamatch: true, shadow: true };
const MSIX: Names<NonNullable<PciIdentity["msix"]>> = { vectors: true, bar: true, offset: true };
const MSI: Names<Required<MsiOptions>> = { vectors: true, is64Bit: true, perVectorMasking: true };
const CAPABILITIES: Names<Required<PciCapabilities>> = {
  pm: true,
  pcie: true,
  msi: true,
  vendor: true,
  serialNumber: true,
  errorReporting: true,
  vendorExtended: true,
  extended: true,
};
const NEEDED = ["vendorId", "deviceId", "classCode"] as const;
/** What a bus answers with where nothing is. */
const NO_VENDOR = 0xffff;

/** Types say all of this, and JavaScript does not. @throws DeclarationError */
export function checkDeclaration(device: Device): void {
  if (!isObject(device)) throw new DeclarationError(`a device is an object, not ${show(device)}`);
  checkIdentity(device.identity);
  for (const name of METHODS) checkMethod("the device", device, name);
  checkSpelling(device);
  checkRegisters(device.registers);
  if (device.regions !== undefined && !Array.isArray(device.regions)) {
    throw new DeclarationError(`the device's regions are an array, not ${show(device.regions)}`);
  }
  const regions: readonly unknown[] = device.regions ?? [];
  for (const [n, region] of regions.entries()) {
    if (!isObject(region)) throw new DeclarationError(`the device's regions[${n}] is an object, not ${show(region)}`);
    checkNames(`regions[${n}]`, region as DeviceRegion, REGION);
    checkLists(`regions[${n}]`, region as Sharable);
  }
  if (device.migration === undefined) return;
  if (!isObject(device.migration)) {
    throw new DeclarationError(`the device's migration is an object, not ${show(device.migration)}`);
  }
  for (const name of MIGRATION_METHODS) checkMethod("the device's migration", device.migration, name);
}

function checkIdentity(identity: PciIdentity): void {
  if (!isObject(identity)) throw new DeclarationError(`the device's identity is an object, not ${show(identity)}`);
  checkNames("identity", identity, IDENTITY);
  for (const name of NEEDED) {
    if (identity[name] === undefined) throw new DeclarationError(`identity.${name} is missing`);
  }
  for (const [name, bits] of Object.entries(IDS)) {
    const value = identity[name as keyof typeof IDS];
    if (value === undefined || isUnsigned(value, bits)) continue;
    throw new DeclarationError(`identity.${name} is ${show(value)}: it must be a number of ${bits} bits, not negative`);
  }
  if (identity.vendorId === NO_VENDOR) {
    throw new DeclarationError("identity.vendorId is 0xffff, which tells a driver VM that no device is there");
  }
  if (!isObject(identity.bars)) {
    throw new DeclarationError(`identity.bars is an object with a BAR by its index, not ${show(identity.bars)}`);
  }
  for (const [bar, options] of Object.entries(identity.bars)) {
    if (!isObject(options)) throw new DeclarationError(`BAR ${bar} is an object with its size, not ${show(options)}`);
    checkNames(`BAR ${bar}`, options, BAR);
    if (typeof options.size !== "number") {
      throw new DeclarationError(`BAR ${bar}: its size is ${show(options.size)}: it must be a number of bytes`);
    }
    checkLists(`BAR ${bar}`, options);
  }
  const { rom, msix, capabilities, intx } = identity;
  if (intx !== undefined && typeof intx !== "boolean") {
    throw new DeclarationError(`identity.intx is ${show(intx)}: it must be true or false`);
  }
  if (rom !== undefined && !(rom instanceof Uint8Array)) {
    throw new DeclarationError(`identity.rom is a Uint8Array, not ${show(rom)}`);
  }
  for (const [name, value] of Object.entries({ msix, capabilities })) {
    if (value !== undefined && !isObject(value)) {
      throw new DeclarationError(`identity.${name} is an object, not ${show(value)}`);
    }
  }
  if (msix !== undefined) checkNames("identity.msix", msix, MSIX);
  if (capabilities === undefined) return;
  checkNames("identity.capabilities", capabilities, CAPABILITIES);
  if (isObject(capabilities.msi)) checkNames("identity.capabilities.msi", capabilities.msi, MSI);
}

interface Sharable {
  readonly shared?: unknown;
  readonly ioeventfds?: unknown;
}

function checkLists(what: string, { shared, ioeventfds }: Sharable): void {
  if (shared !== undefined && shared !== true && !isListOfObjects(shared)) {
    throw new DeclarationError(`${what}: shared is true or an array of { offset, size }, not ${show(shared)}`);
  }
  if (ioeventfds !== undefined && !isListOfObjects(ioeventfds)) {
    throw new DeclarationError(`${what}: ioeventfds is an array of { offset, size }, not ${show(ioeventfds)}`);
  }
  if (Array.isArray(shared)) for (const part of shared) checkNames(`${what}, shared`, part, SHARED_PART);
  if (Array.isArray(ioeventfds)) for (const one of ioeventfds) checkNames(`${what}, ioeventfds`, one, IOEVENTFD);
}

/** A register file may be of another copy of this package. */
function checkRegisters(files: Device["registers"]): void {
  if (files === undefined) return;
  if (!isObject(files))
    throw new DeclarationError(`the device's registers are RegisterFiles by BAR, not ${show(files)}`);
  for (const [bar, file] of Object.entries<RegisterFile | undefined>(files)) {
    if (typeof file?.size === "number" && typeof file.read === "function") continue;
    throw new DeclarationError(`registers[${bar}] is no RegisterFile: make one by new RegisterFile(size, { ... })`);
  }
}

/** A device may have members of its own, but not ones that differ from the interface's in capital letters alone. */
function checkSpelling(device: Device): void {
  for (let owner: object = device; owner !== null && owner !== Object.prototype; owner = Object.getPrototypeOf(owner)) {
    for (const name of Object.getOwnPropertyNames(owner)) {
      const meant = METHODS.find((method) => method !== name && method.toLowerCase() === name.toLowerCase());
      if (meant !== undefined) throw new DeclarationError(`the device's ${name} is never called: it must be ${meant}`);
    }
  }
}

function checkMethod<T extends object>(owner: string, object: T, name: keyof T & string): void {
  const value = object[name];
  if (value !== undefined && typeof value !== "function") {
    throw new DeclarationError(`${owner}'s ${name} is ${show(value)}: it must be a function`);
  }
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

function isListOfObjects(value: unknown): boolean {
  return Array.isArray(value) && value.every(isObject);
}

function isUnsigned(value: unknown, bits: number): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** bits;
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "function") return "a function";
  return isObject(value) ? (Array.isArray(value) ? "an array" : "an object") : String(value);
}
