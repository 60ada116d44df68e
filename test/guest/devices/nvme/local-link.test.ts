/**
 * The driver and the controller with a socket between them: vfio-user's real client and server, the library's endpoint.
 */
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { createController, createNvme } from "../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../scripts/drivers/nvme.js";
import { MiB } from "../../../../shared/limits.js";
import { CommandBits, Header } from "../../../../shared/spec/pci.js";
import { Region } from "../../../../shared/spec/vfio-user.js";
import type { Client } from "../../../../shared/vfio-user/client/client.js";
import { FakeStorage } from "./fake-storage.js";
import { MEMORY, serve } from "./on-socket.js";
import { Random } from "./random.js";
import { settle } from "./setup.js";

const DISK = 8 * MiB;
const READ = { opcode: 2, namespaceId: 1 };

for (const memory of ["mapped memory", "memory by messages"]) {
  test(`random reads and writes over a socket agree with a model, ${memory}`, async (t) => {
    const directory = await mkdtemp(join(tmpdir(), "nvme-"));
    t.teardown(() => rm(directory, { recursive: true }));
    const file = join(directory, "disk.img");
    await writeFile(file, "");
    await truncate(file, DISK);
    const random = new Random();
    t.log(`seed ${random.seed}`);
    const connect = await serve(t, await createNvme({ files: [file] }));
    const transport = await connect();
    const { client } = transport;
    if (memory === "memory by messages") {
      await client.unmapAll();
      const { address, bytes } = transport.memory;
      client.registerMemory(address, bytes);
      await client.mapMemory({ address, size: MEMORY });
    }
    const driver = await NvmeDriver.open(transport, { queues: 4, entries: 32 });
    const model = new Uint8Array(DISK);
    for (let round = 0; round < 6; round++) {
      const operations: Promise<void>[] = [];
      for (let block = 0; ; ) {
        block += random.below(200);
        const blocks = 1 + random.below(random.below(4) === 0 ? 3000 : 64);
        if (block + blocks > driver.blockCount) break;
        const place = model.subarray(block * 512, (block + blocks) * 512);
        if (random.below(2) === 0) {
          random.fill(place);
          operations.push(driver.write(block, place.slice()));
        } else {
          const expected = place.slice();
          const target = new Uint8Array(place.length);
          const start = block;
          operations.push(
            driver.read(block, target).then(() => {
              t.is(Buffer.compare(target, expected), 0, `block ${start}, seed ${random.seed}`);
            }),
          );
        }
        block += blocks;
      }
      await Promise.all(operations);
    }
    await driver.close();
    t.true(transport.interrupts > 0);
    t.is(Buffer.compare(await readFile(file), model), 0, `seed ${random.seed}`);
  });
}

for (const what of ["unmapping", "clearing the bus master bit", "a function-level reset", "DEVICE_RESET"] as const) {
  test(`${what} waits for no disk, whose data does not land afterwards`, async (t) => {
    const storage = new FakeStorage(DISK);
    const connect = await serve(t, createController([{ name: "a disk", storage }], { serial: "S" }));
    const transport = await connect();
    const driver = await NvmeDriver.open(transport);
    const { client, memory } = transport;
    storage.bytes.fill(7);
    storage.hold();
    const abandoned = t.throwsAsync(driver.io({ ...READ, prp1: memory.address + MEMORY / 2 }));
    await storage.whenHeld(1);
    if (what === "unmapping") await client.unmapAll();
    else if (what === "DEVICE_RESET") await client.reset();
    else if (what === "a function-level reset") await functionReset(client);
    else await client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(CommandBits.MEMORY, 0));
    storage.release();
    await settle();
    t.is(memory.bytes[MEMORY / 2], 0);
    const command = (await client.regionRead(Region.CONFIG, Header.COMMAND, 1))[0];
    if (what !== "unmapping") t.is(command & CommandBits.BUS_MASTER, 0);
    client.close();
    await abandoned;
  });
}

/** Device Control's bit 15, in the PCI Express capability. */
async function functionReset(client: Client): Promise<void> {
  const space = await client.regionRead(Region.CONFIG, 0, 256);
  let capability = space[0x34];
  while (space[capability] !== 0x10) capability = space[capability + 1];
  await client.regionWrite(Region.CONFIG, capability + 9, Uint8Array.of(0x80 | space[capability + 9]));
}

test("a driver VM that leaves in the middle of its I/O, and the next one", async (t) => {
  const storage = new FakeStorage(DISK);
  const connect = await serve(t, createController([{ name: "a disk", storage }], { serial: "S" }));
  const first = await connect();
  const driver = await NvmeDriver.open(first, { queues: 2 });
  await driver.write(5, new Uint8Array(512).fill(3));
  storage.hold();
  const abandoned = driver.io({ ...READ, prp1: first.memory.address + MEMORY / 2 });
  await storage.whenHeld(1);
  first.client.close();
  await t.throwsAsync(abandoned);
  const connecting = connect();
  storage.release();
  const next = await NvmeDriver.open(await connecting, { queues: 2 });
  const target = new Uint8Array(512);
  await next.read(5, target);
  t.true(target.every((byte) => byte === 3));
});

test("a reset from the client in the middle of I/O", async (t) => {
  const storage = new FakeStorage(DISK);
  const connect = await serve(t, createController([{ name: "a disk", storage }], { serial: "S" }));
  const transport = await connect();
  const driver = await NvmeDriver.open(transport);
  storage.hold();
  const abandoned = t.throwsAsync(driver.io({ ...READ, prp1: transport.memory.address + MEMORY / 2 }));
  await storage.whenHeld(1);
  const reset = transport.client.reset();
  // The reset comes to the device before the end of its I/O does.
  await settle();
  storage.release();
  await reset;
  t.is(await transport.readRegister(0x1c), 0);
  t.is(await transport.readRegister(0x14), 0);
  transport.client.close();
  await abandoned;
});
