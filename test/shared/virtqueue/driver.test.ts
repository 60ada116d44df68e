import test from "ava";
import { UsedEntry, usedRingBytes } from "../../../shared/spec/virtio.js";
import { DriverQueue, RING_ALIGNMENT, ringBytes } from "../../../shared/virtqueue/driver.js";

const SIZE = 4;
const ADDRESS = 0x4_0000_0000;

/** A queue, and its memory as the device sees it. */
function setUp() {
  const memory = { buffer: new ArrayBuffer(4096), address: ADDRESS };
  const queue = new DriverQueue(SIZE, memory, RING_ALIGNMENT);
  const view = (address: number, length: number) => new DataView(memory.buffer, address - ADDRESS, length);
  const used = view(queue.usedAddress, usedRingBytes(SIZE));
  const available = view(queue.availableAddress, 4 + 2 * SIZE);
  const descriptors = view(queue.descriptorAddress, 16 * SIZE);
  const use = (id: number, length: number, index = used.getUint16(2, true)) => {
    const at = 4 + (index % SIZE) * UsedEntry.size;
    used.setUint32(at, id, true);
    used.setUint32(at + 4, length, true);
    used.setUint16(2, index + 1, true);
  };
  return { queue, used, available, descriptors, use };
}

test("the parts stand where VIRTIO wants them", (t) => {
  const { queue } = setUp();
  t.is(queue.descriptorAddress, ADDRESS + 16);
  t.is(queue.availableAddress, ADDRESS + 16 + 64);
  t.is(queue.usedAddress % 4, 0);
  t.true(queue.usedAddress >= queue.availableAddress + 4 + 8 + 2);
  t.is(ringBytes(SIZE), queue.usedAddress - queue.descriptorAddress + 4 + 8 * SIZE + 2);
  t.throws(() => new DriverQueue(3, { buffer: new ArrayBuffer(4096), address: 0 }, 0), { instanceOf: RangeError });
  t.throws(() => new DriverQueue(4, { buffer: new ArrayBuffer(64), address: 0 }, 0), { instanceOf: RangeError });
  t.throws(() => new DriverQueue(4, { buffer: new ArrayBuffer(4096), address: 0 }, 8), { instanceOf: RangeError });
});

test("what is added is seen after publish, byte for byte", (t) => {
  const { queue, available, descriptors } = setUp();
  queue.add(2, 0x1_2345_6789, 0x1000, true);
  queue.add(0, 0x55, 7, false);
  t.is(available.getUint16(2, true), 0);
  t.true(queue.publish());
  t.is(Buffer.from(available.buffer, available.byteOffset, 8).toString("hex"), "0000020002000000");
  t.is(
    Buffer.from(descriptors.buffer, descriptors.byteOffset + 32, 16).toString("hex"),
    "89674523010000000010000002000000",
  );
  t.is(Buffer.from(descriptors.buffer, descriptors.byteOffset, 16).toString("hex"), "55000000000000000700000000000000");
  t.is(queue.inFlight, 2);
});

test("a notification is left out when the device does not want it, an interrupt can be", (t) => {
  const { queue, used, available } = setUp();
  used.setUint16(0, 1, true);
  t.false(queue.publish());
  queue.wantsInterrupt = false;
  t.is(available.getUint16(0, true), 1);
  queue.wantsInterrupt = true;
  t.is(available.getUint16(0, true), 0);
});

test("buffers come back in any order, and go round many times", (t) => {
  const { queue, use } = setUp();
  for (let id = 0; id < SIZE; id++) queue.add(id, 0x1000 * id, 100, true);
  t.is(queue.take(), -1);
  for (let round = 0; round < 70_000; round++) {
    const id = (round * 7) % SIZE;
    use(id, round % 101);
    if (queue.take() !== id || queue.usedLength !== round % 101) return t.fail(`round ${round}`);
    queue.add(id, 0x1000 * id, 100, true);
  }
  t.is(queue.inFlight, SIZE);
});

test("a device that breaks the rules is found out", (t) => {
  const broken = (message: RegExp, act: (machine: ReturnType<typeof setUp>) => void) => {
    const machine = setUp();
    machine.queue.add(1, 0x1000, 100, true);
    machine.queue.add(3, 0x2000, 100, false);
    act(machine);
    t.throws(() => machine.queue.take(), { name: "PeerGone", message });
  };
  broken(/buffer 0, which it does not have/, ({ use }) => use(0, 1));
  broken(/buffer 4,/, ({ use }) => use(4, 1));
  broken(/buffer 4294967295,/, ({ use }) => use(0xffffffff, 1));
  broken(/wrote 101 bytes into a buffer of 100/, ({ use }) => use(1, 101));
  broken(/used 3 buffers where it has 2/, ({ used }) => used.setUint16(2, 3, true));
  broken(/used 65535 buffers/, ({ used }) => used.setUint16(2, 0xffff, true));
  broken(/buffer 1, which it does not have/, ({ queue, use }) => {
    use(1, 1);
    t.is(queue.take(), 1);
    use(1, 1);
  });
});

test("what the device says to have written into a buffer that it may only read does not count", (t) => {
  const { queue, use } = setUp();
  queue.add(3, 0x2000, 100, false);
  use(3, 0xffff);
  t.is(queue.take(), 3);
  t.is(queue.usedLength, 0);
});

test("the shadow counts, not what the device made of the descriptors", (t) => {
  const { queue, descriptors, use } = setUp();
  queue.add(1, 0x1000, 100, true);
  new Uint8Array(descriptors.buffer, descriptors.byteOffset, descriptors.byteLength).fill(0xff);
  use(1, 101);
  t.throws(() => queue.take(), { name: "PeerGone" });
});

test("a buffer that is in flight cannot be added again: our own bug", (t) => {
  const { queue } = setUp();
  queue.add(1, 0x1000, 100, true);
  t.throws(() => queue.add(1, 0x1000, 100, true), { message: /not free/ });
});

test("a chain is one buffer, named by its first descriptor", (t) => {
  const { queue, descriptors, use } = setUp();
  queue.describe(1, 0x1000, 16, false, 3);
  queue.describe(3, 0x2000, 4, true, -1);
  queue.offer(1, 4);
  t.is(queue.inFlight, 1);
  const descriptor = (index: number) =>
    Buffer.from(descriptors.buffer, descriptors.byteOffset + 16 * index, 16).toString("hex");
  t.is(descriptor(1), "00100000000000001000000001000300");
  t.is(descriptor(3), "00200000000000000400000002000000");
  t.throws(() => queue.offer(1, 4), { message: /not free/ });
  use(1, 4);
  t.is(queue.take(), 1);
  t.is(queue.usedLength, 4);
  queue.offer(1, 4);
  use(3, 4);
  t.throws(() => queue.take(), { name: "PeerGone", message: /buffer 3, which it does not have/ });
});
