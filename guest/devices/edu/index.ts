/**
 * edu, QEMU's teaching device (its docs/specs/edu.rst): a number that is inverted, a factorial that takes a while,
 * interrupts on demand, DMA to and from a buffer of 4 KiB. docs/writing-a-device.md goes through this file.
 */
import { setImmediate } from "node:timers/promises";
import { inBounds } from "../../../shared/bits.js";
import type { Device, DeviceContext } from "../../device.js";
import { pair, RegisterFile } from "../../pci/registers.js";

const Status = { COMPUTING: 0x01, INTERRUPT: 0x80 } as const;
const Command = { RUN: 0x1, TO_MEMORY: 0x2, INTERRUPT: 0x4 } as const;
const Cause = { FACTORIAL: 0x001, DMA: 0x100 } as const;
/** The buffer, where DMA addresses it. */
const BUFFER = { OFFSET: 0x40000, SIZE: 4096 } as const;
const ALL = 0xffff_ffff;

/** `dmaBits`: address bits that reach memory; higher ones are ignored. `delay`: what a factorial and a DMA wait for. */
export function createEdu(dmaBits = 28, delay: () => Promise<unknown> = setImmediate): Device {
  let context: DeviceContext;
  const buffer = new Uint8Array(BUFFER.SIZE);
  const unless = (name: "STATUS" | "COMMAND", busy: number) => ({
    writable: ALL,
    accept: (value: number, previous: number): number => (registers.get(name) & busy ? previous : value),
  });

  const registers = new RegisterFile(0xa0, {
    IDENTIFICATION: { offset: 0x00, size: 4, reset: 0x010000ed },
    LIVENESS: { offset: 0x04, size: 4, writable: ALL, accept: (value) => ~value },
    FACTORIAL: { offset: 0x08, size: 4, ...unless("STATUS", Status.COMPUTING), onWrite: compute },
    STATUS: { offset: 0x20, size: 4, writable: Status.INTERRUPT },
    INTERRUPT_STATUS: { offset: 0x24, size: 4 },
    INTERRUPT_RAISE: { offset: 0x60, size: 4, onWrite: (_value, _previous, written) => interrupt(written) },
    INTERRUPT_ACK: { offset: 0x64, size: 4, onWrite: (_value, _previous, written) => interrupt(0, written) },
    ...pair("SOURCE", 0x80, unless("COMMAND", Command.RUN)),
    ...pair("TARGET", 0x88, unless("COMMAND", Command.RUN)),
    ...pair("COUNT", 0x90, unless("COMMAND", Command.RUN)),
    COMMAND: { offset: 0x98, size: 4, ...unless("COMMAND", Command.RUN), onWrite: transfer },
  });

  function interrupt(raised: number, acknowledged = 0): void {
    const causes = (registers.get("INTERRUPT_STATUS") & ~acknowledged) | raised;
    registers.set("INTERRUPT_STATUS", causes);
    if (causes === 0) context.interrupts.lower();
    else if (raised !== 0) context.interrupts.raise(0);
  }
  function compute(): void {
    if (registers.get("STATUS") & Status.COMPUTING) return;
    registers.set("STATUS", registers.get("STATUS") | Status.COMPUTING);
    context.run(async () => {
      await delay();
      let product = 1; // modulo 2^32, which is 0 after 34 factors at the latest
      for (let n = registers.get("FACTORIAL"); n > 1 && product !== 0; n--) product = Math.imul(product, n);
      registers.set("FACTORIAL", product);
      registers.set("STATUS", registers.get("STATUS") & ~Status.COMPUTING);
      if (registers.get("STATUS") & Status.INTERRUPT) interrupt(Cause.FACTORIAL);
    });
  }
  function transfer(command: number, previous: number): void {
    if ((command & ~previous & Command.RUN) === 0) return;
    const toMemory = (command & Command.TO_MEMORY) !== 0;
    const wanted = BigInt.asUintN(Math.min(dmaBits, 64), registers.get64(toMemory ? "TARGET" : "SOURCE"));
    const address = Number(BigInt.asIntN(64, wanted));
    const at = Number(registers.get64(toMemory ? "SOURCE" : "TARGET")) - BUFFER.OFFSET;
    const count = Number(registers.get64("COUNT"));
    context.run(async () => {
      await delay();
      try {
        if (!inBounds(at, count, BUFFER.SIZE)) return; // nothing is moved, and it ends like any other
        const part = buffer.subarray(at, at + count);
        await (toMemory ? context.dma.write(address, part) : context.dma.read(address, part));
      } finally {
        registers.set("COMMAND", command & ~Command.RUN);
        if (command & Command.INTERRUPT) interrupt(Cause.DMA);
      }
    });
  }

  return {
    identity: {
      vendorId: 0x1234,
      deviceId: 0x11e8,
      revisionId: 0x10,
      classCode: 0x00ff00,
      bars: { 0: { size: 0x10_0000 } },
      intx: true,
      capabilities: { msi: {} },
    },
    registers: { 0: registers },
    start(given) {
      context = given;
    },
    reset: () => void buffer.fill(0),
  };
}
