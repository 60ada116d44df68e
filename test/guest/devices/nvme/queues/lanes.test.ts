/**
 * Lanes: the tables that C++ has as well, data pointers that both resolve, threads under load, and what a lane's record
 * says.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "ava";
import { Command } from "../../../../../guest/devices/nvme/queues/command.js";
import { laneTableHeader } from "../../../../../guest/devices/nvme/queues/lane-table.js";
import { SUBMISSION_ENTRY_SIZE } from "../../../../../guest/devices/nvme/spec.js";
import { close, eventfd } from "../../../../../native/index.js";
import { Lane, NvmeLane } from "../../../../../native/lane.js";
import { writeCommand } from "../../../../../scripts/drivers/nvme-queue.js";
import { PROJECT_ROOT } from "../../../../../scripts/vm/environment.js";
import { LANE_MAGIC, LANE_SLOTS, LANE_VERSION, LaneRecord } from "../../../../../shared/lane-record.js";
import { MiB } from "../../../../../shared/limits.js";
import { FakeDma } from "../machine.js";
import { Random } from "../random.js";
import { memoryDisk } from "../setup.js";

const PAGE = 4096;

test("the table of C++ is that of TypeScript: npm run lane-table", (t) => {
  t.is(readFileSync(join(PROJECT_ROOT, "native/lane_nvme_table.h"), "utf8"), laneTableHeader());
});

/** A lane over memory at an address of its own, which nobody serves. */
function laneOver(dma: FakeDma) {
  const record = new ArrayBuffer(LaneRecord.size);
  const signal = eventfd(0);
  const lane = new Lane(dma.lanes, record, signal);
  const nvme = new NvmeLane(lane, new Uint32Array(4), 1);
  const end = () => {
    nvme.close();
    lane.close();
    close(signal);
  };
  return { record, nvme, end };
}

test("the record of C++ is that of TypeScript", (t) => {
  const { record, end } = laneOver(new FakeDma(new ArrayBuffer(PAGE)));
  const { magic, version, size, slotCount } = LaneRecord.view(new DataView(record));
  t.deepEqual([magic, version, size, slotCount], [LANE_MAGIC, LANE_VERSION, LaneRecord.size, LANE_SLOTS]);
  end();
});

test("data pointers: a lane resolves what TypeScript does, to the same ranges, and nothing else", (t) => {
  const random = new Random();
  t.log(`seed ${random.seed}`);
  const base = 0x1_0000_0000;
  const size = 64 * PAGE;
  const dma = new FakeDma(new ArrayBuffer(size));
  dma.maps = [
    { address: base, size: size / 2, offset: 0 },
    { address: base + size / 2, size: size / 2, offset: size / 2 },
  ];
  const { nvme, end } = laneOver(dma);
  const entry = new Uint8Array(SUBMISSION_ENTRY_SIZE);
  const data = new DataView(entry.buffer);
  const command = new Command(dma, () => {});
  const address = (): bigint => {
    const page = BigInt(base + PAGE * random.below(size / PAGE));
    switch (random.below(10)) {
      case 0:
        return page + BigInt(random.below(PAGE));
      case 1:
        return page + BigInt(4 * random.below(PAGE / 4));
      case 2:
        return BigInt(random.below(2 ** 32)) << BigInt(random.below(33));
      default:
        return page;
    }
  };
  let agreed = 0;
  for (let round = 0; round < 20_000; round++) {
    const isSgl = random.below(2) === 0;
    const length = random.below(8) === 0 ? 4 * (1 + random.below(MiB / 4)) : 4 * (1 + random.below((8 * PAGE) / 4));
    // Lists, anywhere: entries of either kind.
    for (let n = 0; n < 64; n++) {
      const at = 8 * random.below(size / 8);
      if (isSgl) {
        const place = at & ~15;
        dma.data.setBigUint64(place, address(), true);
        dma.data.setUint32(place + 8, random.below(4) === 0 ? 16 * random.below(8) : 4 * random.below(PAGE), true);
        dma.data.setUint32(place + 12, [0, 0, 0, 0x20, 0x30, 0x40, 0x01][random.below(7)] * 2 ** 24, true);
      } else dma.data.setBigUint64(at, address(), true);
    }
    writeCommand(data, 0, 1, { opcode: 2, prp1: address(), prp2: address(), flags: isSgl ? 0x40 : 0 });
    if (isSgl) {
      data.setUint32(32, random.below(2) === 0 ? length : 16 * (1 + random.below(16)), true);
      data.setUint32(36, [0, 0x20, 0x30, 0x30, 0x10][random.below(5)] * 2 ** 24, true);
    }
    command.decode(data, 0);
    command.pageSize = PAGE;
    const status = command.resolveInWindow(length);
    const ranges = nvme.resolve(entry, length);
    t.is(ranges !== undefined, status === 0, `status ${status} in round ${round}, seed ${random.seed}`);
    if (ranges === undefined) continue;
    agreed++;
    const expected = Array.from({ length: command.ranges.count }, (_, n) => [
      command.ranges.addresses[n],
      command.ranges.lengths[n],
    ]).flat();
    t.deepEqual([...ranges], expected, `round ${round}, seed ${random.seed}`);
  }
  t.true(agreed > 1000, `${agreed} were resolved`);
  end();
});

for (const doorbells of ["trapped", "shared"] as const) {
  for (const lanes of [1, 2]) {
    test(`${lanes} threads, doorbells ${doorbells}: random reads and writes agree with a model`, async (t) => {
      const random = new Random();
      t.log(`seed ${random.seed}`);
      const size = MiB;
      const mapped = doorbells === "shared";
      const { machine, driver } = await memoryDisk(t, { size, queues: 4, lanes, doorbells, mapped });
      const model = new Uint8Array(size);
      for (let round = 0; round < 10; round++) {
        const operations: Promise<unknown>[] = [];
        for (let block = random.below(16); block < size / 512; block += 1 + random.below(60)) {
          const blocks = Math.min(size / 512 - block, 1 + random.below(40));
          const place = model.subarray(block * 512, (block + blocks) * 512);
          if (random.below(2) === 0) {
            random.fill(place);
            operations.push(driver.write(block, place.slice()));
          } else {
            const expected = place.slice();
            const target = new Uint8Array(place.length);
            operations.push(
              driver.read(block, target).then(() => t.is(Buffer.compare(target, expected), 0, `seed ${random.seed}`)),
            );
          }
          block += blocks;
        }
        await Promise.all(operations);
        // What goes up and comes down, in between.
        await driver.flush();
      }
      t.like(machine.device.inspect(), { inFlight: 0 });
    });
  }
}

test("a reset while threads are at work: nothing lands afterwards", async (t) => {
  const { machine, driver } = await memoryDisk(t, {
    size: MiB,
    queues: 2,
    lanes: 2,
    doorbells: "shared",
    mapped: true,
  });
  const { bytes } = machine.memory;
  for (let n = 0; n < 200; n++) void driver.read(0, new Uint8Array(65536)).catch(() => {});
  await machine.reset();
  const before = Buffer.from(bytes);
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(Buffer.compare(before, bytes), 0);
});
