/**
 * A device that does not let go: the client's unmap, reset and leaving do not wait for it for ever, the memory is out
 * of its reach all the same, and when it finishes after all everything goes on.
 */
import type { ExecutionContext } from "ava";
import { DmaError } from "../../../guest/device.js";
import { eventfdRead } from "../../../native/index.js";
import { MiB } from "../../../shared/limits.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { Registers, Statuses } from "../../fakes/copy-device.js";
import { both, type Machine, memory } from "./machine.js";

const BASE = 0x1_0000_0000;
const OPTIONS = { quiesceDeadlineMs: 80 } as const;

/** A promise of the device's that the test keeps. */
function hold(device: Machine["device"], what: "onQuiesce" | "onReset"): () => void {
  let release = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  device[what] = () => held;
  return () => {
    device[what] = async () => {};
    release();
  };
}

/** The window as the device sees `address`. */
function view(t: ExecutionContext, { device }: Machine, address: number): Uint8Array {
  const bytes = device.context.dma.view(address, MiB, "write");
  t.truthy(bytes);
  return bytes ?? new Uint8Array(0);
}

both(
  "unmap: the memory is taken by force, and nothing else is put where it was",
  async (t, machine) => {
    const { client, device, enable, bind, copy, read32 } = machine;
    const [first, second] = [memory(t, MiB), memory(t, MiB)];
    await client.mapMemory({ address: BASE, size: MiB, fd: first.fd });
    await enable();
    await bind();
    const stale = view(t, machine, BASE);
    stale[0] = 1;
    t.is(first.bytes[0], 1);
    const finish = hold(device, "onQuiesce");
    await client.unmapMemory(BASE, MiB);
    t.is(stale[0], 0);
    stale.fill(2);
    t.is(first.bytes[0], 1);

    // The device is served meanwhile, by new memory too; what it held before is not that.
    t.is(await read32(Registers.STATUS), Statuses.IDLE);
    await client.mapMemory({ address: BASE, size: MiB, fd: second.fd });
    stale.fill(3);
    t.true(second.bytes.every((byte) => byte === 0));
    view(t, machine, BASE)[7] = 4;
    t.is(second.bytes[7], 4);
    await client.mapMemory({ address: 2 * BASE, size: MiB, fd: first.fd });
    await client.unmapAll();
    t.throws(() => device.context.dma.readSync(BASE, new Uint8Array(1)));

    finish();
    await client.mapMemory({ address: BASE, size: MiB, fd: second.fd });
    t.is(await copy(BASE, BASE + 1, 8), Statuses.DONE);
    await client.unmapMemory(BASE, MiB);
  },
  OPTIONS,
);

both(
  "reset: answered in time where the device is late; it is cut off until then, and what the driver VM set up stays",
  async (t, machine) => {
    const { client, device, enable, bind, copy, write32, read32, doorbells } = machine;
    const { fd, bytes } = memory(t, MiB);
    await client.mapMemory({ address: BASE, size: MiB, fd });
    await enable();
    await bind();
    await write32(Registers.SCRATCH, 7);
    const finish = hold(device, "onReset");
    await client.reset();
    const command = async () => (await client.regionRead(Region.CONFIG, Header.COMMAND, 1))[0];
    t.is(await command(), 0, "config space is as after a reset at once");

    // The next driver sets the function up, and finds BARs that do not answer.
    await enable();
    await client.regionWrite(Region.CONFIG, Header.INTERRUPT_LINE, Uint8Array.of(5));
    await bind();
    t.is(await read32(Registers.SCRATCH), 0xffff_ffff);
    const before = device.accesses.length;
    await write32(Registers.SCRATCH, 8);
    t.is(device.accesses.length, before, "no access reaches the device");
    t.throws(() => device.context.dma.writeSync(BASE, Uint8Array.of(1)), { instanceOf: DmaError });
    await t.throwsAsync(device.context.dma.write(BASE, Uint8Array.of(1)), { instanceOf: DmaError });
    t.is(device.context.dma.view(BASE, 1, "write"), undefined);
    device.context.interrupts.trigger(1);
    await client.reset();
    await enable();
    await client.regionWrite(Region.CONFIG, Header.INTERRUPT_LINE, Uint8Array.of(6));

    finish();
    while ((await read32(Registers.SCRATCH)) !== 0) await new Promise((resolve) => setImmediate(resolve));
    t.is((await client.regionRead(Region.CONFIG, Header.INTERRUPT_LINE, 1))[0], 6);
    t.not(await command(), 0);
    t.is(bytes[0], 0);
    t.is(eventfdRead(doorbells[1].fd), 0, "no interrupt of before");
    await bind();
    t.is(await copy(BASE, BASE + 1, 8), Statuses.DONE);
  },
  OPTIONS,
);

both("bus mastering cleared: answered when the DMA in flight has ended", async (t, { client, device, enable }) => {
  await enable();
  const finish = hold(device, "onQuiesce");
  let cleared = false;
  const clearing = client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(CommandBits.MEMORY)).then(() => {
    cleared = true;
  });
  while (!device.events.includes("quiesce")) await new Promise((resolve) => setImmediate(resolve));
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
  t.false(cleared);
  finish();
  await clearing;
});

both(
  "a client that leaves takes its memory along; the next one waits for the device",
  async (t, machine) => {
    const { client, device, socket } = machine;
    const { fd, bytes } = memory(t, MiB);
    await client.mapMemory({ address: BASE, size: MiB, fd });
    await machine.enable();
    const stale = view(t, machine, BASE);
    stale[0] = 1;
    const finish = hold(device, "onReset");
    client.close();
    let served = false;
    const connecting = Client.connect(socket).then((next) => {
      served = true;
      return next;
    });
    while (stale[0] !== 0) await new Promise((resolve) => setImmediate(resolve));
    stale.fill(2);
    t.is(bytes[0], 1);
    t.false(served);
    finish();
    const next = await connecting;
    t.teardown(() => next.close());
    t.is((await next.regionRead(Region.BAR0, Registers.STATUS, 4))[0], Statuses.IDLE);
    await next.mapMemory({ address: BASE, size: MiB, fd });
  },
  OPTIONS,
);

both(
  "the end: it does not wait for ever",
  async (t, { client, device, end }) => {
    const { fd } = memory(t, MiB);
    await client.mapMemory({ address: BASE, size: MiB, fd });
    hold(device, "onReset");
    hold(device, "onQuiesce");
    t.deepEqual(await end(), []);
    t.true(device.events.includes("close"));
  },
  OPTIONS,
);
