/** A PCI device that sums bytes of driver-VM memory: set ADDRESS and LENGTH, write START, wait for vector 0, read SUM. */
import type { Device, DeviceContext } from "virtio-vfio-user";

const ADDRESS_LOW = 0x00;
const ADDRESS_HIGH = 0x04;
const LENGTH = 0x08;
const START = 0x0c;
const SUM = 0x10;
const MAX_LENGTH = 1024 * 1024;

export default function create(): Device {
  const registers = new DataView(new ArrayBuffer(0x20));
  const get = (offset: number) => registers.getUint32(offset, true);
  const set = (offset: number, value: number) => registers.setUint32(offset, value, true);
  let context: DeviceContext;
  let job: Promise<void> = Promise.resolve();

  async function sum() {
    const bytes = new Uint8Array(Math.min(get(LENGTH), MAX_LENGTH));
    await context.dma.read(get(ADDRESS_LOW) + get(ADDRESS_HIGH) * 2 ** 32, bytes);
    let total = 0;
    for (const byte of bytes) total += byte;
    set(SUM, total);
    context.interrupts.trigger(0);
  }

  return {
    identity: {
      vendorId: 0xfff4, // no vendor's
      deviceId: 0x0001,
      classCode: 0xff0000, // unclassified
      bars: { 0: { size: 0x20 }, 1: { size: 0x1000 } },
      msix: { vectors: 1, bar: 1, offset: 0 },
    },
    start(given) {
      context = given;
    },
    readBar(_bar, offset) {
      return get(offset & ~3) >>> ((offset & 3) * 8);
    },
    writeBar(_bar, offset, size, value) {
      if (size !== 4 || offset % 4 !== 0) return; // a 32-bit register file
      set(offset, value);
      // A bad address is the driver VM's mistake: it is told to the log, and no interrupt comes.
      if (offset === START) job = job.then(sum).catch((error) => context.log.warn({ err: error }, "sum failed"));
    },
    quiesce: () => job,
    async reset() {
      await job;
      new Uint8Array(registers.buffer).fill(0);
    },
    close() {},
  };
}
