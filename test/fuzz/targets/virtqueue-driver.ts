/**
 * The driver side of a split virtqueue against a device that writes anything into the used ring, compared with a model.
 */
import assert from "node:assert/strict";
import { PeerGone } from "../../../shared/errors.js";
import { RING_ENTRIES_OFFSET, RING_INDEX_OFFSET, UsedEntry } from "../../../shared/spec/virtio.js";
import { DriverQueue, ringBytes } from "../../../shared/virtqueue/driver.js";
import type { Choices } from "../choices.js";
import { oddNumber, spoil } from "../mutate.js";
import { CANARY, type Context, checkCanary, type Instance } from "../target.js";

const OFFSET = 0x1000;
const ADDRESS = 0x4000_0000;
const SIZE = 0x4000;

export function createTarget({ trace }: Context): Instance {
  const bytes = new Uint8Array(SIZE);
  const view = new DataView(bytes.buffer);

  /** The device: mostly gives back one of `buffers`, now and then says something else. */
  function use(random: Choices, queue: DriverQueue, buffers: Map<number, number>): void {
    const used = OFFSET + queue.usedAddress - queue.descriptorAddress;
    const index = view.getUint16(used + RING_INDEX_OFFSET, true);
    const at = used + RING_ENTRIES_OFFSET + (index % queue.size) * UsedEntry.size;
    const [id, length] = random.pick([...buffers, [0, 0]]);
    bytes.set(UsedEntry.encode({ id, length: random.below(Math.max(0, length) + 1) }), at);
    if (random.chance(10)) spoil(random, bytes, UsedEntry, at);
    const next = random.chance(97) ? (index + 1) & 0xffff : oddNumber(random, 2, index);
    view.setUint16(used + RING_INDEX_OFFSET, next, true);
    // Its own parts are the device's to overwrite at any time; it can harm only itself.
    if (random.chance(2)) bytes[OFFSET + random.below(ringBytes(queue.size))] = random.below(256);
    if (random.chance(5)) view.setUint16(used, oddNumber(random, 2), true);
    // avail_event, where it matters.
    const event = used + RING_ENTRIES_OFFSET + queue.size * UsedEntry.size;
    if (random.chance(20)) view.setUint16(event, oddNumber(random, 2, view.getUint16(event, true)), true);
    trace.note("use", id, length, next);
  }

  return {
    round(random) {
      const size = random.pick([1, 2, 8, 128]);
      bytes.fill(CANARY);
      const queue = new DriverQueue(
        size,
        { buffer: bytes.buffer, address: ADDRESS + OFFSET },
        OFFSET,
        random.chance(60),
      );
      const free = Array.from({ length: size }, (_, id) => id);
      /** Length of what the device may write, -1 for what it may only read. */
      const model = new Map<number, number>();
      try {
        for (let step = random.between(1, 200); step > 0; step--) {
          for (let n = random.below(4); n > 0 && free.length > 0; n--) {
            const id = free.splice(random.below(free.length), 1)[0];
            const length = random.below(4096);
            const deviceWrites = random.chance(60);
            queue.add(id, ADDRESS + id * 4096, length, deviceWrites);
            model.set(id, deviceWrites ? length : -1);
          }
          queue.publish();
          queue.wantsInterrupt = random.chance(50);
          for (let n = random.below(3); n > 0; n--) use(random, queue, model);
          for (let id = queue.take(); id !== -1; id = queue.take()) {
            const length = model.get(id);
            assert.ok(length !== undefined, `buffer ${id} came back, which the device does not have`);
            assert.ok(queue.usedLength <= Math.max(0, length), `${queue.usedLength} bytes in a buffer of ${length}`);
            model.delete(id);
            free.push(id);
          }
          assert.equal(queue.inFlight, model.size);
          // An event index of the device's is a request for a notification, and nothing else.
          assert.equal(queue.eventIndex && queue.publish(), false, "a notification of nothing");
        }
      } catch (error) {
        if (!(error instanceof PeerGone)) throw error;
      }
      checkCanary(bytes, 0, OFFSET, "memory in front of the ring");
      checkCanary(bytes, OFFSET + ringBytes(size), SIZE, "memory behind the ring");
    },
    probe() {
      const queue = new DriverQueue(8, { buffer: bytes.buffer, address: ADDRESS + OFFSET }, OFFSET);
      queue.add(5, ADDRESS, 100, true);
      assert.ok(queue.publish());
      assert.equal(queue.take(), -1);
      const used = OFFSET + queue.usedAddress - queue.descriptorAddress;
      bytes.set(UsedEntry.encode({ id: 5, length: 60 }), used + RING_ENTRIES_OFFSET);
      view.setUint16(used + RING_INDEX_OFFSET, 1, true);
      assert.equal(queue.take(), 5);
      assert.equal(queue.usedLength, 60);
      assert.equal(queue.inFlight, 0);
    },
    close() {},
  };
}
