/** A virtio device in another process: it goes on with its rings, and takes nothing that is not its own. */
import test from "ava";
import { RegisterFile } from "../../../guest/pci/registers.js";
import { type Chain, virtioDevice } from "../../../guest/virtio/index.js";
import { decodeState, encodeState } from "../../../guest/virtio/state.js";
import { MigrationState } from "../../../shared/spec/vfio-user.js";
import { Feature, Status } from "../../../shared/spec/virtio.js";
import { BASE, bind, connect, some, VirtioDriver } from "./driver.js";

const FEATURES = Feature.VERSION_1 | Feature.RING_EVENT_IDX | Feature.RING_INDIRECT_DESC;

function echo(secret = 0) {
  let own = secret;
  const config = new RegisterFile(4, { VALUE: { offset: 0, size: 4, writable: 0xffff_ffff } });
  const device = virtioDevice({
    id: 4,
    queues: [{ name: "echo", size: 64, handle: serve }],
    config,
    save: () => Uint8Array.of(own),
    load: (state) => {
      if (state.length !== 1) throw new RangeError("no state");
      own = state[0];
    },
    inspect: () => ({ own }),
  });
  async function serve(chain: Chain): Promise<number> {
    const bytes = new Uint8Array(chain.readable.length);
    await chain.read(0, bytes);
    await chain.write(0, bytes);
    return bytes.length;
  }
  return device;
}

test.serial("a driver goes on with another process, with its rings and interrupts as they are", async (t) => {
  const from = await connect(t, echo(7));
  const { driver } = from;
  await driver.negotiate(FEATURES);
  const ring = await driver.queue(0, 8, FEATURES);
  await driver.driverOk();
  const roundTrip = async () => {
    const data = driver.put(some(50));
    const room = driver.room(50);
    ring.add(data, room);
    await driver.write(driver.places[2].offset, 2, 0);
    await ring.completed(1);
    return driver.at(room.address, 50).equals(driver.at(data.address, 50));
  };
  for (let n = 0; n < 20; n++) t.true(await roundTrip());
  await from.client.migration.setState(MigrationState.STOP_COPY);
  const parts: Uint8Array[] = [];
  for (;;) {
    const part = await from.client.migDataRead(4096);
    parts.push(part);
    if (part.length < 4096) break;
  }
  const to = await connect(t, echo(1));
  to.bytes.set(from.bytes);
  await to.client.migration.setState(MigrationState.RESUMING);
  await to.client.migDataWrite(Buffer.concat(parts));
  await to.client.migration.setState(MigrationState.RUNNING);
  const after = new VirtioDriver(to.client, to.bytes);
  Object.assign(after.places, driver.places);
  const vectors = await bind(t, to.client, 2);
  t.not((await after.get("deviceStatus", 1)) & Status.DRIVER_OK, 0);
  // The ring is the old one, in the new driver VM's memory.
  const data = some(30);
  after.at(BASE + 0x10_0000, 30).set(data);
  ring.driver = after;
  ring.interruptAfter(ring.usedIndex);
  ring.add({ address: BASE + 0x10_0000, length: 30 }, { address: BASE + 0x11_0000, length: 30, isWritable: true });
  await after.write(driver.places[2].offset, 2, 0);
  await ring.completed(1);
  t.deepEqual(Buffer.from(after.at(BASE + 0x11_0000, 30)), data);
  await vectors[1].next();
  const { device } = to.endpoint.inspect() as { device: { device: { own: number } } };
  t.is(device.device.own, 7);
});

test("a state of another device, or none, is refused", (t) => {
  const queues = [
    { size: 8, vector: 1, isEnabled: true, isResetting: false, descriptors: 4096, available: -4096, used: 8192 },
  ];
  const state = {
    features: FEATURES,
    isr: 1,
    queues,
    positions: [[65535, 3]] as const,
    config: Uint8Array.of(1, 2, 3, 4),
    own: Uint8Array.of(9),
  };
  const bytes = encodeState(state);
  const decoded = decodeState(bytes, 1, 4);
  t.deepEqual({ ...decoded, config: new Uint8Array(decoded.config), own: new Uint8Array(decoded.own) }, state);
  for (let length = 0; length < bytes.length - 1; length++) {
    t.throws(() => decodeState(bytes.subarray(0, length), 1, 4), { instanceOf: RangeError }, `${length} bytes`);
  }
  for (const [count, size] of [
    [2, 4],
    [1, 8],
  ])
    t.throws(() => decodeState(bytes, count, size), { instanceOf: RangeError });
});
