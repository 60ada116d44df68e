/**
 * Mapped doorbells over real links: vfio-user's client maps them as a VMM does, over either link, with a file and a
 * disk in memory.
 */
import { ftruncateSync } from "node:fs";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { createNvme } from "../../../../../guest/devices/nvme/index.js";
import { Csts, DOORBELL_OFFSET } from "../../../../../guest/devices/nvme/registers.js";
import { DeviceEndpoint } from "../../../../../guest/function/endpoint.js";
import { LocalLink } from "../../../../../guest/link/local/local.js";
import { close, createMemory, mapFile, PROT_READ, PROT_WRITE } from "../../../../../native/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { VfioUserNvme } from "../../../../../scripts/drivers/nvme-over-vfio-user.js";
import { MiB } from "../../../../../shared/limits.js";
import { quietLog } from "../../../../../shared/log.js";
import { Region } from "../../../../../shared/spec/vfio-user.js";
import { connectDevice, type Kind } from "../../../link/machine.js";
import { Random } from "../random.js";

const MEMORY = 8 * MiB;
const DISK = 4 * MiB;
/** An address that the driver's own memory does not have. */
const DATA = 0x10_0000_0000;
const CSTS = 0x1c;
const [CREATE_SQ, CREATE_CQ] = [0x01, 0x05];

async function withNvme(
  t: ExecutionContext,
  kind: Kind,
  run: (device: Awaited<ReturnType<typeof connectDevice>>, file: string) => Promise<void>,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, DISK);
  const device = await createNvme({ files: [file], memory: [DISK], queues: 4, doorbells: "shared" });
  const connected = await connectDevice(kind, device);
  try {
    await run(connected, file);
  } finally {
    t.deepEqual(await connected.end(), []);
  }
}

for (const kind of ["local", "virtio", "isolated"] as const) {
  for (const how of ["mapped", "by message"]) {
    test.serial(`${kind}: doorbells ${how}: files and memory agree with a model`, async (t) => {
      await withNvme(t, kind, async ({ client }, file) => {
        const transport = await VfioUserNvme.over(client, MEMORY);
        if (how === "mapped") await transport.mapDoorbells();
        const driver = await NvmeDriver.open(transport, { queues: 3, entries: 16 });
        const random = new Random();
        t.log(`seed ${random.seed}`);
        const models = [random.filled(DISK), random.filled(DISK)];
        for (const [n, model] of models.entries()) {
          const writes = Array.from({ length: 8 }, (_, part) =>
            driver.write(
              (part * DISK) / 8 / 512,
              model.subarray((part * DISK) / 8, ((part + 1) * DISK) / 8),
              false,
              n + 1,
            ),
          );
          await Promise.all(writes);
        }
        for (let round = 0; round < 40; round++) {
          const namespace = random.below(2);
          const block = random.below(DISK / 512 - 64);
          const target = new Uint8Array(512 * (1 + random.below(64)));
          await driver.read(block, target, namespace + 1);
          const expected = models[namespace].subarray(block * 512, block * 512 + target.length);
          t.is(Buffer.compare(target, expected), 0, `block ${block}, seed ${random.seed}`);
        }
        await driver.close();
        t.is(driver.queues.reduce((sum, { rings }) => sum + rings, 0) === 0, how === "mapped");
        t.is(Buffer.compare(await readFile(file), models[0]), 0);
        transport.close();
      });
    });
  }

  test.serial(
    `${kind}: doorbells are 0 after each reset, and the next client has none of the last one's`,
    async (t) => {
      await withNvme(t, kind, async ({ client, socket }) => {
        const transport = await VfioUserNvme.over(client, MEMORY);
        const doorbells = await transport.mapDoorbells();
        const driver = await NvmeDriver.open(transport);
        await driver.read(0, new Uint8Array(512));
        t.true(doorbells.some((word) => word !== 0));
        await transport.writeRegister(0x14, 0);
        // A register write may be answered before the device has it; a read is not.
        t.is((await transport.readRegister(0x1c)) & 1, 0);
        t.true(
          doorbells.every((word) => word === 0),
          "CC.EN",
        );
        doorbells.fill(9);
        await client.reset();
        t.true(
          doorbells.every((word) => word === 0),
          "function reset",
        );
        await transport.enableFunction();
        const again = await NvmeDriver.open(transport);
        await again.read(0, new Uint8Array(512), 2);
        transport.close();

        const next = await VfioUserNvme.connect(socket, MEMORY);
        const fresh = await next.mapDoorbells();
        t.true(fresh.every((word) => word === 0));
        doorbells.fill(3);
        t.true(fresh.every((word) => word === 0));
        t.is((await next.client.regionRead(Region.BAR0, 0x1000, 4))[0], 0);
        const other = await NvmeDriver.open(next);
        await other.read(0, new Uint8Array(512), 2);
        next.close();
      });
    },
  );
}

const DATA_TRANSFER_ERROR = 0x04;

test.serial("a client that truncates the memory of its data: an error, and a device that goes on", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  const socket = join(directory, "nvme.sock");
  const link = new LocalLink({ socket, log: quietLog, trustUnsealedMemory: true });
  const endpoint = new DeviceEndpoint(await createNvme({ memory: [DISK], doorbells: "shared" }), link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  const transport = await VfioUserNvme.connect(socket, MEMORY);
  const fd = createMemory("driver's data", MiB, false);
  t.teardown(async () => {
    transport.close();
    close(fd);
    await link.close();
    await endpoint.close();
    await rm(directory, { recursive: true });
  });
  await transport.mapDoorbells();
  await transport.client.mapMemory({ address: DATA, size: MiB, fd });
  const driver = await NvmeDriver.open(transport);
  const whole = { namespaceId: 1, prp1: DATA + 4096, dwords: [0, 0, 7] };
  await driver.write(0, new Uint8Array(4096).fill(5));
  await driver.check({ opcode: 2, ...whole });
  ftruncateSync(fd, 4096);
  t.is((await driver.io({ opcode: 2, ...whole })).status, DATA_TRANSFER_ERROR);
  t.is((await driver.io({ opcode: 1, ...whole, prp1: DATA + 8192 })).status, DATA_TRANSFER_ERROR);
  const target = new Uint8Array(4096);
  await driver.write(8, new Uint8Array(4096).fill(6));
  await driver.read(8, target);
  t.true(target.every((byte) => byte === 6));
  ftruncateSync(fd, MiB);
  t.is((await driver.io({ opcode: 1, ...whole })).status, DATA_TRANSFER_ERROR, "until it is mapped again");
  await transport.client.unmapMemory(DATA, MiB);
  await transport.client.mapMemory({ address: DATA, size: MiB, fd });
  await driver.check({ opcode: 1, ...whole });
  await driver.close();
});

const FLUSH_ALL = { opcode: 0, namespace: 0xffff_ffff };
const READ_ONE = { opcode: 2, namespace: 1 };

for (const kind of ["local", "virtio", "isolated"] as const) {
  for (const [which, command] of [
    ["submission", FLUSH_ALL],
    ["completion", FLUSH_ALL],
    ["completion", READ_ONE],
  ] as const) {
    test.serial(`${kind}: a ${which} queue that its owner truncates is fatal, opcode ${command.opcode}`, async (t) => {
      const device = await createNvme({ memory: [DISK], queues: 4 });
      const connected = await connectDevice(kind, device);
      const { client } = connected;
      const transport = await VfioUserNvme.over(client, MEMORY);
      const driver = await NvmeDriver.open(transport);
      const fd = createMemory("driver's queue", MiB, false);
      t.teardown(() => close(fd));
      await client.mapMemory({ address: DATA, size: MiB, fd });
      const own = { address: transport.memory.address + MEMORY / 2, data: transport.memory.data, at: MEMORY / 2 };
      const cut = { address: DATA, data: new DataView(mapFile(fd, 0, 4096, PROT_READ | PROT_WRITE)), at: 0 };
      const [submissions, completions] = which === "submission" ? [cut, own] : [own, cut];
      const [id, size] = [2, 63 << 16];
      await driver.checkAdmin({
        opcode: CREATE_CQ,
        prp1: completions.address,
        dwords: [size | id, (id << 16) | 3],
      });
      await driver.checkAdmin({
        opcode: CREATE_SQ,
        prp1: submissions.address,
        dwords: [size | id, (id << 16) | 1],
      });
      for (let n = 0; n < 8; n++) {
        const at = submissions.at + n * 64;
        submissions.data.setUint32(at, command.opcode, true);
        submissions.data.setUint32(at + 4, command.namespace, true);
        submissions.data.setBigUint64(at + 24, BigInt(own.address + 65536), true);
      }
      const completion = (n: number) => completions.data.getUint16(completions.at + n * 16 + 14, true);
      const ring = (tail: number) => transport.writeRegister(DOORBELL_OFFSET + id * 8, tail);
      await ring(1);
      while (completion(0) === 0) await transport.readRegister(CSTS);
      t.is(completion(0), 1, "SUCCESS and the phase");
      ftruncateSync(fd, 0);
      await ring(4);
      while (((await transport.readRegister(CSTS)) & Csts.CFS) === 0);
      if (which === "submission") t.is(completion(1), 0, "zeros are no commands");
      await t.throwsAsync(driver.close(), { message: /fatal status/ });
      transport.close();
      t.deepEqual(await connected.end(), []);
    });
  }
}
