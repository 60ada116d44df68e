/**
 * An NVMe controller whose disks are files, block devices or memory.
 *
 * To be read in this order: this file, what a controller may be made of; controller.ts, its parts, registers.ts, its
 * data sheet, and lifecycle.ts, its states. Then queues/ (from engine.ts on), how commands come and go; commands/
 * (admin.ts, io.ts), what they do; and storage/ (storage.ts), the disks. spec.ts has the specification's numbers and
 * layouts. control-methods.ts is what an operator can have it do while it runs, faults.ts among it.
 */
import { createHash, randomBytes } from "node:crypto";
import { realpath, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { UserError } from "../../../shared/errors.js";
import { type Disk, NvmeController } from "./controller.js";
import type { Polling } from "./queues/lanes.js";
import { LBA_FORMATS } from "./storage/namespace.js";
import { CACHES, openMemory, openStorage, type StorageOptions } from "./storage/open-storage.js";
import type { Storage } from "./storage/storage.js";

/**
 * Drivers bind to the class code, so the identifiers only have to collide with nobody's: no vendor fff0 is known to the
 * PCI ID database. Who ships a device puts identifiers of their own here.
 */
const VENDOR_ID = 0xfff0;
const DEVICE_ID = 0x0001;

/** I/O queues of each kind when nothing else is asked for, and at most. Each takes an interrupt vector. */
export const DEFAULT_QUEUES = 16;
export const MAX_QUEUES = 64;
const MAX_NAMESPACES = 64;
/** Threads that serve I/O queues when nothing else is asked for, and at most. */
/** None: a thread may sleep through the answer to a command that it had sent up. */
export const DEFAULT_LANES = 0;
export const MAX_LANES = 16;

/** 1 MiB for one command. */
const MDTS = 8;
const FIRMWARE = "1.0";

/** What the controller is, apart from its disks. */
export interface ControllerChoices {
  /** ASCII, at most 20 characters. Controllers of one driver VM need different ones. */
  readonly serial: string;
  /** ASCII, at most 40 characters. */
  readonly model?: string;
  /** 512 or 4096 bytes; what a disk was formatted with, or else 512, or what a sector has, when left out. */
  readonly blockSize?: number;
  /** I/O queues of each kind, 1 to MAX_QUEUES. */
  readonly queues?: number;
  readonly vendorId?: number;
  readonly deviceId?: number;
  /** "shared": the driver VM's VMM may map the doorbells, and the device polls them; "trapped" when left out. */
  readonly doorbells?: "trapped" | "shared";
  /** With shared doorbells: "always" takes a CPU for each lane while a driver is there; "adaptive" when left out. */
  readonly poll?: Polling;
  /** Threads that serve I/O queues, 0 (in the event loop) to MAX_LANES; DEFAULT_LANES when left out. */
  readonly lanes?: number;
  /** The CPU of each lane; any when left out. */
  readonly laneCpus?: readonly number[];
}

/** What `doorbells` and `poll` may be, the usual first. */
export const DOORBELLS = ["trapped", "shared"] as const;
export const POLLING = ["adaptive", "always"] as const;

export interface NvmeOptions extends Omit<ControllerChoices, "serial">, StorageOptions {
  /** The disks' contents: files or block devices. Namespace 1 is the first. */
  readonly files?: readonly string[];
  /** Disks in memory, which are gone with the process, by their sizes in bytes. They come behind the files. */
  readonly memory?: readonly number[];
  /** Made from the first file's path when left out. */
  readonly serial?: string;
}

/** A storage, and what to call it when it will not do. */
export interface NamedStorage {
  readonly name: string;
  readonly storage: Storage;
}

/**
 * Makes an NVMe controller with a namespace for each disk. @throws UserError for an option or a file that will not do
 */
export async function createNvme(options: NvmeOptions): Promise<NvmeController> {
  const { files = [], memory = [], cache } = options;
  if (cache !== undefined && !CACHES.includes(cache)) {
    throw new UserError(`a disk's cache is ${CACHES.join(" or ")}, not "${cache}"`, 2);
  }
  const storages: NamedStorage[] = [];
  try {
    await checkDifferent(files);
    for (const file of files) {
      storages.push({ name: `the disk's file ${file}`, storage: await openStorage(file, options) });
    }
    for (const size of memory) storages.push({ name: "a disk in memory", storage: openMemory(size) });
    return createController(storages, { ...options, serial: options.serial ?? (await serialOf(files)) });
  } catch (error) {
    await Promise.all(storages.map(({ storage }) => storage.close()));
    throw error;
  }
}

/** @throws UserError for a file that is there twice, by whatever names */
async function checkDifferent(files: readonly string[]): Promise<void> {
  const names = new Map<string, string>();
  for (const file of files) {
    const status = await stat(file, { bigint: true }).catch(() => undefined);
    // What has no status cannot be opened either, and that says why.
    if (status === undefined) continue;
    const { dev, ino, rdev } = status;
    const key = status.isBlockDevice() ? `device ${rdev}` : `${dev} ${ino}`;
    const other = names.get(key);
    if (other !== undefined) {
      const both = other === file ? file : `${other} and ${file}, which are the same,`;
      throw new UserError(`the disk's file ${both} can be one namespace only: give it once`, 2);
    }
    names.set(key, file);
  }
}

async function serialOf([file]: readonly string[]): Promise<string> {
  const name = file === undefined ? randomBytes(16) : await realpath(file).catch(() => resolve(file));
  return createHash("sha256").update(name).digest("hex").slice(0, 16).toUpperCase();
}

/** The same over any storages. @throws UserError */
export function createController(storages: readonly NamedStorage[], choices: ControllerChoices): NvmeController {
  const { serial, model = "virtio-vfio-user NVMe", queues = DEFAULT_QUEUES } = choices;
  const { vendorId = VENDOR_ID, deviceId = DEVICE_ID } = choices;
  if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
    throw new UserError(`an NVMe controller has 1 to ${MAX_QUEUES} I/O queues here, not ${queues}`, 2);
  }
  for (const [what, id] of [
    ["vendor", vendorId],
    ["device", deviceId],
  ] as const) {
    if (!Number.isInteger(id) || id < 0 || id > 0xffff) {
      throw new UserError(`a PCI ${what} ID has 16 bits, unlike ${id}`, 2);
    }
    if (what === "vendor" && id === 0xffff) {
      throw new UserError("a PCI vendor ID of 0xffff says that there is no device: take another", 2);
    }
  }
  if (storages.length < 1 || storages.length > MAX_NAMESPACES) {
    throw new UserError(`an NVMe controller has 1 to ${MAX_NAMESPACES} disks here, not ${storages.length}`, 2);
  }
  const { doorbells = "trapped", poll, lanes = DEFAULT_LANES, laneCpus } = choices;
  if (!Number.isInteger(lanes) || lanes < 0 || lanes > MAX_LANES) {
    throw new UserError(`an NVMe controller has 0 to ${MAX_LANES} lanes here, not ${lanes}`, 2);
  }
  if (laneCpus !== undefined && (lanes === 0 || laneCpus.length !== lanes)) {
    throw new UserError(`${lanes} lanes need as many CPUs, not ${laneCpus.length}`, 2);
  }
  if (!DOORBELLS.includes(doorbells)) throw new UserError(`doorbells are trapped or shared, not "${doorbells}"`, 2);
  if (poll !== undefined && !POLLING.includes(poll)) {
    throw new UserError(`doorbells are polled ${POLLING.join(" or ")}, not "${poll}"`, 2);
  }
  if (poll !== undefined && doorbells === "trapped") throw new UserError("only shared doorbells are polled", 2);
  checkText("serial number", serial, 20);
  checkText("model", model, 40);
  return new NvmeController({
    disks: storages.map((storage) => diskOf(storage, choices.blockSize)),
    queues,
    serial,
    model,
    firmware: FIRMWARE,
    vendorId,
    deviceId,
    subsystemVendorId: vendorId,
    mdts: MDTS,
    sharedDoorbells: doorbells === "shared" ? (poll ?? "adaptive") : undefined,
    lanes,
    laneCpus,
  });
}

function diskOf({ name, storage }: NamedStorage, wanted: number | undefined): Disk {
  const { blockSize: formatted, size, smallestBlock } = storage;
  const blockSize = wanted ?? formatted ?? LBA_FORMATS.find((format) => format >= smallestBlock) ?? LBA_FORMATS[0];
  if (!LBA_FORMATS.includes(blockSize)) {
    throw new UserError(`a disk's block size is ${LBA_FORMATS.join(" or ")} bytes, not ${blockSize}`, 2);
  }
  if (formatted !== undefined && formatted !== blockSize) {
    throw new UserError(`${name} was formatted with blocks of ${formatted} bytes: leave out --block-size`);
  }
  if (blockSize < smallestBlock) {
    throw new UserError(
      `${name} has sectors of ${smallestBlock} bytes, which are more than a block of ${blockSize} bytes`,
    );
  }
  if (size < blockSize)
    throw new UserError(`${name} has ${size} bytes, which is less than a block of ${blockSize} bytes`);
  return { storage, blockSize };
}

function checkText(what: string, text: string, length: number): void {
  if (text.length > length || !/^[\x20-\x7e]+$/.test(text)) {
    throw new UserError(`a disk's ${what} is 1 to ${length} ASCII characters, not "${text}"`, 2);
  }
}
