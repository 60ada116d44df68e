/**
 * What the device process asks of the bridge before clients come, and once more after a reset of the virtio device
 * (docs/virtio-vfio-user.md, "Commands of the link"): memory and eventfds that clients are given, which the bridge
 * makes, and which have handles here; memory from which reads of registers are answered; and HELLO, which says what the
 * device is.
 */
import { inBounds, isAligned } from "../../../shared/bits.js";
import { Errno, PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { PAGE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import type { Area } from "../../../shared/memory-file.js";
import {
  ABI_VERSION,
  AllocateEvents,
  AllocateMemory,
  Hello,
  HelloFlags,
  LinkCommand,
  MemoryAllocated,
  MemoryArea,
  RegisterArea as RegisterAreaEntry,
  ShareRegisters,
} from "../../../shared/spec/link.js";
import { NUM_PCI_IRQS } from "../../../shared/spec/vfio-user.js";
import { getU64, setU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary } from "../../../shared/vfio-user/backend.js";
import type { RegisterArea } from "../../../shared/vfio-user/register-memory.js";
import { type IoEvents, type SharedMemory, type Window, windowBytes } from "../link.js";
import type { SmallMemory } from "./buffers.js";
import type { BridgeRequests } from "./requests.js";

export class DeviceSetUp {
  readonly #requests: BridgeRequests;
  readonly #window: Window;
  readonly #isolated: boolean;
  readonly #log: Log;
  /** By handle. */
  readonly #events = new Map<number, () => void>();
  /** Asks for all that was given, again. */
  readonly #again: (() => Promise<void>)[] = [];
  /** SHARE_REGISTERS's body, if there is register memory. */
  #registers: Uint8Array | undefined;

  /** `isolated`: no driver-VM memory is wanted in the window. */
  constructor(requests: BridgeRequests, window: Window, isolated: boolean, log: Log) {
    this.#requests = requests;
    this.#window = window;
    this.#isolated = isolated;
    this.#log = log;
  }

  /** Rejects with UserError when the bridge does not give it. */
  async allocateMemory(region: number, areas: readonly Area[]): Promise<SharedMemory> {
    const body = Buffer.concat([
      AllocateMemory.encode({ region, areas: areas.length }),
      ...areas.map(({ offset, size }) => MemoryArea.encode({ offset, size })),
    ]);
    const reply = await this.#ask(LinkCommand.ALLOCATE_MEMORY, body, MemoryAllocated.size + 8 * areas.length);
    const offsets = (from: DataView) => areas.map((_, n) => getU64(from, MemoryAllocated.size + 8 * n));
    const windowOffsets = offsets(reply);
    const views = areas.map(({ size }, n) => this.#view(windowOffsets[n], size));
    const memory = { descriptor: MemoryAllocated.view(reply).handle, areas: views };
    this.#again.push(async () => {
      const next = await this.#ask(LinkCommand.ALLOCATE_MEMORY, body, MemoryAllocated.size + 8 * areas.length);
      // The window is empty after a reset, so what is asked for in the same order has the same window offsets.
      if (offsets(next).some((offset, n) => offset !== windowOffsets[n])) {
        throw new UserError("the bridge puts the device's memory elsewhere than before");
      }
      memory.descriptor = MemoryAllocated.view(next).handle;
    });
    return memory;
  }

  /** Rejects with UserError when the bridge does not give them. */
  async allocateEvents(region: number, count: number, signalled: (index: number) => void): Promise<IoEvents> {
    const descriptors: number[] = [];
    const ask = async () => {
      const reply = await this.#ask(LinkCommand.ALLOCATE_EVENTS, AllocateEvents.encode({ region, count }), 4 * count);
      for (let index = 0; index < count; index++) {
        descriptors[index] = reply.getUint32(4 * index, true);
        this.#events.set(descriptors[index], () => signalled(index));
      }
    };
    await ask();
    this.#again.push(ask);
    return { descriptors };
  }

  /** Undefined when the bridge does not take it: then all reads come to the device. */
  async shareRegisters(memory: SmallMemory, size: number, areas: readonly RegisterArea[]) {
    const body = Buffer.concat([
      ShareRegisters.encode({ address: memory.registersAddress, size, areas: areas.length }),
      ...areas.map((area) => RegisterAreaEntry.encode({ ...area })),
    ]);
    try {
      await this.#requests.send(LinkCommand.SHARE_REGISTERS, body);
      this.#registers = body;
      return memory.registers.subarray(0, size);
    } catch (error) {
      // When the link is lost, HELLO says so.
      if (!(error instanceof ProtocolError || error instanceof PeerGone)) throw error;
      this.#log.warn({ reason: error.message }, "reads of registers all come to the device");
      return undefined;
    }
  }

  /** Rejects with UserError when the bridge does not take the device. */
  async hello(summary: DeviceSummary): Promise<void> {
    try {
      await this.#requests.send(LinkCommand.HELLO, encodeHello(summary, this.#isolated));
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      const isLate = error instanceof ProtocolError && error.errno === Errno.ETIMEDOUT;
      // The device VM's VMM does not start a device then whose driver has addresses of the IOMMU's.
      const hint = isLate ? ': is "iommu_platform=on" missing for the device in the device VM\'s command line?' : "";
      throw new UserError(`the bridge does not take the device: ${reason}${hint}`);
    }
  }

  /**
   * All of it after a reset of the virtio device: the same memory and eventfds, by other handles. Rejects with
   * UserError.
   */
  async repeat(summary: DeviceSummary): Promise<void> {
    this.#events.clear();
    for (const ask of this.#again) await ask();
    if (this.#registers !== undefined) await this.#requests.send(LinkCommand.SHARE_REGISTERS, this.#registers);
    await this.hello(summary);
  }

  /** The client signalled an eventfd. @throws ProtocolError when it is none of ours */
  signalled(handle: number): void {
    const signalled = this.#events.get(handle);
    if (signalled === undefined) throw new ProtocolError(`an event of handle ${handle}`);
    signalled();
  }

  async #ask(command: number, body: Uint8Array, length: number): Promise<DataView> {
    let reply: Uint8Array;
    try {
      reply = await this.#requests.send(command, body);
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      throw new UserError(`the bridge does not give the device memory or eventfds for its clients: ${reason}`);
    }
    if (reply.length !== length)
      throw new UserError(`the bridge answers command ${command} with ${reply.length} bytes`);
    return new DataView(reply.buffer, reply.byteOffset, length);
  }

  #view(windowOffset: number, size: number): Uint8Array<ArrayBuffer> {
    const { pieceSize } = this.#window;
    const inWindow = inBounds(windowOffset, size, this.#window.size) && isAligned(windowOffset, PAGE_SIZE);
    if (!inWindow || !inBounds(windowOffset % pieceSize, size, pieceSize)) {
      throw new UserError(`the bridge puts ${size} bytes of memory at window offset ${windowOffset}`);
    }
    return windowBytes(this.#window, windowOffset, size);
  }
}

function encodeHello(summary: DeviceSummary, isolated: boolean): Uint8Array {
  const { regionSizes, irqCounts, postedRegions } = summary;
  const body = new Uint8Array(Hello.size + regionSizes.length * 8 + NUM_PCI_IRQS * 4);
  const data = new DataView(body.buffer);
  const flags = isolated ? HelloFlags.ISOLATED : 0;
  Object.assign(Hello.view(data), { abiVersion: ABI_VERSION, postedRegions, regions: regionSizes.length, flags });
  for (const [n, size] of regionSizes.entries()) setU64(data, Hello.size + n * 8, size);
  const irqs = Hello.size + regionSizes.length * 8;
  for (let n = 0; n < NUM_PCI_IRQS; n++) data.setUint32(irqs + n * 4, irqCounts[n] ?? 0, true);
  return body;
}
