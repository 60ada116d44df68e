/** NVM Express 1.4, section 5.14: the log pages. Each is made when it is read. */
import type { Command } from "./command.js";
import { type Features, TEMPERATURE } from "./features.js";
import type { Counters } from "./io.js";
import type { Namespace } from "./namespace.js";
import {
  AdminOpcode,
  CRITICAL_WARNING_RELIABILITY,
  DO_NOT_RETRY,
  ErrorEntry,
  isFinal,
  LogPage,
  NvmOpcode,
  Smart,
} from "./spec.js";

/** Errors that are kept, the newest first. */
export const ERROR_ENTRIES = 16;

/** Commands Supported and Effects: bit 0 supported, bit 1 changes data. */
const SUPPORTED = 1;
const CHANGES_DATA = 1 << 1;
const CRITICAL_WARNING_TEMPERATURE = 1 << 1;
const MS_PER_HOUR = 3_600_000;

export class LogPages {
  readonly #counters: Counters;
  readonly #namespace: Namespace;
  readonly #features: Features;
  readonly #firmware: string;
  readonly #startedAt = Date.now();
  readonly #errors: Uint8Array[] = [];
  #errorCount = 0;

  constructor(counters: Counters, namespace: Namespace, features: Features, firmware: string) {
    this.#counters = counters;
    this.#namespace = namespace;
    this.#features = features;
    this.#firmware = firmware;
  }

  /** A command ended with an error. */
  recordError(command: Command, status: number): void {
    const isIo = command.queue.id !== 0;
    const entry = ErrorEntry.encode({
      ERROR_COUNT: ++this.#errorCount,
      SQID: command.queue.id,
      CID: command.id,
      STATUS: (isFinal(status) ? status | DO_NOT_RETRY : status) << 1,
      // Which byte of the command was wrong is not told.
      PARAMETER_ERROR_LOCATION: 0xffff,
      LBA_LOW: isIo ? command.cdw10 : 0,
      LBA_HIGH: isIo ? command.cdw11 : 0,
      NSID: command.namespaceId,
    });
    this.#errors.unshift(entry);
    if (this.#errors.length > ERROR_ENTRIES) this.#errors.pop();
  }

  /** The bytes of a log page, or undefined when there is no such page. */
  page(identifier: number): Uint8Array | undefined {
    switch (identifier) {
      case LogPage.ERROR_INFORMATION:
        return this.#errorInformation();
      case LogPage.SMART:
        return this.#smart();
      case LogPage.FIRMWARE_SLOT: {
        const bytes = new Uint8Array(512);
        bytes[0] = 1;
        bytes.set(Buffer.from(this.#firmware.padEnd(8, " "), "ascii"), 8);
        return bytes;
      }
      case LogPage.CHANGED_NAMESPACE_LIST:
        return new Uint8Array(4096);
      case LogPage.COMMANDS_SUPPORTED:
        return commandsSupported();
      default:
        return undefined;
    }
  }

  #errorInformation(): Uint8Array {
    const bytes = new Uint8Array(ERROR_ENTRIES * ErrorEntry.size);
    for (const [n, entry] of this.#errors.entries()) bytes.set(entry, n * ErrorEntry.size);
    return bytes;
  }

  #smart(): Uint8Array {
    const counters = this.#counters;
    const reliability = this.#namespace.syncFailed ? CRITICAL_WARNING_RELIABILITY : 0;
    const temperature = this.#features.temperatureWarning ? CRITICAL_WARNING_TEMPERATURE : 0;
    return Smart.encode({
      CRITICAL_WARNING: reliability | temperature,
      COMPOSITE_TEMPERATURE: TEMPERATURE,
      AVAILABLE_SPARE: 100,
      AVAILABLE_SPARE_THRESHOLD: 10,
      DATA_UNITS_READ: thousandUnits(counters.bytesRead),
      DATA_UNITS_WRITTEN: thousandUnits(counters.bytesWritten),
      HOST_READ_COMMANDS: counters.reads,
      HOST_WRITE_COMMANDS: counters.writes,
      POWER_CYCLES: 1,
      POWER_ON_HOURS: Math.floor((Date.now() - this.#startedAt) / MS_PER_HOUR),
      MEDIA_ERRORS: counters.mediaErrors,
      ERROR_LOG_ENTRIES: this.#errorCount,
    });
  }
}

/** Thousands of 512-byte units, rounded up. */
function thousandUnits(bytes: number): number {
  return Math.ceil(bytes / 512_000);
}

/** Figure 205: 256 admin commands, then 256 I/O commands, 4 bytes each. */
function commandsSupported(): Uint8Array {
  const bytes = new Uint8Array(4096);
  for (const opcode of Object.values(AdminOpcode)) bytes[opcode * 4] = SUPPORTED;
  for (const opcode of Object.values(NvmOpcode)) {
    const changes = opcode === NvmOpcode.WRITE || opcode === NvmOpcode.WRITE_ZEROES;
    bytes[1024 + opcode * 4] = changes ? SUPPORTED | CHANGES_DATA : SUPPORTED;
  }
  return bytes;
}
