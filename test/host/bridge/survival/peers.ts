/**
 * All that a session's bridge is connected to, played in the test's process: a client with its memory and eventfds, a
 * front-end, and a device process that shares memory, registers and eventfds. Each notes what reached it, so that in
 * the end it can be said whether everything did, once and in order.
 *
 * The folder: supervised-bridge.ts is the bridge with its supervisor; this file, its peers; parts.ts, what they do;
 * crashes.ts does it again and again while the bridge dies, and says what was wrong; the tests divide the parts among
 * them.
 */
import * as native from "../../../../native/index.js";
import { MiB } from "../../../../shared/limits.js";
import { LinkCommand, NO_REGION, RegisterMemoryHead } from "../../../../shared/spec/link.js";
import {
  Command,
  HeaderFlags,
  Region,
  RegionAccess,
  WriteMulti,
  WriteMultiEntry,
} from "../../../../shared/spec/vfio-user.js";
import { Client } from "../../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../../fakes/front-end.js";
import { WINDOW_BAR } from "../../../fakes/front-end-config.js";
import { type LinkMessage, TestDevice } from "../../../fakes/front-end-device.js";
import { allocated, allocateEvents, allocateMemory, answer, PARTS, registersBody } from "../link/sharing-set-up.js";

/** Registers of BAR 0 that are in memory: below this offset. */
export const IN_MEMORY = 0x10;
/** The first register that is not, and that no part of BAR 0 that is memory has. */
export const FIRST_REGISTER = 0x20;
const READ_WRITE = native.PROT_READ | native.PROT_WRITE;
const SHADOW = [{ offset: 0, size: 0x1000 }] as const;

/** @throws Error */
export function check(isRight: boolean, what: string): asserts isRight {
  if (!isRight) throw new Error(what);
}

export function checkEqual(actual: unknown, expected: unknown, what: string): void {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)];
  check(a === b, `${what}: ${a} instead of ${b}`);
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");

/** An eventfd of the client's that counts its signals. */
export class Signal {
  readonly fd = native.eventfd(0);
  count = 0;
  readonly #poll = new native.Poll(this.fd, () => {
    this.count += native.eventfdRead(this.fd);
    for (const heard of this.#waiting.splice(0)) heard();
  });
  readonly #waiting: (() => void)[] = [];

  constructor() {
    this.#poll.start(native.POLL_READABLE);
  }

  /** Waits for at least one more signal than `before`. */
  async after(before: number): Promise<void> {
    while (this.count <= before) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  close(): void {
    this.#poll.close();
    native.close(this.fd);
  }
}

/** Memory of the driver VM's. */
export class Memory {
  readonly fd: number;
  readonly bytes: Uint8Array;

  constructor(size: number) {
    this.fd = native.createMemory("driver-vm", size, false);
    native.addSeals(this.fd, native.F_SEAL_SHRINK | native.F_SEAL_GROW);
    this.bytes = new Uint8Array(native.mapFile(this.fd, 0, size, READ_WRITE));
  }

  close(): void {
    native.close(this.fd);
  }
}

/** What the device process shares with the client, and with the bridge. */
export interface Shared {
  readonly bar: ReturnType<typeof allocated>;
  readonly shadow: ReturnType<typeof allocated>;
  readonly events: readonly number[];
  /** Register memory's head, and all of it. */
  readonly head: ReturnType<typeof RegisterMemoryHead.view>;
  readonly registers: DataView;
}

/** A bridge, wherever it runs. */
export interface BridgeSockets {
  path(kind: "vfio-user" | "vhost-user", session: number): string;
}

export interface PeersOptions {
  /** The device process wants no memory of the driver VM's in its window. */
  readonly isolated?: boolean;
  readonly session?: number;
}

export class Peers {
  readonly memory = new Memory(4 * MiB);
  readonly signals = [new Signal(), new Signal(), new Signal()] as const;
  readonly frontEnd: FrontEnd;
  readonly device: TestDevice;
  readonly #bridge: BridgeSockets;
  readonly #session: number;
  #client: Client | undefined;
  #isClosed = false;
  readonly #clients: Client[] = [];
  #shared: Shared | undefined;
  /** Writes that were sent, and reads that a device process has to have seen, as `asText` has them. */
  readonly #sent: string[] = [];
  readonly #seen: string[] = [];

  /** Connects a front-end and starts a device process. */
  constructor(bridge: BridgeSockets, { isolated = false, session = 0 }: PeersOptions = {}) {
    this.#bridge = bridge;
    this.#session = session;
    this.frontEnd = new FrontEnd(bridge.path("vhost-user", session), { queues: 3 + 8 });
    this.device = new TestDevice(this.frontEnd, { postedRegions: 1 << Region.BAR0, isolated, eventIndex: true });
  }

  get client(): Client {
    check(this.#client !== undefined, "there is no client");
    return this.#client;
  }

  /** What the device process shares. */
  get shared(): Shared {
    check(this.#shared !== undefined, "nothing is shared");
    return this.#shared;
  }

  /** The window, as the device VM has it. */
  get window(): Uint8Array {
    return new Uint8Array(this.frontEnd.memory(WINDOW_BAR, 0, this.frontEnd.windowSize));
  }

  /** The device process (re)starts and shares what it has to, then says HELLO. */
  async share(): Promise<Shared> {
    const { device, frontEnd } = this;
    device.start();
    const bar = allocated(frontEnd, await allocateMemory(device, Region.BAR0, PARTS), PARTS);
    const shadow = allocated(frontEnd, await allocateMemory(device, NO_REGION, SHADOW), SHADOW);
    const { data } = await allocateEvents(device, Region.BAR0, 2);
    const events = [data.getUint32(0, true), data.getUint32(4, true)];
    const { buffer, address } = frontEnd.allocate(0x1000);
    const body = new Uint8Array(registersBody(address, Region.BAR0, { size: IN_MEMORY }));
    checkEqual((await device.request(LinkCommand.SHARE_REGISTERS, body)).errno, 0, "SHARE_REGISTERS");
    const registers = new DataView(buffer);
    const head = RegisterMemoryHead.view(registers);
    head.valid = 1;
    const hello = await device.request(LinkCommand.HELLO, device.hello());
    checkEqual(hello.errno, 0, "HELLO");
    const shared = { bar, shadow, events, head, registers };
    this.#shared = shared;
    answer(device, shared);
    const answers = device.onCommand;
    device.onCommand = (received) => this.#deal(received) || (answers?.(received) ?? false);
    return shared;
  }

  async connect(twinSocket = false): Promise<Client> {
    const capabilities = { twinSocket };
    this.#client = await Client.connect(this.#bridge.path("vfio-user", this.#session), { timeoutMs: 0, capabilities });
    checkEqual(this.#client.hasTwinSocket, twinSocket, "a twin socket");
    this.#clients.push(this.#client);
    return this.#client;
  }

  /** The client goes, and the device process has heard of it. */
  async disconnect(): Promise<void> {
    const after = this.device.received.length;
    this.client.close();
    this.#client = undefined;
    await this.device.waitFor(LinkCommand.CLIENT_GONE, after);
  }

  /** A write of the client's: resolves when it was answered, or sent. */
  write(offset: number, bytes: Uint8Array, region: number = Region.BAR0, posted = false): Promise<void> {
    this.#sent.push(asText("w", region, offset, hex(bytes)));
    return this.client.regionWrite(region, offset, bytes, posted);
  }

  async writeMulti(...writes: readonly (readonly [offset: number, bytes: Uint8Array])[]): Promise<void> {
    for (const [offset, bytes] of writes) this.#sent.push(asText("w", Region.BAR0, offset, hex(bytes)));
    const entries = writes.map(([offset, bytes]) => ({ region: Region.BAR0, offset, bytes }));
    checkEqual(await this.client.writeMulti(entries), writes.length, "writes of REGION_WRITE_MULTI");
  }

  /** A read that the device process has to answer. */
  async read(offset: number, count: number, region: number = Region.BAR0): Promise<string> {
    this.#sent.push(asText("r", region, offset, String(count)));
    return hex(await this.client.regionRead(region, offset, count));
  }

  /** What is wrong so far: everything that was sent has to have arrived. */
  checkSoFar(): void {
    checkEqual(this.#seen, this.#sent, "what the device process saw");
    checkEqual(this.device.strays.length, 0, "replies that the device process did not wait for");
    for (const client of this.#clients) checkEqual(client.strayReplies, 0, "replies that no client waited for");
    checkEqual(this.frontEnd.fatal, undefined, "QEMU died");
    checkEqual(this.frontEnd.complaints, [], "QEMU complained");
  }

  /** Everything goes; once more is nothing. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#client?.close();
    this.frontEnd.quit();
    for (const signal of this.signals) signal.close();
    this.memory.close();
  }

  /** What the device process does beside what every one of the tests' does. */
  #deal(received: LinkMessage): boolean {
    const { command, data, body, flags } = received;
    const { REGION_READ, REGION_WRITE, REGION_WRITE_MULTI } = Command;
    if (command === REGION_READ) {
      const { region, offset, count } = RegionAccess.view(data);
      if (offset >= IN_MEMORY || region !== Region.BAR0) this.#seen.push(asText("r", region, offset, String(count)));
      return false;
    }
    if (command !== REGION_WRITE && command !== REGION_WRITE_MULTI) return false;
    if (command === REGION_WRITE) {
      const { region, offset } = RegionAccess.view(data);
      this.#saw(region, offset, body.slice(RegionAccess.size));
    } else {
      const { writes } = WriteMulti.view(data);
      for (let n = 0; n < writes; n++) {
        const at = WriteMulti.size + n * WriteMultiEntry.size;
        const { region, offset, count } = WriteMultiEntry.view(data, at);
        const from = at + WriteMultiEntry.offsets.data;
        this.#saw(region, offset, body.slice(from, from + count));
      }
    }
    this.shared.head.writesDone++;
    if (command === REGION_WRITE) return false;
    if (!(flags & HeaderFlags.NO_REPLY)) this.device.reply(received, body.slice(0, WriteMulti.size));
    return true;
  }

  #saw(region: number, offset: number, bytes: Uint8Array): void {
    this.#seen.push(asText("w", region, offset, hex(bytes)));
    this.device.bar.set(bytes, offset);
  }
}

const asText = (kind: "r" | "w", region: number, offset: number, what: string) =>
  `${kind} ${region}:${offset.toString(16)} ${what}`;
