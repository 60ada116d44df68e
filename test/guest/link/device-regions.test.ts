/** Regions of a device's own, over both links: how they are described, and what can be done with them. */
import test, { type ExecutionContext } from "ava";
import { close, eventfdWrite, fileStatus, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { Command, MigrationState, RegionInfo, RegionInfoFlags } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { EVENT, Own, PARTS, RegionsDevice, TYPE } from "../../fakes/regions-device.js";
import { connectDevice } from "./machine.js";

type Machine = Awaited<ReturnType<typeof connectDevice<RegionsDevice>>>;
const { READ, WRITE, MMAP, CAPS } = RegionInfoFlags;
const refusal = (errno: number) => ({ message: new RegExp(`errno ${errno}`) });

function both(title: string, run: (t: ExecutionContext, machine: Machine) => Promise<void>): void {
  for (const kind of ["local", "virtio"] as const) {
    test.serial(`${kind}: ${title}`, async (t) => {
      const machine = await connectDevice(kind, new RegionsDevice());
      try {
        await run(t, machine);
      } finally {
        t.deepEqual(await machine.end(), []);
      }
    });
  }
}

both("they are counted and described, with their type, and behind it their areas", async (t, { client, socket }) => {
  t.is((await client.getInfo()).numRegions, 14);
  const describe = async (from: Client, index: number) => {
    const { flags, size, areas, isSparse, type, fd } = await from.getRegionInfo(index);
    if (fd >= 0) close(fd);
    return { flags, size, areas, isSparse, type, hasFd: fd >= 0 };
  };
  const plain = { areas: [], isSparse: false, hasFd: false };
  t.deepEqual(await describe(client, Own.REGISTERS), {
    ...plain,
    flags: READ | WRITE | CAPS,
    size: 100,
    type: { type: TYPE, subtype: 1 },
  });
  t.deepEqual(await describe(client, Own.PART), {
    flags: READ | WRITE | MMAP | CAPS,
    size: 0x3800,
    areas: [...PARTS],
    isSparse: true,
    hasFd: true,
    type: { type: TYPE, subtype: 2 },
  });
  t.deepEqual(await describe(client, Own.WHOLE), {
    ...plain,
    flags: READ | WRITE | MMAP | CAPS,
    size: 0x2000,
    hasFd: true,
    type: { type: 1, subtype: 0xffff_ffff },
  });
  t.is((await describe(client, Own.READ_ONLY)).flags, READ | CAPS);
  t.is((await describe(client, Own.WRITE_ONLY)).flags, WRITE | CAPS);
  t.is((await describe(client, 0)).type, undefined);
  await t.throwsAsync(client.getRegionInfo(14), refusal(Errno.EINVAL));
  await t.throwsAsync(client.getRegionInfo(32), refusal(Errno.EINVAL));
  client.close();
  const poorer = await Client.connect(socket, { capabilities: { maxMsgFds: 0 } });
  t.deepEqual(
    await describe(poorer, Own.PART),
    { ...plain, flags: READ | WRITE | CAPS, size: 0x3800, type: { type: TYPE, subtype: 2 } },
    "a client that takes no fds has no areas, but the type",
  );
  poorer.close();
});

both("capabilities come whole, or the reply says how much they need", async (t, { client }) => {
  const type = 16;
  for (const [index, capabilities] of [
    [Own.REGISTERS, type],
    [Own.PART, type + 16 + 2 * 16],
    [Own.WHOLE, type],
  ]) {
    const needed = RegionInfo.size + capabilities;
    for (const argsz of [RegionInfo.size, needed - 1]) {
      const body = RegionInfo.encode({ argsz, index });
      const reply = await client.request(Command.DEVICE_GET_REGION_INFO, body, { maxFds: 1 });
      t.is(reply.body.length, RegionInfo.size);
      t.deepEqual(reply.fds, []);
      const info = RegionInfo.view(reply.data);
      t.deepEqual([info.argsz, info.flags, info.capOffset], [needed, READ | WRITE, 0]);
    }
    const reply = await client.request(Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: needed, index }), {
      maxFds: 1,
    });
    t.is(reply.body.length, needed);
    for (const fd of reply.fds) close(fd);
  }
});

both("accesses reach registers, the device and memory, within bounds", async (t, { client, device }) => {
  const read = async (region: number, offset: number, count: number) => [
    ...(await client.regionRead(region, offset, count)),
  ];
  t.deepEqual(await read(Own.REGISTERS, 0, 4), [0x78, 0x56, 0x34, 0x12]);
  await client.regionWrite(Own.REGISTERS, 4, Uint8Array.of(1, 2, 3, 4));
  t.deepEqual(await read(Own.REGISTERS, 4, 4), [1, 2, 0, 0]);
  t.is(await client.writeMulti([{ region: Own.REGISTERS, offset: 5, bytes: Uint8Array.of(9) }]), 1);
  t.deepEqual(await read(Own.REGISTERS, 4, 2), [1, 9]);
  t.deepEqual(device.accesses, []);
  t.deepEqual(await read(Own.REGISTERS, 98, 2), [99, 0]);
  await client.regionWrite(Own.REGISTERS, 8, Uint8Array.of(7));
  t.deepEqual(device.accesses.splice(0), [`r2 ${Own.REGISTERS}:98`, `w1 ${Own.REGISTERS}:8=7`]);
  for (const [offset, count] of [
    [100, 1],
    [97, 4],
    [2 ** 40, 1],
  ]) {
    await t.throwsAsync(client.regionRead(Own.REGISTERS, offset, count), refusal(Errno.EINVAL));
    const bytes = new Uint8Array(count);
    await t.throwsAsync(client.regionWrite(Own.REGISTERS, offset, bytes), refusal(Errno.EINVAL));
    await t.throwsAsync(client.writeMulti([{ region: Own.REGISTERS, offset, bytes }]), refusal(Errno.EINVAL));
  }
  await t.throwsAsync(client.regionRead(14, 0, 1), refusal(Errno.EINVAL));
  t.deepEqual(await read(Own.READ_ONLY, 2, 1), [3]);
  await t.throwsAsync(client.regionWrite(Own.READ_ONLY, 0, Uint8Array.of(1)), refusal(Errno.EINVAL));
  await t.throwsAsync(
    client.writeMulti([{ region: Own.READ_ONLY, offset: 0, bytes: Uint8Array.of(1) }]),
    refusal(Errno.EINVAL),
  );
  await client.regionWrite(Own.WRITE_ONLY, 3, Uint8Array.of(8));
  await t.throwsAsync(client.regionRead(Own.WRITE_ONLY, 0, 1), refusal(Errno.EINVAL));
  t.deepEqual(device.accesses.splice(0), [`r1 ${Own.READ_ONLY}:2`, `w1 ${Own.WRITE_ONLY}:3=8`]);
});

both("memory is the client's, the device's and messages'", async (t, { client, device, socket }) => {
  const map = async (from: Client, index: number) => {
    const { fd, areas, size } = await from.getRegionInfo(index);
    const { inode } = fileStatus(fd);
    const views = (areas.length > 0 ? areas : [{ offset: 0, size }]).map(
      (area) => new Uint8Array(mapFile(fd, area.offset, area.size, PROT_READ | PROT_WRITE)),
    );
    close(fd);
    return { views, inode };
  };
  const shared = (index: number, part = 0) => device.context?.shared(index, part) ?? new Uint8Array(0);
  const { views, inode } = await map(client, Own.PART);
  views[0][1] = 11;
  shared(Own.PART, 1)[2] = 12;
  t.is(shared(Own.PART)[1], 11);
  t.is(views[1][2], 12);
  t.deepEqual([...(await client.regionRead(Own.PART, 0x2000, 2))], [0, 11]);
  await client.regionWrite(Own.PART, 3, Uint8Array.of(13));
  t.is(views[1][3], 13);
  t.deepEqual(device.accesses, []);
  await client.regionRead(Own.PART, 0x1000, 4);
  t.deepEqual(device.accesses, [`r4 ${Own.PART}:4096`]);
  const whole = await map(client, Own.WHOLE);
  whole.views[0][0x1fff] = 14;
  t.is(shared(Own.WHOLE)[0x1fff], 14);
  client.close();
  const next = await Client.connect(socket);
  const fresh = await map(next, Own.PART);
  t.not(fresh.inode, inode);
  t.deepEqual([fresh.views[0][1], shared(Own.WHOLE)[0x1fff]], [0, 0], "nothing of the last client's");
  next.close();
});

both("ioeventfds, and the message that they stand for", async (t, { client, device }) => {
  const { events, fds } = await client.getRegionIoFds(Own.REGISTERS);
  t.like(events, [{ offset: EVENT.offset, size: EVENT.size, datamatch: EVENT.datamatch }]);
  const told = new Promise<void>((resolve) => {
    device.onEvent = resolve;
  });
  eventfdWrite(fds[events[0].fd]);
  await told;
  for (const fd of fds) close(fd);
  await client.regionWrite(Own.REGISTERS, EVENT.offset, Uint8Array.of(5, 0, 0, 0));
  t.deepEqual(device.events, [`${Own.REGISTERS}:0=5`, `${Own.REGISTERS}:0=5`]);
  t.deepEqual((await client.getRegionIoFds(Own.WHOLE)).events, []);
  await t.throwsAsync(client.getRegionIoFds(14), refusal(Errno.EINVAL));
});

both("they move with the function, and stand still meanwhile", async (t, { client, device }) => {
  await client.regionWrite(Own.REGISTERS, 4, Uint8Array.of(0x34, 0x12));
  await client.regionWrite(Own.WHOLE, 0x10, Uint8Array.of(77));
  await client.migration.setState(MigrationState.STOP_COPY);
  await t.throwsAsync(client.regionRead(Own.REGISTERS, 0, 4), refusal(Errno.EINVAL));
  const stream = await client.migration.readAll();
  await client.reset();
  t.deepEqual([...(await client.regionRead(Own.REGISTERS, 4, 2))], [0, 0]);
  device.context?.shared(Own.WHOLE).fill(0);
  await client.migration.setState(MigrationState.RESUMING);
  await client.migDataWrite(stream);
  await client.migration.setState(MigrationState.RUNNING);
  t.deepEqual([...(await client.regionRead(Own.REGISTERS, 4, 2))], [0x34, 0x12]);
  t.deepEqual([...(await client.regionRead(Own.WHOLE, 0x10, 1))], [77]);
});
