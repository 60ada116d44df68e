/** Regions of a device's own at the bridge: which indices are passed on, and which capabilities. */
import test from "ava";
import { fileStatus } from "../../../../native/index.js";
import { Errno } from "../../../../shared/errors.js";
import { MAX_REGIONS } from "../../../../shared/limits.js";
import { LinkCommand } from "../../../../shared/spec/link.js";
import {
  Command,
  RegionAccess,
  RegionCap,
  RegionInfo,
  RegionInfoFlags,
  RegionType,
  SparseMmap,
  SparseMmapArea,
} from "../../../../shared/spec/vfio-user.js";
import type { Client } from "../../../../shared/vfio-user/client/client.js";
import { BAR_SIZE } from "../../../fakes/front-end-device.js";
import { closeFd } from "../raw-peer.js";
import { ones, pattern, setUp } from "../set-up.js";
import {
  allocated,
  allocateEvents,
  allocateMemory,
  PARTS,
  refusal,
  regionInfoWith,
  replyWithHandles,
} from "./sharing-set-up.js";

const OWN = 9;
const INFO = Command.DEVICE_GET_REGION_INFO;
const TYPE = { id: RegionCap.TYPE, body: RegionType.encode({ type: 0x8000_1234, subtype: 7 }) };
const SPARSE = {
  id: RegionCap.SPARSE_MMAP,
  body: Buffer.concat([
    SparseMmap.encode({ areas: PARTS.length }),
    ...PARTS.map((part) => SparseMmapArea.encode(part)),
  ]),
};

test.serial("accesses are passed on within the sizes that HELLO has", async (t) => {
  const { device, connect } = await setUp(t, { device: { ownRegions: [100, 0] } });
  const client = await connect();
  t.is((await client.getInfo()).numRegions, 11);
  await client.regionWrite(OWN, 10, pattern(4));
  t.deepEqual(await client.regionRead(OWN, 10, 4), pattern(4));
  const wrote = device.received.filter(({ command }) => command === Command.REGION_WRITE);
  t.is(wrote.length, 1);
  t.is(RegionAccess.view(wrote[0].data).region, OWN);
  t.is(wrote[0].flags, 0, "it is not posted");
  const before = device.received.length;
  for (const [region, offset, count] of [
    [OWN, 97, 4],
    [OWN, 2 ** 52, 1],
    [OWN + 1, 0, 1],
    [OWN + 2, 0, 1],
    [32, 0, 1],
    [0xffff_ffff, 0, 1],
  ]) {
    await t.throwsAsync(client.regionRead(region, offset, count), refusal(Errno.EINVAL));
    await t.throwsAsync(client.regionWrite(region, offset, new Uint8Array(count)), refusal(Errno.EINVAL));
  }
  for (const index of [11, 32, 0xffff_ffff]) {
    await t.throwsAsync(client.getRegionInfo(index), refusal(Errno.EINVAL));
    await t.throwsAsync(client.getRegionIoFds(index), refusal(Errno.EINVAL));
  }
  t.is(device.received.length, before, "none of it reached the device process");
});

test.serial("a posted region can be any but config space, up to the last", async (t) => {
  const ownRegions = new Array(MAX_REGIONS - OWN).fill(16);
  const { device, connect } = await setUp(t, { device: { ownRegions, postedRegions: 2 ** 31 } });
  const client = await connect();
  device.onCommand = ({ command }) => command === Command.REGION_WRITE;
  await client.regionWrite(31, 0, Uint8Array.of(1));
  const wrote = await device.waitFor(Command.REGION_WRITE);
  t.is(wrote.flags & 0x10, 0x10);
  t.is(RegionAccess.view(wrote.data).region, 31);
});

test.serial("memory and eventfds of a region of the device's own", async (t) => {
  const { frontEnd, device, connect, bridge } = await setUp(t, { device: { ownRegions: [BAR_SIZE] } });
  frontEnd.reset();
  device.start();
  for (const region of [6, 7, 8, MAX_REGIONS]) {
    t.is((await allocateMemory(device, region, PARTS)).errno, Errno.EINVAL);
    t.is((await allocateEvents(device, region, 1)).errno, Errno.EINVAL);
  }
  const { handle } = allocated(frontEnd, await allocateMemory(device, OWN, PARTS), PARTS);
  t.is((await allocateEvents(device, OWN, 1)).errno, 0);
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, 0);
  const { READ, WRITE, MMAP, CAPS } = RegionInfoFlags;
  const info = { index: OWN, flags: READ | WRITE | MMAP | CAPS };
  device.onCommand = (received) => {
    if (received.command !== INFO) return false;
    const whole = regionInfoWith([TYPE, SPARSE], info);
    if (received.data.getUint32(0, true) >= whole.length) replyWithHandles(device, received, whole, [handle]);
    else device.reply(received, whole.subarray(0, RegionInfo.size));
    return true;
  };
  const client = await connect();
  const { areas, type, flags, fd } = await client.getRegionInfo(OWN);
  t.deepEqual(areas, [...PARTS]);
  t.deepEqual(type, { type: 0x8000_1234, subtype: 7 });
  t.is(flags, info.flags);
  t.is(fileStatus(fd).size, PARTS[1].offset + PARTS[1].size);
  closeFd(fd);
  t.notRegex(bridge.log, /broke the link/);
});

test.serial("memory of a region that HELLO does not have costs the link", async (t) => {
  const { frontEnd, device, bridge } = await setUp(t);
  frontEnd.reset();
  device.start();
  t.is((await allocateMemory(device, OWN, PARTS)).errno, 0);
  t.is((await device.request(LinkCommand.HELLO, device.hello())).errno, Errno.EINVAL);
  await bridge.logged(/"msg":"the device process broke the link"/);
  await device.startAndGreet();
});

/** Asks with room for everything. */
const ask = (client: Client, index = OWN) =>
  client.request(INFO, RegionInfo.encode({ argsz: 512, index }), { maxFds: 1 });

test.serial("a type without an fd goes through; MMAP does not", async (t) => {
  const { device, connect } = await setUp(t, { device: { ownRegions: [BAR_SIZE] } });
  const client = await connect();
  device.onCommand = (received) => {
    if (received.command !== INFO) return false;
    device.reply(received, regionInfoWith([TYPE], { index: OWN, flags: 0xf }));
    return true;
  };
  const { data, fds } = await ask(client);
  t.is(RegionInfo.view(data).flags, RegionInfoFlags.READ | RegionInfoFlags.WRITE | RegionInfoFlags.CAPS);
  t.deepEqual(fds, []);
  // The client library asks first for the fixed part, and gets it when the device process is honest.
  device.onCommand = (received) => {
    if (received.command !== INFO) return false;
    const whole = regionInfoWith([TYPE], { index: OWN });
    device.reply(
      received,
      received.data.getUint32(0, true) < whole.length ? whole.subarray(0, RegionInfo.size) : whole,
    );
    return true;
  };
  const region = await client.getRegionInfo(OWN);
  t.deepEqual(region.type, { type: 0x8000_1234, subtype: 7 });
  t.is(region.isSparse, false);
});

const lies: Record<string, Uint8Array<ArrayBuffer>> = {
  "areas without the memory": regionInfoWith([TYPE, SPARSE], { index: OWN }),
  "another size": regionInfoWith([TYPE], { index: OWN, size: 2 * BAR_SIZE }),
  "capabilities in the fixed part": regionInfoWith([TYPE], { index: OWN, capOffset: 8 }),
  "capabilities behind the end": regionInfoWith([TYPE], { index: OWN, capOffset: 48 }),
  "capabilities far away": regionInfoWith([TYPE], { index: OWN, capOffset: 0xffff_fff8 }),
  "a capability after itself": regionInfoWith([{ ...TYPE, next: RegionInfo.size }], { index: OWN }),
  "a capability after the one behind it": regionInfoWith(
    [TYPE, { id: 9, body: new Uint8Array(8), next: RegionInfo.size }],
    {
      index: OWN,
    },
  ),
  "a next that is nowhere": regionInfoWith([{ ...TYPE, next: 0x1000 }], { index: OWN }),
  "two types": regionInfoWith([TYPE, TYPE], { index: OWN }),
  "a type that is cut": regionInfoWith([{ id: RegionCap.TYPE, body: new Uint8Array(4) }], { index: OWN }),
};
test.serial("capabilities that lie: an error for the client, and no more", async (t) => {
  const { device, connect, bridge } = await setUp(t, { device: { ownRegions: [BAR_SIZE] } });
  const client = await connect();
  let count = 0;
  for (const [name, body] of Object.entries(lies)) {
    device.onCommand = (received) => {
      if (received.command === INFO) device.reply(received, body);
      return received.command === INFO;
    };
    await t.throwsAsync(ask(client), refusal(Errno.EIO), name);
    await bridge.logged(/"level":40.*"msg":"refused a reply of the device process"/, ++count);
  }
  t.notRegex(bridge.log, /broke the link/);
});

const breaks: Record<string, Uint8Array<ArrayBuffer>> = {
  "an argsz that lies": regionInfoWith([TYPE], { index: OWN, argsz: 100 }),
  "another region": regionInfoWith([TYPE], { index: 0 }),
  "more than was asked for": regionInfoWith([TYPE, { id: 9, body: new Uint8Array(512) }], { index: OWN }),
};
for (const [name, body] of Object.entries(breaks)) {
  test.serial(`a type with ${name} costs the device process the link`, async (t) => {
    const { device, connect, bridge } = await setUp(t, { device: { ownRegions: [BAR_SIZE] } });
    const client = await connect();
    device.onCommand = (received) => {
      if (received.command === INFO) device.reply(received, body);
      return received.command === INFO;
    };
    await t.throwsAsync(ask(client), refusal(Errno.ENODEV));
    await bridge.logged(/"msg":"the device process broke the link"/);
    t.deepEqual(await client.regionRead(OWN, 0, 4), ones(4));
  });
}
