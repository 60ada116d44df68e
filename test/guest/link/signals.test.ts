/** How often the device process and the bridge wake each other up. */
import test from "ava";
import { Queue } from "../../../shared/spec/link.js";
import { Command, HeaderFlags, Region, RegionAccess } from "../../../shared/spec/vfio-user.js";
import { Feature } from "../../../shared/spec/virtio.js";
import { Registers } from "../../fakes/copy-device.js";
import { PciBridge, type Received } from "../../fakes/pci-bridge.js";
import { ADDRESS, setUp } from "./in-process.js";

const BURST = 40;
const turn = () => new Promise((resolve) => setImmediate(resolve));
const read = () => RegionAccess.encode({ offset: 0, region: Region.CONFIG, count: 4 });

for (const [name, offered, taken] of [
  ["event indices", Feature.VERSION_1 | Feature.RING_EVENT_IDX, Feature.VERSION_1 | Feature.RING_EVENT_IDX],
  ["flags", Feature.VERSION_1, Feature.VERSION_1],
] as const) {
  const start = async (t: Parameters<typeof setUp>[0]) => {
    const bridge = new PciBridge();
    bridge.offeredFeatures = offered;
    const machine = await setUp(t, bridge);
    t.is(bridge.driverFeatures, taken);
    await machine.connect();
    return machine;
  };

  test(`buffers given back are not told of while the bridge has some: ${name}`, async (t) => {
    const { bridge } = await start(t);
    bridge.notified.length = 0;
    for (let n = 0; n < 300; n++) t.is((await bridge.request(Command.REGION_READ, read())).body.length, 20);
    t.false(bridge.notified.includes(Queue.TO_DEVICE));
  });

  test(`a bridge that ran out of buffers hears of new ones: ${name}`, async (t) => {
    const { bridge } = await start(t);
    bridge.notified.length = 0;
    const body = RegionAccess.encode({ offset: 0, region: Region.BAR0, count: 0 });
    // The driver is not called, so that nothing comes back meanwhile.
    bridge.masked = true;
    t.throws(
      () => {
        for (;;) bridge.send(Command.REGION_WRITE, body);
      },
      { message: /no buffer/ },
    );
    t.false(bridge.notified.includes(Queue.TO_DEVICE));
    bridge.masked = false;
    bridge.raiseInterrupt();
    t.is(bridge.notified.filter((queue) => queue === Queue.TO_DEVICE).length, name === "flags" ? 4 : 1);
    t.is((await bridge.request(Command.REGION_READ, read())).errno, 0);
  });

  test(`a burst of replies is one notification when the bridge takes its time: ${name}`, async (t) => {
    const { bridge } = await start(t);
    // To the end, so that it asks for a notification.
    t.is(bridge.poll(), undefined);
    bridge.notified.length = 0;
    const { interrupts } = bridge;
    for (let n = 0; n < BURST; n++) bridge.send(Command.REGION_READ, read());
    await turn();
    t.is(bridge.interrupts - interrupts, BURST, "each is dealt with before the next one comes");
    const kicks = bridge.notified.filter((queue) => queue === Queue.FROM_DEVICE).length;
    t.is(kicks, name === "flags" ? BURST : 1);
    for (let n = 0; n < BURST; n++) t.is(bridge.poll()?.command, Command.REGION_READ);
  });

  test(`what was not received while too much waited is received without an interrupt: ${name}`, async (t) => {
    const { bridge, link, map, device } = await start(t);
    await map({ flags: 3 });
    t.is(bridge.poll(), undefined);
    // All transmit buffers, and more waiting than the link takes messages with.
    const reads = Array.from({ length: 170 }, () => link.readMemory(ADDRESS, new Uint8Array(4), false));
    const write = RegionAccess.encode({ offset: Registers.SCRATCH, region: Region.BAR0, count: 1 });
    bridge.send(Command.REGION_WRITE, Buffer.concat([write, Buffer.of(77)]), HeaderFlags.NO_REPLY);
    await turn();
    const scratch = () => device.readBar(0, Registers.SCRATCH, 1);
    t.is(scratch(), 0, "it is held back");
    const asked: Received[] = [];
    const take = () => {
      for (let message = bridge.poll(); message !== undefined; message = bridge.poll()) asked.push(message);
    };
    take();
    // The next message to send finds the buffers that came back, before any interrupt tells of them.
    reads.push(link.readMemory(ADDRESS, new Uint8Array(4), false));
    await turn();
    t.is(scratch(), 77);
    while (asked.length < reads.length) {
      take();
      bridge.raiseInterrupt();
    }
    for (const message of asked) bridge.reply(message, Buffer.concat([message.body, Buffer.alloc(4)]));
    await Promise.all(reads);
  });
}
