/** A client and a server over a real socket, when both behave. */
import { closeSync } from "node:fs";
import test from "ava";
import {
  addSeals,
  createMemory,
  eventfd,
  eventfdRead,
  eventfdWrite,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
} from "../../../native/index.js";
import { Command, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
import { Fixture } from "./fixture.js";

test("VERSION, then region reads and writes", async (t) => {
  const fixture = new Fixture(t);
  const client = await fixture.connect();
  t.is(client.version.minor, 2);
  t.is(client.version.capabilities.maxMsgFds, 16);
  t.true(client.version.capabilities.writeMultiple);
  t.is(fixture.backend.version?.maxDataXferSize, 1048576);
  t.deepEqual(await client.regionRead(0, 0x10, 4), Uint8Array.of(0x10, 0x11, 0x12, 0x13));
  const target = new Uint8Array(3);
  t.is(await client.regionRead(7, 4093, target), target);
  t.deepEqual(target, Uint8Array.of(0xfd, 0xfe, 0xff));
  await client.regionWrite(0, 0x1ffc, Uint8Array.of(1, 2, 3, 4));
  await client.regionWrite(0, 8, Uint8Array.of(9), true);
  await client.reset();
  t.deepEqual(
    fixture.backend.commands.map(({ command }) => command),
    [Command.REGION_READ, Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE, Command.DEVICE_RESET],
  );
  t.like(fixture.server.stats, { clients: 1, commands: 6, reads: 2, writes: 2, errors: 0, connected: true });
});

test("memory is mapped with its fd when it is sealed, and let go", async (t) => {
  const fixture = new Fixture(t);
  const { backend, server } = fixture;
  const client = await fixture.connect();
  const fd = createMemory("driver-vm", 0x4000, false);
  addSeals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
  await client.mapMemory({ address: 0x10000, size: 0x2000, fd, fdOffset: 0x1000 });
  await client.mapMemory({ address: 0x20000, size: 0x1000 });
  closeSync(fd);
  t.like(backend.maps[0], { address: 0x10000, size: 0x2000, readable: true, writable: true, fdOffset: 0x1000 });
  t.not(backend.maps[0].fd, -1);
  t.is(backend.maps[1].fd, -1);
  t.is(server.stats.maps, 2);
  await client.unmapMemory(0x10000, 0x2000);
  t.deepEqual(
    backend.maps.map(({ address }) => address),
    [0x20000],
  );
  await client.unmapAll();
  t.is(server.stats.maps, 0);
});

test("interrupts: eventfds arrive, all forms are understood", async (t) => {
  const fixture = new Fixture(t);
  const client = await fixture.connect();
  const fds = [eventfd(0), eventfd(0)];
  await client.setIrqs({ index: 2, start: 1, eventfds: fds });
  const [first] = fixture.backend.irqs;
  t.is(first.eventfds?.length, 2);
  eventfdWrite(first.eventfds?.[1] ?? -1);
  t.is(eventfdRead(fds[1]), 1);
  for (const fd of fds) closeSync(fd);
  await client.setIrqs({ index: 2, count: 300, eventfds: [] });
  await client.setIrqs({ index: 0, action: "mask", bools: [true] });
  await client.setIrqs({ index: 2 });
  t.deepEqual(
    fixture.backend.irqs
      .slice(1)
      .map(({ flags, start, count, bools, eventfds }) => ({ flags, start, count, bools, eventfds })),
    [
      {
        flags: IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER,
        start: 0,
        count: 300,
        bools: undefined,
        eventfds: new Array(300).fill(-1),
      },
      {
        flags: IrqSetFlags.DATA_BOOL | IrqSetFlags.ACTION_MASK,
        start: 0,
        count: 1,
        bools: Uint8Array.of(1),
        eventfds: undefined,
      },
      {
        flags: IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER,
        start: 0,
        count: 0,
        bools: undefined,
        eventfds: undefined,
      },
    ],
  );
});

for (const dmaLayout of ["specification", "qemu"] as const) {
  test(`DMA by message, as ${dmaLayout} lays it out`, async (t) => {
    const fixture = new Fixture(t);
    const client = await fixture.connect({ dmaLayout, capabilities: { maxDataXferSize: 0x1000 } });
    const memory = new Uint8Array(0x3000);
    client.registerMemory(0x8000, memory);
    memory.set([1, 2, 3, 4, 5], 0x10);
    const target = new Uint8Array(5);
    const dma = fixture.backend.memory;
    if (dma === undefined) return t.fail();
    await dma.read(0x8010, target);
    t.deepEqual(target, Uint8Array.of(1, 2, 3, 4, 5));
    const source = Uint8Array.from({ length: 0x2800 }, (_, index) => index % 251);
    await dma.write(0x8000, source);
    t.deepEqual(memory.subarray(0, 0x2800), source);
    await t.throwsAsync(dma.read(0x7fff, target), { message: /refused/ });
    t.is((await client.regionRead(0, 0, 1))[0], 0);
  });
}
