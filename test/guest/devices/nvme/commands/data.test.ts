/** The driver against the controller in one process: random I/O compared with a model. */
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { createNvme } from "../../../../../guest/devices/nvme/index.js";
import { NvmeDriver } from "../../../../../scripts/drivers/nvme.js";
import { Machine } from "../machine.js";
import { Random } from "../random.js";

const DISK = 4 * 1024 * 1024;

async function withFile<T>(run: (file: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  const file = join(directory, "disk.img");
  await writeFile(file, "");
  await truncate(file, DISK);
  try {
    return await run(file);
  } finally {
    await rm(directory, { recursive: true });
  }
}

for (const { name, windowed, blockSize, queues } of [
  { name: "one queue in the window", windowed: true, blockSize: 512, queues: 1 },
  { name: "four queues in the window, 4096-byte blocks", windowed: true, blockSize: 4096, queues: 4 },
  { name: "two queues by messages", windowed: false, blockSize: 512, queues: 2 },
]) {
  test(`random reads and writes agree with a model: ${name}`, (t) =>
    withFile(async (file) => {
      const random = new Random();
      t.log(`seed ${random.seed}`);
      const machine = await Machine.start(await createNvme({ files: [file], blockSize }));
      if (!windowed) machine.leaveWindow();
      const driver = await NvmeDriver.open(machine, { queues, entries: 16 });
      t.is(driver.queues.length, queues);
      t.is(driver.blockSize, blockSize);
      t.is(driver.blockCount, DISK / blockSize);
      const model = new Uint8Array(DISK);
      for (let round = 0; round < 12; round++) {
        const operations: Promise<void>[] = [];
        // Places of one round do not overlap, since the controller may do them in any order.
        let block = 0;
        for (;;) {
          block += random.below(64);
          const count = 1 + random.below(random.below(4) === 0 ? (1.5 * 1024 * 1024) / blockSize : 40);
          if (block + count > driver.blockCount) break;
          const at = block * blockSize;
          const place = model.subarray(at, at + count * blockSize);
          if (random.below(2) === 0) {
            random.fill(place);
            operations.push(driver.write(block, place.slice(), random.below(8) === 0));
          } else {
            const expected = place.slice();
            const target = new Uint8Array(place.length);
            const offset = at;
            operations.push(
              driver.read(block, target).then(() => {
                t.true(Buffer.compare(target, expected) === 0, `read at ${offset}, seed ${random.seed}`);
              }),
            );
          }
          block += count;
        }
        await Promise.all(operations);
        if (random.below(3) === 0) await driver.flush();
      }
      t.is(machine.dma.messages > 0, !windowed);
      await driver.close();
      await machine.stop();
      t.true(Buffer.compare(await readFile(file), model) === 0, `the file, seed ${random.seed}`);
    }));
}
