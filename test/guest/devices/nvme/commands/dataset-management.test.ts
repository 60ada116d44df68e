/** Dataset Management: what is given back, what is only a hint, and ranges that will not do. */
import test from "ava";
import { bringUp, scratch } from "../setup.js";

const DSM = 0x09;
const BLOCKS = 2048;

test("Deallocate makes zeros of its ranges and leaves the rest", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  t.is(
    (
      await driver.deallocate([
        [8, 8],
        [100, 0],
        [64, 1],
        [BLOCKS - 1, 1],
      ])
    ).status,
    0,
  );
  const expected = new Uint8Array(BLOCKS * 512).fill(7);
  for (const [block, blocks] of [
    [8, 8],
    [64, 1],
    [BLOCKS - 1, 1],
  ])
    expected.fill(0, block * 512, (block + blocks) * 512);
  t.is(Buffer.compare(storage.bytes, expected), 0);
  t.deepEqual(storage.calls, ["deallocate", "deallocate", "deallocate"]);
});

test("256 ranges", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  const ranges = Array.from({ length: 256 }, (_, n) => [n * 8, 4] as const);
  t.is((await driver.deallocate(ranges)).status, 0);
  for (const n of [0, 1, 128, 255]) {
    t.is(storage.bytes[n * 4096], 0);
    t.is(storage.bytes[n * 4096 + 2048], 7);
  }
});

test("other attributes are hints", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  t.is((await driver.deallocate([[0, BLOCKS]], { attributes: 0b011 })).status, 0);
  t.deepEqual(storage.calls, []);
  t.is(storage.bytes[0], 7);
});

test("a range that is not within the namespace stops all of them", async (t) => {
  const { storage, driver } = await bringUp(t);
  for (const [block, blocks] of [
    [BLOCKS, 1],
    [BLOCKS - 1, 2],
    [0, BLOCKS + 1],
    [0, 0xffff_ffff],
    [2n ** 32n, 1],
    [2n ** 53n, 1],
    [2n ** 64n - 1n, 1],
    [2n ** 64n - 1n, 0xffff_ffff],
  ] as const) {
    const completion = await driver.deallocate([
      [0, 8],
      [block, blocks],
    ]);
    t.like(completion, { status: 0x80, doNotRetry: true }, `${blocks} from ${block}`);
  }
  t.is((await driver.deallocate([[BLOCKS, 1]], { attributes: 0 })).status, 0x80);
  t.deepEqual(storage.calls, []);
});

for (const windowed of [true, false]) {
  test(`the list of ranges in two pages, and in none, ${windowed ? "in the window" : "by messages"}`, async (t) => {
    const { machine, storage, driver } = await bringUp(t);
    if (!windowed) machine.leaveWindow();
    const { address, offset } = scratch(machine);
    const { data } = machine.memory;
    // The last 3 of 4 ranges are in the other page, and not the next one.
    const places = [offset + 4096 - 16, offset + 8192, offset + 8192 + 16, offset + 8192 + 32];
    for (const [n, at] of places.entries()) {
      data.setUint32(at + 4, 1, true);
      data.setBigUint64(at + 8, BigInt(n * 10), true);
    }
    storage.bytes.fill(7);
    const io = (prp1: number, prp2: number) => driver.io({ opcode: DSM, namespaceId: 1, prp1, prp2, dwords: [3, 4] });
    t.is((await io(address + 4096 - 16, address + 8192)).status, 0);
    for (const n of [0, 1, 2, 3]) t.is(storage.bytes[n * 10 * 512], 0, `range ${n}`);
    t.is((await io(address + 4096 - 16, 0)).status, 0x04, "PRP2 is not mapped");
    t.is((await io(0, 0)).status, 0x04);
    t.is((await io(address + 1, 0)).status, 0x13);
    t.is((await io(address + 4096 - 16, address + 8)).status, 0x13);
  });
}

test("a storage that cannot give space back keeps its data, and an error of the medium is a status", async (t) => {
  const { storage, driver } = await bringUp(t);
  storage.bytes.fill(7);
  for (const code of ["ENOTSUP", "EINVAL", "ENOSPC"]) {
    storage.errors.deallocate = code;
    t.is((await driver.deallocate([[0, 8]])).status, 0, code);
    t.is(storage.bytes[0], 7);
  }
  storage.errors.deallocate = "EIO";
  t.like(await driver.deallocate([[0, 8]]), { status: 0x280, doNotRetry: false });
});
