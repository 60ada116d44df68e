/** NVM Express 1.4, section 5.14: the log pages. Each is made when it is read. Nothing in them outlives the process. */
import type { InFlight } from "../queues/in-flight.js";
import type { Failure } from "../queues/reports.js";
import {
  AdminOpcode,
  CRITICAL_WARNING_RELIABILITY,
  CRITICAL_WARNING_TEMPERATURE,
  DO_NOT_RETRY,
  ErrorEntry,
  isFinal,
  LogPage,
  NvmOpcode,
  Smart,
  Status,
} from "../spec.js";
import type { Namespaces } from "../storage/namespaces.js";
import { type Features, TEMPERATURE } from "./features.js";

/** 5.14.1.2: what SMART counts; a unit is 512 bytes, the log reports thousands of them. */
export interface Counters {
  bytesRead: number;
  bytesWritten: number;
  reads: number;
  writes: number;
  mediaErrors: number;
}

/** Errors that are kept, the newest first. */
export const ERROR_ENTRIES = 16;

/**
 * Figure 206, Commands Supported and Effects: bit 0 supported, bit 1 changes data, bit 2 changes what a namespace is
 * able to do, bits 18:16 one at a time with respect to the same namespace.
 */
const SUPPORTED = 1;
const CHANGES_DATA = 1 << 1;
const CHANGES_NAMESPACE = 1 << 2;
const ALONE_IN_NAMESPACE = 1 << 16;
/** Those of commands that do more than to be there. */
const ADMIN_EFFECTS: ReadonlyMap<number, number> = new Map([
  [AdminOpcode.FORMAT_NVM, CHANGES_DATA | CHANGES_NAMESPACE | ALONE_IN_NAMESPACE],
]);
const IO_EFFECTS: ReadonlyMap<number, number> = new Map([
  [NvmOpcode.WRITE, CHANGES_DATA],
  [NvmOpcode.WRITE_ZEROES, CHANGES_DATA],
  [NvmOpcode.DATASET_MANAGEMENT, CHANGES_DATA],
  [NvmOpcode.COPY, CHANGES_DATA],
]);

/** Parameter Error Location: the byte of the command that is to blame, where the status says it. */
const ERROR_LOCATIONS: ReadonlyMap<number, number> = new Map([
  [Status.INVALID_OPCODE, 0],
  [Status.INVALID_NAMESPACE_OR_FORMAT, 4],
  [Status.LBA_OUT_OF_RANGE, 40],
  [Status.INVALID_QUEUE_IDENTIFIER, 40],
  [Status.INVALID_QUEUE_SIZE, 42],
  [Status.INVALID_INTERRUPT_VECTOR, 46],
  [Status.COMPLETION_QUEUE_INVALID, 46],
  [Status.INVALID_LOG_PAGE, 40],
  [Status.INVALID_FORMAT, 40],
]);
const LOCATION_UNKNOWN = 0xffff;
const MS_PER_HOUR = 3_600_000;
const MS_PER_MINUTE = 60_000;

/** What the pages are about. */
export interface LogSources {
  readonly counters: Counters;
  readonly inFlight: InFlight;
  readonly namespaces: Namespaces;
  readonly features: Features;
  readonly firmware: string;
  /** The admin commands that there are. */
  readonly adminOpcodes: readonly number[];
}

export class LogPages {
  /** Resets without a shutdown before them. */
  unsafeShutdowns = 0;
  readonly #sources: LogSources;
  readonly #startedAt = Date.now();
  readonly #errors: Uint8Array[] = [];
  #errorCount = 0;

  constructor(sources: LogSources) {
    this.#sources = sources;
  }

  /** A command ended with an error. */
  recordError({ queueId, commandId, status, namespaceId, lbaLow, lbaHigh }: Failure): void {
    const isIo = queueId !== 0;
    const entry = ErrorEntry.encode({
      ERROR_COUNT: ++this.#errorCount,
      SQID: queueId,
      CID: commandId,
      STATUS: (isFinal(status) ? status | DO_NOT_RETRY : status) << 1,
      PARAMETER_ERROR_LOCATION: ERROR_LOCATIONS.get(status) ?? LOCATION_UNKNOWN,
      LBA_LOW: isIo ? lbaLow : 0,
      LBA_HIGH: isIo ? lbaHigh : 0,
      NSID: namespaceId,
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
        bytes.set(Buffer.from(this.#sources.firmware.padEnd(8, " "), "ascii"), 8);
        return bytes;
      }
      case LogPage.CHANGED_NAMESPACE_LIST:
        return this.#sources.namespaces.listChanged();
      case LogPage.COMMANDS_SUPPORTED:
        return commandsSupported(this.#sources.adminOpcodes);
      default:
        return undefined;
    }
  }

  /** A page is on its way to the driver, which does not ask to retain its event. What is returned undoes that. */
  clear(identifier: number): (() => void) | undefined {
    if (identifier !== LogPage.CHANGED_NAMESPACE_LIST) return undefined;
    const { changed } = this.#sources.namespaces;
    const cleared = [...changed];
    changed.clear();
    return () => {
      for (const id of cleared) changed.add(id);
    };
  }

  #errorInformation(): Uint8Array {
    const bytes = new Uint8Array(ERROR_ENTRIES * ErrorEntry.size);
    for (const [n, entry] of this.#errors.entries()) bytes.set(entry, n * ErrorEntry.size);
    return bytes;
  }

  /** SMART's critical warnings, as bits. */
  get criticalWarning(): number {
    const syncFailed = this.#sources.namespaces.all.some((namespace) => namespace.syncFailed);
    const reliability = syncFailed ? CRITICAL_WARNING_RELIABILITY : 0;
    const temperature = this.#sources.features.temperatureWarning ? CRITICAL_WARNING_TEMPERATURE : 0;
    return reliability | temperature;
  }

  #smart(): Uint8Array {
    const { counters, inFlight } = this.#sources;
    return Smart.encode({
      CRITICAL_WARNING: this.criticalWarning,
      COMPOSITE_TEMPERATURE: TEMPERATURE,
      AVAILABLE_SPARE: 100,
      AVAILABLE_SPARE_THRESHOLD: 10,
      DATA_UNITS_READ: thousandUnits(counters.bytesRead),
      DATA_UNITS_WRITTEN: thousandUnits(counters.bytesWritten),
      HOST_READ_COMMANDS: counters.reads,
      HOST_WRITE_COMMANDS: counters.writes,
      CONTROLLER_BUSY_TIME: Math.floor(inFlight.busyMs / MS_PER_MINUTE),
      POWER_CYCLES: 1,
      POWER_ON_HOURS: Math.floor((Date.now() - this.#startedAt) / MS_PER_HOUR),
      UNSAFE_SHUTDOWNS: this.unsafeShutdowns,
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
function commandsSupported(adminOpcodes: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4096);
  const data = new DataView(bytes.buffer);
  const put = (at: number, opcode: number, effects = 0): void =>
    data.setUint32(at + opcode * 4, SUPPORTED | effects, true);
  for (const opcode of adminOpcodes) put(0, opcode, ADMIN_EFFECTS.get(opcode));
  for (const opcode of Object.values(NvmOpcode)) put(1024, opcode, IO_EFFECTS.get(opcode));
  return bytes;
}
