/** Sums bytes of driver-VM memory: set ADDRESS and LENGTH, write START, wait for vector 0, read SUM. */
import { type Device, type DeviceContext, RegisterFile } from "virtio-vfio-user";

const MAX_LENGTH = 1024 * 1024;
const ALL = 0xffff_ffff;

export default function create(): Device {
  let context: DeviceContext;

  const registers = new RegisterFile(0x20, {
    ADDRESS_LOW: { offset: 0x00, size: 4, writable: ALL },
    ADDRESS_HIGH: { offset: 0x04, size: 4, writable: ALL },
    LENGTH: { offset: 0x08, size: 4, writable: ALL, accept: (length) => Math.min(length, MAX_LENGTH) },
    START: { offset: 0x0c, size: 4, onWrite: () => context.run(sum) },
    SUM: { offset: 0x10, size: 4 },
  });

  async function sum(): Promise<void> {
    const bytes = new Uint8Array(registers.get("LENGTH"));
    await context.dma.read(registers.getAddress("ADDRESS"), bytes);
    let total = 0;
    for (const byte of bytes) total += byte;
    registers.set("SUM", total);
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
    registers: { 0: registers },
    start(given) {
      context = given;
    },
  };
}
