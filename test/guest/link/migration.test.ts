/** The states of a migration, its data, and what a function does while it stands still; over both links. */
import { eventfdRead } from "../../../native/index.js";
import { KiB, MAX_MIGRATION_STREAM, MiB } from "../../../shared/limits.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Command, Irq, MigData, MigrationState, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { Registers, Statuses } from "../../fakes/copy-device.js";
import { BAD_STATE } from "../../fakes/migratable-device.js";
import { memory } from "./machine.js";
import { both, refuses } from "./migratable.js";

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P } = MigrationState;
const BASE = 0x1_0000_0000;

both("the device is told of each step, and of none for where it is already", async (t, { client, device }) => {
  const { migration } = client;
  const steps = async (state: number) => {
    device.events.length = 0;
    await migration.setState(state);
    t.is(await migration.getState(), state);
    return device.events;
  };
  t.deepEqual(await steps(RUNNING), []);
  t.deepEqual(await steps(STOP_COPY), ["pause", "save"]);
  t.deepEqual(await steps(STOP_COPY), []);
  t.deepEqual(await steps(RUNNING), ["resume"]);
  t.deepEqual(await steps(PRE_COPY), []);
  t.deepEqual(await steps(STOP_COPY), ["pause", "save"]);
  t.deepEqual(await steps(RESUMING), []);
  await client.reset();
  t.is(await migration.getState(), RUNNING);
  t.deepEqual(await steps(PRE_COPY), []);
  t.deepEqual(await steps(STOP), ["pause"]);
  t.deepEqual(await steps(PRE_COPY), ["resume"]);
});

both("states that there are not, and ways that are forbidden", async (t, { client, device }) => {
  const { migration } = client;
  for (const from of [RUNNING, STOP, PRE_COPY, STOP_COPY]) {
    await migration.setState(from);
    device.events.length = 0;
    for (const to of [ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, 0xabcd, 0xffffffff]) {
      await refuses(t, migration.setState(to), "EINVAL", `from ${from} to ${to}`);
    }
    t.is(await migration.getState(), from);
    t.deepEqual(device.events, []);
  }
  await refuses(t, migration.setState(PRE_COPY), "EINVAL", "from STOP_COPY");
  t.is(await migration.getState(), STOP_COPY);
});

both("data: read in saving states only, written in RESUMING only, and within bounds", async (t, { client }) => {
  const { migration } = client;
  for (const state of [RUNNING, STOP, RESUMING]) {
    await migration.setState(state);
    await refuses(t, client.migDataRead(16), "EINVAL", `reading in state ${state}`);
    if (state !== RESUMING) await refuses(t, client.migDataWrite(Uint8Array.of(1)), "EINVAL", `writing in ${state}`);
  }
  await client.migDataWrite(new Uint8Array(0));
  await client.reset();
  for (const state of [PRE_COPY, STOP_COPY]) {
    await migration.setState(state);
    await refuses(t, client.migDataWrite(Uint8Array.of(1)), "EINVAL", `writing in state ${state}`);
    for (const [argsz, size] of [
      [8 + 15, 16],
      [0, 16],
      [0xffffffff, MiB + 1],
      [0xffffffff, 0xffffffff],
    ]) {
      await refuses(t, client.request(Command.MIG_DATA_READ, MigData.encode({ argsz, size })), "EINVAL");
    }
    t.is((await client.migDataRead(0)).length, 0);
  }
  await client.reset();
  await migration.setState(RESUMING);
  const body = (size: number, length: number) =>
    Buffer.concat([MigData.encode({ argsz: MigData.size + size, size }), Buffer.alloc(length)]);
  for (const [size, length] of [
    [4, 3],
    [4, 5],
    [0xfffffff0, 4],
  ]) {
    await refuses(t, client.request(Command.MIG_DATA_WRITE, body(size, length)), "EINVAL");
  }
});

both("a state that is too long is refused while it comes", async (t, { client }) => {
  await client.migration.setState(RESUMING);
  const chunk = new Uint8Array(MiB - 8);
  let sent = 0;
  for (; sent + chunk.length <= MAX_MIGRATION_STREAM; sent += chunk.length) await client.migDataWrite(chunk);
  await refuses(t, client.migDataWrite(chunk), "E2BIG");
  await refuses(t, client.migration.setState(STOP), "EINVAL");
  t.is(await client.migration.getState(), ERROR);
});

both("the same stream in pieces of any size; a short read is the end", async (t, { client, device }) => {
  const { migration } = client;
  device.state = Uint8Array.from({ length: 300_000 }, (_, n) => n * 7 + (n >> 8));
  await migration.setState(STOP_COPY);
  const whole = await migration.readAll(64 * KiB);
  t.is((await client.migDataRead(100)).length, 0);
  await migration.setState(STOP);
  await migration.setState(STOP_COPY);
  t.deepEqual(await migration.readAll(777), whole);
  await migration.setState(STOP);
  await migration.setState(STOP_COPY);
  const first = await client.migDataRead(whole.length);
  t.deepEqual(Buffer.from(first), whole);
  t.is((await client.migDataRead(1)).length, 0);
  device.state = new Uint8Array(1);
  await migration.setState(RESUMING);
  await migration.writeAll(whole, 5000);
  await migration.setState(RUNNING);
  t.is(device.state.length, 300_000);
  t.is(device.state[299_999], (299_999 * 7 + (299_999 >> 8)) & 0xff);
});

both("pre-copy: pieces while the device runs, the rest when it stands; a new copy begins anew", async (t, machine) => {
  const { client, device, read32, write32 } = machine;
  const { migration } = client;
  device.pieces = [new Uint8Array(0), Uint8Array.of(1, 2, 3), new Uint8Array(5000).fill(9)];
  await migration.setState(PRE_COPY);
  t.true((await migration.readAll(16)).length > 5000);
  t.is((await client.migDataRead(100)).length, 0, "nothing new at the moment");
  await write32(Registers.SCRATCH, 77);
  t.is(await read32(Registers.SCRATCH), 77, "it runs");
  await migration.setState(RUNNING);
  await migration.setState(PRE_COPY);
  const early = await migration.readAll();
  device.pieces = [...device.pieces, Uint8Array.of(4)];
  const more = await migration.readAll();
  await migration.setState(STOP_COPY);
  const rest = await migration.readAll();
  await migration.setState(RESUMING);
  await migration.writeAll(Buffer.concat([early, more, rest]));
  await migration.setState(STOP);
  t.deepEqual(device.loadedPieces, device.pieces);
});

both("while it stands still: no BARs, no DMA, no interrupts; config space and MSI-X answer", async (t, machine) => {
  const { client, device, enable, bind, write32, read32, copy, doorbells, endpoint } = machine;
  const { fd, bytes } = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  await enable();
  await bind();
  bytes[0] = 5;
  t.is(await copy(BASE, BASE + 100, 1), Statuses.DONE);
  await write32(Registers.SCRATCH, 0x1234);
  await client.migration.setState(STOP);
  device.accesses.length = 0;
  await refuses(t, read32(Registers.SCRATCH), "EINVAL");
  await refuses(t, client.writeMulti([{ region: 0, offset: 0x40, bytes: Uint8Array.of(1) }]), "EINVAL");
  // A posted write has been answered before it is refused.
  await write32(Registers.SCRATCH, 5).catch(() => {});
  t.is((await client.regionRead(Region.CONFIG, Header.VENDOR_ID, 2))[0], 0xf4);
  await client.regionWrite(Region.BAR2, 0, Uint8Array.of(0x10, 0, 0xe0, 0xfe));
  t.deepEqual([...(await client.regionRead(Region.BAR2, 0, 4))], [0x10, 0, 0xe0, 0xfe]);
  t.deepEqual(device.accesses, []);
  const segment = { bytes: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), offset: 0, length: 0 };
  t.is(device.context.dma.locate(BASE, 1, "read", segment), 0);
  await t.throwsAsync(device.context.dma.write(BASE, Uint8Array.of(1)), { name: "DmaError" });
  const { count } = endpoint.interrupts;
  device.context.interrupts.trigger(1);
  t.is(endpoint.interrupts.count, count);
  t.is(eventfdRead(doorbells[1].fd), 0);
  await client.unmapMemory(BASE, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });

  const interrupt = doorbells[1].next();
  await client.migration.setState(RUNNING);
  await interrupt;
  t.is(endpoint.interrupts.count, count + 1, "it waited for the resumption");
  t.is(await read32(Registers.SCRATCH), 0x1234);
  t.is(await copy(BASE, BASE + 101, 1), Statuses.DONE);
  t.is(bytes[101], 5);
});

both("stopping waits for the device, and for its DMA", async (t, { client, device }) => {
  let finish = () => {};
  const order: string[] = [];
  const asked = new Promise<void>((resolve) => {
    device.onPause = () => {
      resolve();
      return new Promise((done) => {
        finish = done;
      });
    };
  });
  const stopped = client.migration.setState(STOP).then(() => order.push("stopped"));
  await asked;
  order.push("asked");
  finish();
  await stopped;
  t.deepEqual(order, ["asked", "stopped"]);
});

both("a device that fails: where it is then, and that a reset heals it", async (t, { client, device, read32 }) => {
  const { migration } = client;
  const fail = () => Promise.reject(new Error("a bug"));
  const works = async () => undefined;
  device.onSave = fail;
  await refuses(t, migration.setState(STOP_COPY), "EIO");
  t.is(await migration.getState(), STOP, "it stands, and is well");
  device.onSave = works;
  await migration.setState(STOP_COPY);
  device.onResume = fail;
  await refuses(t, migration.setState(RUNNING), "EIO");
  t.is(await migration.getState(), ERROR);
  for (const state of [STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, ERROR]) {
    await refuses(t, migration.setState(state), "EINVAL", "there is no way out but a reset");
  }
  await refuses(t, client.migDataRead(1), "EINVAL");
  await refuses(t, read32(Registers.SCRATCH), "EINVAL");
  await client.reset();
  t.is(await migration.getState(), RUNNING);
  t.is(await read32(Registers.SCRATCH), 0);
  device.onPause = fail;
  await refuses(t, migration.setState(STOP), "EIO");
  t.is(await migration.getState(), ERROR);
  await client.reset();
  t.is(await migration.getState(), RUNNING);
});

both("jobs end before the device stands still; one that waits is not saved, and goes on here", async (t, machine) => {
  const { client, device } = machine;
  const order: string[] = [];
  let end = () => {};
  device.context.run(() =>
    new Promise<void>((resolve) => {
      end = resolve;
    }).then(() => void order.push("first")),
  );
  device.onPause = async () => {
    device.context.run(() => void order.push("second"));
    end();
  };
  await refuses(t, client.migration.setState(STOP_COPY), "EIO");
  t.is(await client.migration.getState(), STOP);
  t.deepEqual(order, ["first"]);
  await client.migration.setState(RUNNING);
  t.deepEqual(order, ["first", "second"]);
});

both("streams that are none: an error, out of which a reset leads", async (t, { client, device }) => {
  const { migration } = client;
  await migration.setState(STOP_COPY);
  const good = Buffer.from(await migration.readAll());
  const config = good.indexOf("f4ff0200", 0, "hex");
  t.true(config > 0);
  const changed = (at: number, value: number) => {
    const stream = Buffer.from(good);
    stream[at] = value;
    return stream;
  };
  const device0 = good.indexOf(Buffer.from([7, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3])) + 8;
  t.true(device0 > 8);
  for (const [what, stream] of [
    ["nothing", Buffer.alloc(0)],
    ["garbage", Buffer.alloc(4000, 0xa5)],
    ["a part", good.subarray(0, -1)],
    ["more", Buffer.concat([good, Buffer.alloc(1)])],
    ["another vendor's", changed(config, 0xf5)],
    ["a read-only bit", changed(config + Header.CAPABILITIES, 0x77)],
    ["the device's bytes", changed(device0, BAD_STATE)],
  ] as const) {
    await migration.setState(RESUMING);
    await migration.writeAll(stream);
    await refuses(t, migration.setState(RUNNING), "EINVAL", what);
    t.is(await migration.getState(), ERROR, what);
    await client.reset();
    t.is(await migration.getState(), RUNNING, what);
  }
  await migration.setState(RESUMING);
  await migration.writeAll(good);
  await migration.setState(RUNNING);
  t.true(device.events.includes("load"));
});

both("resets of any kind, and a client that leaves, end a migration", async (t, { client, socket, device }) => {
  await client.migration.setState(STOP);
  const whole = await client.regionRead(Region.CONFIG, 0, 256);
  let express = whole[Header.CAPABILITIES];
  while (whole[express] !== 0x10) express = whole[express + 1];
  const functionLevelReset = Uint8Array.of(0, 0x80);
  await client.regionWrite(Region.CONFIG, express + 8, functionLevelReset);
  t.is(await client.migration.getState(), RUNNING);
  await client.migration.setState(STOP_COPY);
  client.close();
  const next = await Client.connect(socket);
  t.is(await next.migration.getState(), RUNNING);
  t.deepEqual(device.events.slice(-2), ["reset", "resume"]);
  next.close();
});

both("config space, MSI-X and waiting interrupts come back as they were", async (t, machine) => {
  const { client, device, doorbells, read32 } = machine;
  const { migration } = client;
  const command = Uint8Array.of(CommandBits.MEMORY | CommandBits.BUS_MASTER, 4);
  await client.regionWrite(Region.CONFIG, Header.COMMAND, command);
  await client.regionWrite(Region.BAR2, 16, Uint8Array.of(0x20, 0, 0xe0, 0xfe));
  // MSI-X is enabled, with a vector that is not bound yet.
  await client.setIrqs({ index: Irq.MSIX, eventfds: [doorbells[0].fd] });
  device.context.interrupts.trigger(1);
  await migration.setState(STOP_COPY);
  const stream = await migration.readAll();
  await client.reset();
  await client.setIrqs({ index: Irq.MSIX, count: 0 });
  t.is((await client.regionRead(Region.BAR2, 16, 1))[0], 0);
  await migration.setState(RESUMING);
  await migration.writeAll(stream);
  await migration.setState(STOP);
  t.deepEqual([...(await client.regionRead(Region.CONFIG, Header.COMMAND, 2))], [...command]);
  t.is((await client.regionRead(Region.BAR2, 16, 1))[0], 0x20);
  const interrupt = doorbells[1].next();
  await client.setIrqs({ index: Irq.MSIX, eventfds: doorbells.map(({ fd }) => fd) });
  t.is(eventfdRead(doorbells[1].fd), 0);
  await migration.setState(RUNNING);
  await interrupt;
  t.is(await read32(Registers.COMMAND), 0);
});
