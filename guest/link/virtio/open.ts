/** From a PCI function to the virtio link: checks that it is a virtio-vfio-user device whose configuration is valid. */
import { inBounds } from "../../../shared/bits.js";
import { UserError } from "../../../shared/errors.js";
import { KiB, MAX_MESSAGE_SIZE, MAX_QUEUES, WINDOW_PIECE_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { ABI_VERSION, Config, LinkFeature, MAGIC, Queue, WINDOW_SHMID } from "../../../shared/spec/link.js";
import { Feature } from "../../../shared/spec/virtio.js";
import type { PciFunction } from "../../vfio/pci-function.js";
import type { Structure } from "../../virtio-pci/capabilities.js";
import { VirtioPci } from "../../virtio-pci/transport.js";
import type { Window } from "../link.js";
import { DmaBuffers } from "./buffers.js";
import { Copies } from "./copies.js";
import type { LinkPolling } from "./device-path.js";
import { Messages } from "./messages.js";
import { VirtioLink } from "./virtio.js";

/** A bridge that allows less than this in a message is broken. */
const MIN_MESSAGE_SIZE = 4 * KiB;

/**
 * Resets the device and checks that it is ours. `isolated`: the bridge puts no driver-VM memory into the window, and
 * copies instead. `polling`: whether to poll for messages before sleeping. @throws UserError when it is not, or is
 * broken
 */
export async function createVirtioLink(
  pci: PciFunction,
  log: Log,
  isolated = false,
  polling: LinkPolling = "adaptive",
): Promise<VirtioLink> {
  const transport = new VirtioPci(pci);
  await transport.reset();
  const optional = Feature.RING_EVENT_IDX | Feature.ACCESS_PLATFORM | LinkFeature.INSPECT;
  const features = transport.negotiate(Feature.VERSION_1, optional);
  pci.translated = (features & Feature.ACCESS_PLATFORM) !== 0n;
  const config = Config.view(new DataView(transport.readConfig(Config.size).buffer));
  const { magic, abiVersion, windowSize, maxMessageSize, doorbells } = config;
  if (magic !== MAGIC) throw new UserError("it is a VIRTIO device, but no virtio-vfio-user device");
  if (abiVersion !== ABI_VERSION) {
    throw new UserError(`the bridge speaks version ${abiVersion} of the link and this program version ${ABI_VERSION}`);
  }
  const region = transport.sharedMemory(WINDOW_SHMID);
  if (region === undefined || !inBounds(0, windowSize, region.length) || windowSize === 0) {
    throw new UserError(`the bridge's window of ${windowSize} bytes is not in the device's shared memory`);
  }
  const queues = transport.numQueues;
  if (maxMessageSize < MIN_MESSAGE_SIZE || Queue.FIRST_DOORBELL + doorbells > queues || queues > MAX_QUEUES) {
    throw new UserError("the bridge's configuration contradicts itself");
  }
  const eventIndex = (features & Feature.RING_EVENT_IDX) !== 0n;
  const messages = new Messages(pci, transport, Math.min(maxMessageSize, MAX_MESSAGE_SIZE), eventIndex);
  const buffers = new DmaBuffers(pci, log);
  const copies = new Copies(pci, transport, buffers, eventIndex);
  const window = new BarWindow(pci, region, windowSize);
  return new VirtioLink({
    pci,
    transport,
    features,
    messages,
    copies,
    buffers,
    window,
    doorbells,
    isolated,
    polling,
    log,
  });
}

/** The window as pieces of the shared memory region, each mapped when it is first used. */
class BarWindow implements Window {
  readonly pieceSize = WINDOW_PIECE_SIZE;
  readonly #pieces: ArrayBuffer[] = [];

  constructor(
    readonly pci: PciFunction,
    readonly region: Structure,
    readonly size: number,
  ) {}

  piece(index: number): ArrayBuffer {
    this.#pieces[index] ??= this.#map(index);
    return this.#pieces[index];
  }

  #map(index: number): ArrayBuffer {
    const start = index * this.pieceSize;
    const length = Math.min(this.pieceSize, this.size - start);
    return this.pci.memory(this.region.bar, this.region.offset + start, length);
  }
}
