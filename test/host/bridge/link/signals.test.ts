/** How often the bridge interrupts the device VM, and what it makes of event indices that a driver makes up. */
import test from "ava";
import { Queue } from "../../../../shared/spec/link.js";
import { Command, Region, RegionAccess } from "../../../../shared/spec/vfio-user.js";
import { message, RawClient, versionBody } from "../../../shared/vfio-user/raw-client.js";
import { setUp } from "../set-up.js";

const BURST = 60;
const BURSTS = 20;

const write = (id: number) =>
  message(
    Command.REGION_WRITE,
    Buffer.concat([RegionAccess.encode({ offset: 0, region: Region.BAR0, count: 4 }), Buffer.alloc(4, id)]),
    { id },
  );

for (const eventIndex of [true, false]) {
  const way = eventIndex ? "event indices" : "flags";

  test.serial(`bursts of posted writes are a few interrupts: ${way}`, async (t) => {
    const { bridge, device, frontEnd } = await setUp(t, { device: { eventIndex, bufferSize: 64, buffers: 64 } });
    const raw = new RawClient(bridge.socketPath);
    t.teardown(() => raw.close());
    await raw.exchange(message(Command.VERSION, versionBody("{}")));
    for (let n = 0; n < BURSTS; n++) {
      const after = device.received.length;
      raw.send(Buffer.concat(Array.from({ length: BURST }, (_, id) => write(id))));
      for (let id = 0; id < BURST; id++) t.is((await raw.receive()).id, id);
      await device.waitFor((last) => last.body.at(-1) === BURST - 1, after);
    }
    t.is(device.received.filter(({ command }) => command === Command.REGION_WRITE).length, BURST * BURSTS);
    frontEnd.quit();
    await bridge.logged(/"msg":"statistics"/);
    const signals = Number(/"messageSignals":(\d+)/.exec(bridge.log)?.[1]);
    t.log(`${signals} interrupts for ${BURST * BURSTS} messages`);
    t.true(signals >= 2);
    // The bridge receives a burst in one go, or in a few.
    t.true(signals < (BURST * BURSTS) / 4, `${signals}`);
  });

  test.serial(`messages of both kinds cross, one buffer at a time: ${way}`, async (t) => {
    const { device, connect } = await setUp(t, { device: { eventIndex, bufferSize: 512, buffers: 2 } });
    const client = await connect();
    const bytes = new Uint8Array(0x3000).map((_, n) => n * 7);
    await client.regionWrite(Region.BAR0, 0, bytes);
    const reads = await Promise.all(
      Array.from({ length: 50 }, (_, n) => client.regionRead(Region.BAR0, 0x100 * (n % 16), 0x1000)),
    );
    for (const [n, read] of reads.entries()) {
      t.deepEqual(read, bytes.slice(0x100 * (n % 16), 0x100 * (n % 16) + 0x1000));
    }
    t.true(device.received.length >= 51);
  });
}

test.serial("any event index of the driver's is harmless", async (t) => {
  const { device, connect } = await setUp(t, { device: { eventIndex: true } });
  const client = await connect();
  const interval = setInterval(() => device.poll(), 1);
  t.teardown(() => clearInterval(interval));
  const [toDevice, fromDevice] = [device.rings[Queue.TO_DEVICE], device.rings[Queue.FROM_DEVICE]];
  for (let n = 0; n < 100; n++) {
    const answer = client.regionRead(Region.BAR0, 0, 4);
    toDevice.setUsedEvent((n * 0x2f1) & 0xffff);
    fromDevice.setUsedEvent((n * 0x5a7) & 0xffff);
    t.is((await answer).length, 4);
  }
});
