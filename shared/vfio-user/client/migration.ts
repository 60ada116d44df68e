/**
 * What a VMM does to move a device to another server, and to learn which of its memory the device writes:
 * DEVICE_FEATURE's features and the migration data. Methods reject as the client's own do.
 */
import { Errno, ProtocolError } from "../../errors.js";
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  Feature,
  FeatureMigDeviceState,
  FeatureMigration,
} from "../../spec/vfio-user.js";
import { bitmapSize } from "../dma/dma-ranges.js";
import type { AddressRange } from "../dma/dma-table.js";

const { GET, SET, PROBE } = DeviceFeatureFlags;
const NO_FD = 0xffffffff;

/** What this needs of a client. */
interface FeatureClient {
  readonly version: { readonly capabilities: { readonly maxDataXferSize: number } };
  deviceFeature(flags: number, payload?: Uint8Array, maxReply?: number): Promise<Uint8Array>;
  migDataRead(size: number): Promise<Uint8Array>;
  migDataWrite(bytes: Uint8Array): Promise<void>;
}

export class ClientMigration {
  readonly #client: FeatureClient;

  constructor(client: FeatureClient) {
    this.#client = client;
  }

  /** Whether the device has a feature with all of these methods ("get", "set"). Rejects when it cannot tell. */
  async probe(feature: number, ...methods: readonly ("get" | "set")[]): Promise<boolean> {
    const flags = methods.reduce((bits, method) => bits | (method === "get" ? GET : SET), PROBE | feature);
    try {
      await this.#client.deviceFeature(flags);
      return true;
    } catch (error) {
      if (error instanceof ProtocolError && [Errno.ENOTTY, Errno.EINVAL].includes(error.errno)) return false;
      throw error;
    }
  }

  /** MigrationFlags: what kinds of migration the device has. */
  async flags(): Promise<number> {
    const reply = await this.#client.deviceFeature(GET | Feature.MIGRATION, undefined, FeatureMigration.size);
    return FeatureMigration.view(dataOf(reply, FeatureMigration.size)).flags;
  }

  /** The device's MigrationState. */
  async getState(): Promise<number> {
    const size = FeatureMigDeviceState.size;
    const reply = await this.#client.deviceFeature(GET | Feature.MIG_DEVICE_STATE, undefined, size);
    return FeatureMigDeviceState.view(dataOf(reply, size)).deviceState;
  }

  /** Brings the device into a MigrationState, through all that lie in between. */
  async setState(deviceState: number): Promise<void> {
    const payload = FeatureMigDeviceState.encode({ deviceState, dataFd: NO_FD });
    await this.#client.deviceFeature(SET | Feature.MIG_DEVICE_STATE, payload);
  }

  /** All data that the device has now, in pieces of at most `chunk` bytes. The device is in a saving state. */
  async readAll(chunk = this.#client.version.capabilities.maxDataXferSize): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (;;) {
      const part = await this.#client.migDataRead(chunk);
      parts.push(part);
      if (part.length < chunk) return Buffer.concat(parts);
    }
  }

  /** Writes data that another device gave, in pieces of at most `chunk` bytes. The device is in RESUMING. */
  async writeAll(bytes: Uint8Array, chunk = this.#client.version.capabilities.maxDataXferSize): Promise<void> {
    for (let at = 0; at < bytes.length; at += chunk) await this.#client.migDataWrite(bytes.subarray(at, at + chunk));
  }

  /**
   * Starts the log of written pages, of `ranges` or of all addresses. Resolves with the page size that the device keeps
   * it in.
   */
  async startLogging(pageSize: number, ranges: readonly AddressRange[] = []): Promise<number> {
    const payload = Buffer.concat([
      DmaLoggingControl.encode({ pageSize, numRanges: ranges.length }),
      ...ranges.map(({ address, size }) => DmaLoggingRange.encode({ iova: address, length: size })),
    ]);
    const reply = await this.#client.deviceFeature(SET | Feature.DMA_LOGGING_START, payload);
    return DmaLoggingControl.view(dataOf(reply, payload.length)).pageSize;
  }

  async stopLogging(): Promise<void> {
    await this.#client.deviceFeature(SET | Feature.DMA_LOGGING_STOP);
  }

  /**
   * The pages of a range that were written since the last report: a bit each for pages of `pageSize` bytes, in 64-bit
   * words.
   */
  async report(address: number, size: number, pageSize: number): Promise<Uint8Array> {
    const payload = DmaLoggingReport.encode({ iova: address, length: size, pageSize });
    const length = DmaLoggingReport.size + Math.max(0, bitmapSize(address, size, pageSize));
    const reply = await this.#client.deviceFeature(GET | Feature.DMA_LOGGING_REPORT, payload, length);
    dataOf(reply, length);
    if (!payload.every((byte, n) => reply[n] === byte)) throw unexpected("the report of another range");
    return reply.subarray(DmaLoggingReport.size);
  }
}

function unexpected(what: string): ProtocolError {
  return new ProtocolError(`the server's reply to DEVICE_FEATURE: ${what}`, Errno.EPROTO, Command.DEVICE_FEATURE);
}

/** A feature's data, which is to be exactly `length` bytes. */
function dataOf(reply: Uint8Array, length: number): DataView {
  if (reply.length !== length) throw unexpected(`${DeviceFeature.size + reply.length} bytes`);
  return new DataView(reply.buffer, reply.byteOffset, reply.length);
}
