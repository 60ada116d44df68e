/** An NVMe disk over a file or block device. */
import { createHash } from "node:crypto";
import { realpath } from "node:fs/promises";
import { resolve } from "node:path";
import { UserError } from "../../../shared/errors.js";
import { NvmeController } from "./controller.js";
import { openStorage, type Storage } from "./storage.js";

/**
 * Drivers bind to the class code, so the identifiers only have to collide with nobody's: no vendor fff0 is known to the
 * PCI ID database. Who ships a device puts identifiers of their own here.
 */
export const VENDOR_ID = 0xfff0;
export const DEVICE_ID = 0x0001;

/** I/O queues of each kind when nothing else is asked for, and at most. Each takes an interrupt vector. */
export const DEFAULT_QUEUES = 16;
export const MAX_QUEUES = 64;

/** 1 MiB for one command. */
const MDTS = 8;
const FIRMWARE = "1.0";

export interface NvmeOptions {
  /** The disk's contents: a file or block device, its size a multiple of the block size. */
  readonly file: string;
  /** ASCII, at most 20 characters; made from the file's path when left out. Disks of one driver VM need different ones. */
  readonly serial?: string;
  /** ASCII, at most 40 characters. */
  readonly model?: string;
  /** 512 (the default) or 4096 bytes. */
  readonly blockSize?: number;
  /** I/O queues of each kind, 1 to MAX_QUEUES. */
  readonly queues?: number;
  readonly vendorId?: number;
  readonly deviceId?: number;
}

/** Makes an NVMe controller with one namespace. @throws UserError for an option or a file that will not do */
export async function createNvme(options: NvmeOptions): Promise<NvmeController> {
  const storage = await openStorage(options.file);
  try {
    const path = await realpath(options.file).catch(() => resolve(options.file));
    const serial = options.serial ?? createHash("sha256").update(path).digest("hex").slice(0, 16).toUpperCase();
    return createController(storage, { ...options, serial });
  } catch (error) {
    await storage.close();
    throw error;
  }
}

/** The same over any storage. @throws UserError */
export function createController(
  storage: Storage,
  options: Omit<NvmeOptions, "serial"> & { readonly serial: string },
): NvmeController {
  const { file, serial, model = "virtio-vfio-user NVMe", blockSize = 512, queues = DEFAULT_QUEUES } = options;
  const { vendorId = VENDOR_ID, deviceId = DEVICE_ID } = options;
  if (blockSize !== 512 && blockSize !== 4096) {
    throw new UserError(`a disk's block size is 512 or 4096 bytes, not ${blockSize}`, 2);
  }
  if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
    throw new UserError(`an NVMe controller has 1 to ${MAX_QUEUES} I/O queues here, not ${queues}`, 2);
  }
  for (const [what, id] of [
    ["vendor", vendorId],
    ["device", deviceId],
  ] as const) {
    // A vendor ID of ffff is how a PCI bus says that there is no device.
    if (!Number.isInteger(id) || id < 0 || id > 0xffff || (what === "vendor" && id === 0xffff)) {
      throw new UserError(`a PCI ${what} ID has 16 bits, unlike ${id}`, 2);
    }
  }
  if (storage.size === 0 || storage.size % blockSize !== 0) {
    throw new UserError(
      `the disk's file ${file} has ${storage.size} bytes, which is no multiple of the block size, ${blockSize} bytes: resize it with truncate`,
    );
  }
  checkText("serial number", serial, 20);
  checkText("model", model, 40);
  return new NvmeController({
    storage,
    blockSize,
    queues,
    serial,
    model,
    firmware: FIRMWARE,
    vendorId,
    deviceId,
    subsystemVendorId: vendorId,
    mdts: MDTS,
  });
}

function checkText(what: string, text: string, length: number): void {
  if (text.length > length || !/^[\x20-\x7e]+$/.test(text)) {
    throw new UserError(`a disk's ${what} is 1 to ${length} ASCII characters, not "${text}"`, 2);
  }
}
