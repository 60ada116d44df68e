/** The devices that come with this package, by the name that the command line gives them. */
import { UserError } from "../../shared/errors.js";
import type { Device } from "../device.js";
import { createEdu } from "./edu/index.js";
import { createGpio, DEFAULT_PERIOD_MS, INPUTS } from "./gpio/index.js";
import { createNvme, DEFAULT_LANES, DEFAULT_QUEUES, DOORBELLS, MAX_LANES, MAX_QUEUES, POLLING } from "./nvme/index.js";
import { CACHES } from "./nvme/storage/open-storage.js";
import { createRng } from "./rng/index.js";

/** A command-line option of a device. */
export interface DeviceOption {
  /**
   * What the value is, for the usage text: "PATH"; undefined for an option that has none, and whose value is then "".
   */
  readonly value?: string;
  readonly summary: string;
  readonly required?: boolean;
  /** It may be given several times, and is among the lists. */
  readonly repeatable?: boolean;
}

/** A kind of device. */
export interface DeviceKind {
  readonly summary: string;
  /** By name, without the leading dashes. */
  readonly options: Readonly<Record<string, DeviceOption>>;
  /**
   * Makes one from the options' values, of which all required ones are there, and those of repeatable options, in
   * order.
   * @throws UserError for a value that will not do
   */
  create(
    values: Readonly<Record<string, string | undefined>>,
    lists?: Readonly<Record<string, readonly string[] | undefined>>,
  ): Promise<Device>;
}

/** A device option that is a whole number. @throws UserError when it is something else */
function integer(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^(0x[0-9a-f]+|\d+)$/i.test(text)) throw new UserError(`--${name} wants a number, not "${text}"`, 2);
  return Number(text);
}

/**
 * A size in bytes: a number, with K, M, G or T for powers of 1024 behind it. @throws UserError when it is something
 * else
 */
function size(name: string, text: string): number {
  const [, digits, unit] = /^(\d{1,15})([KMGT]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** " KMGT".indexOf((unit || " ").toUpperCase());
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new UserError(`--${name} wants a size such as 64M, not "${text}"`, 2);
}

/** A device option that is one of a few words. @throws UserError when it is something else */
function oneOf<Word extends string>(name: string, text: string | undefined, words: readonly Word[]): Word | undefined {
  const word = words.find((one) => one === text);
  if (text === undefined || word !== undefined) return word;
  throw new UserError(`--${name} is ${words.join(" or ")}, not "${text}"`, 2);
}

/** Leaves out what was not given, so that defaults apply. */
function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

export const DEVICES: Readonly<Record<string, DeviceKind>> = {
  edu: {
    summary: "QEMU's teaching device",
    options: { "dma-bits": { value: "NUMBER", summary: "bits of a DMA address that it uses (default: 28)" } },
    create: async (values) => createEdu(integer("dma-bits", values["dma-bits"])),
  },
  nvme: {
    summary: "an NVMe controller with a namespace for each file, block device or piece of memory",
    options: {
      file: { value: "PATH", summary: "a disk: a file or block device; may be repeated", repeatable: true },
      memory: { value: "SIZE", summary: "a disk in memory, gone with the process; may be repeated", repeatable: true },
      "read-only": { summary: "files are not written; others may read them too (default: if they may not be written)" },
      cache: {
        value: "HOW",
        summary:
          `files: ${CACHES[0]} (the page cache of this machine), or ${CACHES[1]} (O_DIRECT) ` +
          `(default: ${CACHES[0]})`,
      },
      serial: { value: "TEXT", summary: "serial number, at most 20 characters (default: made from the first path)" },
      model: { value: "TEXT", summary: "model, at most 40 characters" },
      "block-size": {
        value: "BYTES",
        summary: "512 or 4096 (default: what it was formatted with, or its sectors have)",
      },
      queues: { value: "NUMBER", summary: `I/O queues, 1 to ${MAX_QUEUES} (default: ${DEFAULT_QUEUES})` },
      doorbells: {
        value: "WHICH",
        summary: `${DOORBELLS.join(" or ")}: the VMM maps them, and they are polled (default: ${DOORBELLS[0]})`,
      },
      lanes: {
        value: "NUMBER",
        summary: `threads that serve I/O queues, 0 to ${MAX_LANES}; 0: the event loop does (default: ${DEFAULT_LANES})`,
      },
      "lane-cpus": { value: "LIST", summary: "the CPU of each lane, by commas (default: any)" },
      poll: { value: "WHEN", summary: `shared doorbells: ${POLLING.join(" or ")} (default: ${POLLING[0]})` },
      "vendor-id": { value: "NUMBER", summary: "PCI vendor ID" },
      "device-id": { value: "NUMBER", summary: "PCI device ID" },
    },
    create: async (values, { file: files = [], memory = [] } = {}) => {
      if (files.length + memory.length === 0) throw new UserError("nvme needs --file PATH or --memory SIZE", 2);
      return createNvme({
        files,
        memory: memory.map((text) => size("memory", text)),
        ...given({
          serial: values.serial,
          model: values.model,
          readOnly: values["read-only"] !== undefined || undefined,
          cache: oneOf("cache", values.cache, CACHES),
          blockSize: integer("block-size", values["block-size"]),
          queues: integer("queues", values.queues),
          doorbells: oneOf("doorbells", values.doorbells, DOORBELLS),
          poll: oneOf("poll", values.poll, POLLING),
          lanes: integer("lanes", values.lanes),
          laneCpus: values["lane-cpus"]?.split(",").map((text) => integer("lane-cpus", text) ?? 0),
          vendorId: integer("vendor-id", values["vendor-id"]),
          deviceId: integer("device-id", values["device-id"]),
        }),
      });
    },
  },
  gpio: {
    summary: "general-purpose pins: 16 outputs, 16 inputs, an interrupt when inputs change",
    options: {
      inputs: { value: "WHAT", summary: `what moves the inputs: ${INPUTS.join(", ")} (default: ${INPUTS[0]})` },
      "period-ms": {
        value: "NUMBER",
        summary: `with inputs=time: milliseconds of one count (default: ${DEFAULT_PERIOD_MS})`,
      },
    },
    create: async (values) =>
      createGpio(given({ inputs: values.inputs, periodMs: integer("period-ms", values["period-ms"]) })),
  },
  rng: {
    summary: "virtio-rng: random numbers",
    options: {},
    create: async () => createRng(),
  },
};
