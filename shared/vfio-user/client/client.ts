/**
 * A vfio-user client: what a VMM does, as promises. For tests, drivers that run without a VM, and tools.
 *
 * Every method rejects with a ProtocolError (the server's errno; ETIMEDOUT; EPROTO for an invalid reply) or
 * with PeerGone. The server's DMA_READ and DMA_WRITE are answered from the memory registered with `registerMemory`.
 */
import { connect } from "../../../native/index.js";
import { ADDRESS_SPACE } from "../../address.js";
import { PeerGone } from "../../errors.js";
import {
  Command,
  DeviceFeature,
  DeviceInfo,
  type DmaLayout,
  DmaUnmap,
  HeaderFlags,
  IrqInfo,
  MigData,
  RegionAccess,
  RegionInfo,
  RegionIoFds,
  VERSION_MINOR,
  WriteMulti,
} from "../../spec/vfio-user.js";
import type { UnmapRange } from "../backend.js";
import { bitmapSize, encodeDirtyUnmap, encodeUnmapRange } from "../dma/dma-ranges.js";
import { parseRegionInfo, type RegionDescription } from "../region-description.js";
import { Connection } from "../socket/connection.js";
import { closeAll, systemCalls } from "../socket/message-socket.js";
import {
  type Capabilities,
  DEFAULT_CAPABILITIES,
  encodeVersion,
  parseVersion,
  type VersionMessage,
} from "../version.js";
import {
  encodeIrqSetting,
  encodeMap,
  encodeRegionWrite,
  encodeWriteMulti,
  type IrqSetting,
  type MapSetting,
  type RegionWriteEntry,
} from "./bodies.js";
import { ClientDma, takeTwin } from "./dma.js";
import { ClientMigration } from "./migration.js";
import { parseRegionIoFds, type RegionIoFdsDescription } from "./region-io-fds.js";
import {
  askGrowing,
  badReply,
  ClientRequests,
  checkAccess,
  MAX_FDS,
  type Reply,
  type RequestOptions,
} from "./requests.js";

export type { RegionDescription } from "../region-description.js";
export type { IrqSetting, MapSetting, RegionWriteEntry } from "./bodies.js";
export type { IoEventDescription, RegionIoFdsDescription } from "./region-io-fds.js";
export type { Reply, RequestOptions } from "./requests.js";

export interface ClientOptions {
  readonly minor?: number;
  readonly capabilities?: Partial<Capabilities>;
  /** How long a reply may take; 0 forever. */
  readonly timeoutMs?: number;
  /** How DMA messages are understood: as the specification has it, or as stock QEMU does. */
  readonly dmaLayout?: DmaLayout;
}

const NO_BODY = new Uint8Array(0);
const DEFAULT_TIMEOUT_MS = 5000;

export class Client {
  /** Resolves with the reason when the connection has ended. */
  readonly closed: Promise<PeerGone>;
  /** What the server agreed to. */
  version: VersionMessage = { major: 0, minor: 0, capabilities: DEFAULT_CAPABILITIES };
  /** Migration and the log of DMA: what DEVICE_FEATURE and MIG_DATA_* are for. */
  readonly migration = new ClientMigration(this);
  readonly #connection: Connection;
  #twin: Connection | undefined;
  readonly #dma: ClientDma;
  readonly #requests: ClientRequests;
  #end!: (reason: PeerGone) => void;

  private constructor(fd: number, options: ClientOptions) {
    this.closed = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#connection = new Connection(fd, {
      command: (frame) => this.#dma.command(this.#connection, frame),
      reply: (frame) => this.#requests.handleReply(frame),
      gone: (reason) => {
        this.#twin?.close(reason);
        this.#requests.close(reason);
        this.#end(reason);
      },
    });
    this.#requests = new ClientRequests(this.#connection, options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    this.#dma = new ClientDma(options.dmaLayout ?? "specification");
  }

  /** Connects to the socket at `target`, or takes over a connected one, and agrees on a version. */
  static async connect(target: string | number, options: ClientOptions = {}): Promise<Client> {
    const client = Client.connectRaw(target, options);
    try {
      await client.negotiate(options);
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  /** Connects without a VERSION, for those who want to see what happens. @throws SystemError */
  static connectRaw(target: string | number, options: ClientOptions = {}): Client {
    return new Client(typeof target === "number" ? target : connect(target), options);
  }

  async negotiate(options: ClientOptions = {}): Promise<void> {
    const minor = options.minor ?? VERSION_MINOR;
    const offered = { ...DEFAULT_CAPABILITIES, maxMsgFds: MAX_FDS, writeMultiple: true };
    const body = encodeVersion(minor, { ...offered, ...options.capabilities });
    const maxFds = options.capabilities?.twinSocket ? 1 : 0;
    const reply = await this.request(Command.VERSION, body, { maxFds });
    try {
      const version = parseVersion(reply.body, 0, reply.body.length);
      if (version.minor > minor) badReply(Command.VERSION, `minor version ${version.minor}`);
      const { twinSocket, twinSocketFd } = version.capabilities;
      if (twinSocket) this.#twin = takeTwin(reply.fds, twinSocketFd, (twin, frame) => this.#dma.command(twin, frame));
      this.version = version;
    } finally {
      closeAll(systemCalls, reply.fds);
    }
  }

  /** Whether the server sends its commands over a twin socket (ask for it with `capabilities.twinSocket`). */
  get hasTwinSocket(): boolean {
    return this.#twin !== undefined && !this.#twin.closed;
  }

  /** How many replies came that nobody waited for: too late, or twice. */
  get strayReplies(): number {
    return this.#requests.strays;
  }

  close(): void {
    this.#connection.close(new PeerGone("the client closed the connection"));
  }

  /** Sends any command with any body: the ground for all others. */
  request(command: number, body: Uint8Array = NO_BODY, options: RequestOptions = {}): Promise<Reply> {
    return this.#requests.send(command, body, options);
  }

  /** Lets the server read and write `bytes` by DMA_READ and DMA_WRITE at `address`. Returns how to take it back. */
  registerMemory(address: number, bytes: Uint8Array): () => void {
    return this.#dma.register(address, bytes);
  }

  /** DMA_MAP; without fd the server reaches the memory by messages (registerMemory). */
  async mapMemory(map: MapSetting): Promise<void> {
    await this.request(Command.DMA_MAP, encodeMap(map), map.fd === undefined ? {} : { fds: [map.fd] });
  }

  /**
   * DMA_UNMAP of all that is mapped in a range of pages. Resolves with the bytes that the server says were unmapped.
   */
  unmapMemory(address: number, size: number): Promise<number> {
    return this.#sendUnmap({ address, size });
  }

  unmapAll(): Promise<number> {
    return this.#sendUnmap({ address: 0, size: ADDRESS_SPACE });
  }

  async getInfo(): Promise<{ flags: number; numRegions: number; numIrqs: number }> {
    const { data } = await this.#fixed(
      Command.DEVICE_GET_INFO,
      DeviceInfo.encode({ argsz: DeviceInfo.size }),
      DeviceInfo.size,
    );
    const { flags, numRegions, numIrqs } = DeviceInfo.view(data);
    return { flags, numRegions, numIrqs };
  }

  getRegionInfo(index: number): Promise<RegionDescription> {
    const encode = (argsz: number) => RegionInfo.encode({ argsz, index });
    return askGrowing(this, Command.DEVICE_GET_REGION_INFO, RegionInfo.size, encode, (reply) =>
      parseRegionInfo(index, reply),
    );
  }

  /** The ioeventfds of a region. */
  getRegionIoFds(index: number): Promise<RegionIoFdsDescription> {
    const encode = (argsz: number) => RegionIoFds.encode({ argsz, index });
    return askGrowing(this, Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds.size, encode, (reply) =>
      parseRegionIoFds(index, reply),
    );
  }

  async getIrqInfo(index: number): Promise<{ flags: number; count: number }> {
    const body = IrqInfo.encode({ argsz: IrqInfo.size, index });
    const { data } = await this.#fixed(Command.DEVICE_GET_IRQ_INFO, body, IrqInfo.size);
    const { flags, count } = IrqInfo.view(data);
    return { flags, count };
  }

  async setIrqs(setting: IrqSetting): Promise<void> {
    const { eventfds } = setting;
    const fds = eventfds?.length ? { fds: eventfds } : {};
    await this.request(Command.DEVICE_SET_IRQS, encodeIrqSetting(setting), fds);
  }

  /** Reads from a region, into `target` if given (its length is the count). Returns the bytes read. */
  async regionRead(region: number, offset: number, countOrTarget: number | Uint8Array): Promise<Uint8Array> {
    const count = typeof countOrTarget === "number" ? countOrTarget : countOrTarget.length;
    const request = RegionAccess.encode({ offset, region, count });
    const reply = await this.#fixed(Command.REGION_READ, request, RegionAccess.size + count);
    checkAccess(Command.REGION_READ, reply, region, offset, count);
    const bytes = reply.body.subarray(RegionAccess.size);
    if (typeof countOrTarget === "number") return bytes;
    countOrTarget.set(bytes);
    return countOrTarget;
  }

  /** Writes `bytes` to a region. With `posted` it resolves when the request is sent. */
  async regionWrite(region: number, offset: number, bytes: Uint8Array, posted = false): Promise<void> {
    const body = encodeRegionWrite(region, offset, bytes);
    if (posted) {
      await this.request(Command.REGION_WRITE, body, { flags: HeaderFlags.NO_REPLY });
      return;
    }
    const reply = await this.#fixed(Command.REGION_WRITE, body, RegionAccess.size);
    checkAccess(Command.REGION_WRITE, reply, region, offset, bytes.length);
  }

  /** REGION_WRITE_MULTI: several writes of at most 8 bytes each. Resolves with how many were done. */
  async writeMulti(entries: readonly RegionWriteEntry[]): Promise<number> {
    const reply = await this.#fixed(Command.REGION_WRITE_MULTI, encodeWriteMulti(entries), WriteMulti.size);
    return WriteMulti.view(reply.data).writes;
  }

  async reset(): Promise<void> {
    await this.#fixed(Command.DEVICE_RESET, NO_BODY, 0);
  }

  /** DEVICE_FEATURE: `flags` as in DeviceFeatureFlags. Resolves with the feature's data in the reply. */
  async deviceFeature(flags: number, payload: Uint8Array = NO_BODY, maxReply = 4096): Promise<Uint8Array> {
    const command = Command.DEVICE_FEATURE;
    const fixed = DeviceFeature.encode({ argsz: DeviceFeature.size + Math.max(maxReply, payload.length), flags });
    const reply = await this.request(command, Buffer.concat([fixed, payload]));
    if (reply.body.length < DeviceFeature.size) badReply(command, `${reply.body.length} bytes`);
    return reply.body.subarray(DeviceFeature.size);
  }

  /** MIG_DATA_READ: at most `size` bytes; fewer are the end. */
  async migDataRead(size: number): Promise<Uint8Array> {
    const command = Command.MIG_DATA_READ;
    const reply = await this.request(command, MigData.encode({ argsz: MigData.size + size, size }));
    const got = reply.body.length < MigData.size ? -1 : MigData.view(reply.data).size;
    if (got < 0 || got > size || reply.body.length < MigData.size + got)
      badReply(command, `${reply.body.length} bytes`);
    return reply.body.subarray(MigData.size, MigData.size + got);
  }

  async migDataWrite(bytes: Uint8Array): Promise<void> {
    const fixed = MigData.encode({ argsz: MigData.size + bytes.length, size: bytes.length });
    await this.request(Command.MIG_DATA_WRITE, Buffer.concat([fixed, bytes]));
  }

  /** DMA_UNMAP, with the pages that the device wrote: a bit each for pages of `pageSize` bytes, in 64-bit words. */
  async unmapMemoryDirty(address: number, size: number, pageSize: number): Promise<Uint8Array> {
    const length = Math.max(0, bitmapSize(address, size, pageSize));
    const body = encodeDirtyUnmap({ address, size }, pageSize, length);
    const reply = await this.#fixed(Command.DMA_UNMAP, body, body.length + length);
    if (DmaUnmap.view(reply.data).address !== address) badReply(Command.DMA_UNMAP, "another range");
    return reply.body.subarray(body.length);
  }

  async #sendUnmap(range: UnmapRange): Promise<number> {
    const reply = await this.#fixed(Command.DMA_UNMAP, encodeUnmapRange(range), DmaUnmap.size);
    const { address, size } = DmaUnmap.view(reply.data);
    if (address !== range.address || size > range.size) badReply(Command.DMA_UNMAP, "another range");
    return size;
  }

  /** A request whose reply has a body of exactly `length` bytes. */
  async #fixed(command: number, body: Uint8Array, length: number): Promise<Reply> {
    const reply = await this.request(command, body);
    if (reply.body.length !== length) badReply(command, `${reply.body.length} bytes, not ${length}`);
    return reply;
  }
}
