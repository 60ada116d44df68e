/** Copy requests of a hostile device process: mostly such as make sense, for memory that is mapped now and then. */
import type { DmaMemory } from "../../guest/vfio/pci-function.js";
import { CopyFlags, CopyRequest, Queue } from "../../shared/spec/link.js";
import { Descriptor, DescriptorFlags } from "../../shared/spec/virtio.js";
import type { TestDevice } from "../fakes/front-end-device.js";
import type { Choices } from "./choices.js";
import { oddNumber, spoil } from "./mutate.js";

const SLOTS = 16;
const DESCRIPTORS = 4;
const FIXED = 64;
const DATA = SLOTS * FIXED;

export class HostileCopies {
  readonly #device: TestDevice;
  readonly #memory: DmaMemory;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #next = 0;

  /** `largest`: bytes of the longest copy that makes sense. */
  constructor(
    device: TestDevice,
    readonly largest: number,
  ) {
    this.#device = device;
    this.#memory = device.pci.allocate(DATA + largest);
    this.#bytes = new Uint8Array(this.#memory.buffer);
  }

  /** Queues some requests on memory from `address` on; gentle ones are refused at most. Nothing waits for their end. */
  ask(random: Choices, address: number, gentle: boolean): void {
    for (let n = random.between(1, 6); n > 0; n--) this.#ask(random, address + random.below(0x1000), gentle);
    this.#device.notify(Queue.COPY);
  }

  #ask(random: Choices, address: number, gentle: boolean): void {
    const slot = this.#next++ % SLOTS;
    const fixed = slot * FIXED;
    const length = random.pick([1, 64, 4096, this.largest]);
    const isWrite = random.chance(50);
    const request = CopyRequest.encode({ address, length, flags: isWrite ? CopyFlags.WRITE : 0 });
    if (random.chance(25)) spoil(random, request, CopyRequest);
    this.#bytes.set(request, fixed);
    const half = random.chance(30) ? random.below(length) : 0;
    const at = this.#memory.address;
    const size = random.chance(90) ? length : Math.min(oddNumber(random, 4), this.largest);
    const data = [
      { address: at + DATA, length: half, writable: !isWrite },
      { address: at + DATA + half, length: Math.max(0, size - half), writable: !isWrite },
    ];
    const status = {
      address: at + fixed + 16,
      length: gentle || random.chance(95) ? 4 : random.below(8),
      writable: true,
    };
    const header = { address: at + fixed, length: gentle || random.chance(95) ? 16 : random.below(20) };
    const ring = this.#device.rings[Queue.COPY];
    const chain = isWrite ? [header, ...data, status] : [header, status, ...data];
    ring.add(slot * DESCRIPTORS, ...chain);
    if (gentle || !random.chance(5)) return;
    const last = ring.descriptors + (slot * DESCRIPTORS + random.below(DESCRIPTORS)) * Descriptor.size;
    spoil(random, new Uint8Array(ring.buffer), Descriptor, last);
    if (random.chance(20)) ring.descriptor(slot * DESCRIPTORS, at, 16, DescriptorFlags.NEXT, slot * DESCRIPTORS);
  }
}
