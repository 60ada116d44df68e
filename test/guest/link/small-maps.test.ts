/**
 * Small maps over the local link, as a driver VM with an IOMMU makes and ends them thousands of times a second: they
 * lie in one mapping of their file, and are as good as any other in what is permitted, what is out of reach, and what
 * is taken away by force.
 */
import { readFileSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { DmaError } from "../../../guest/device.js";
import { fileStatus } from "../../../native/index.js";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { type Machine, memory, over } from "./machine.js";

const BASE = 0x1_0000_0000;
const OPTIONS = { quiesceDeadlineMs: 80 } as const;

/** Mappings of this process of the file, but for the test's own. */
function mappings(fd: number): string[] {
  const { inode } = fileStatus(fd);
  const lines = readFileSync("/proc/self/maps", "utf8").split("\n");
  return lines.filter((line) => line.includes("memfd:test") && line.split(/ +/)[4] === String(inode)).slice(1);
}

function dmaOf({ device }: Machine) {
  const { dma } = device.context;
  const view = (address: number, access: "read" | "write" = "write") => dma.view(address, PAGE_SIZE, access);
  return { dma, view };
}

over(["local"], "one mapping for all, whose pages are reached by their maps alone", async (t, machine) => {
  const { client, enable } = machine;
  const { fd, bytes } = memory(t, 16 * MiB);
  const { dma, view } = dmaOf(machine);
  await enable();
  const count = 500;
  for (let n = 0; n < count; n++) {
    await client.mapMemory({ address: BASE + 2 * n * PAGE_SIZE, size: PAGE_SIZE, fd, fdOffset: n * PAGE_SIZE });
  }
  const before = mappings(fd).length;
  t.true(before <= 1, `${before} mappings`);
  bytes[7 * PAGE_SIZE] = 3;
  t.is(view(BASE + 14 * PAGE_SIZE)?.[0], 3);
  t.is(dma.view(BASE + 14 * PAGE_SIZE, PAGE_SIZE + 1, "read"), undefined, "the next page of the file is another map");
  t.throws(() => dma.readSync(BASE + 15 * PAGE_SIZE, new Uint8Array(1)), { instanceOf: DmaError });
  await client.unmapMemory(BASE + 14 * PAGE_SIZE, PAGE_SIZE);
  t.throws(() => dma.readSync(BASE + 14 * PAGE_SIZE, new Uint8Array(1)), { instanceOf: DmaError });
  await client.mapMemory({ address: BASE, size: PAGE_SIZE, fd, fdOffset: 0 }).catch(() => {});
  await client.unmapAll();
  for (let n = 0; n < 100; n++) {
    await client.mapMemory({ address: BASE, size: PAGE_SIZE, fd, fdOffset: n * PAGE_SIZE });
    t.is(view(BASE)?.[0], n === 7 ? 3 : 0);
    await client.unmapMemory(BASE, PAGE_SIZE);
  }
  // A large one has its own, and both reach the same memory.
  await client.mapMemory({ address: 2 * BASE, size: 16 * MiB, fd });
  await client.mapMemory({ address: BASE, size: PAGE_SIZE, fd, fdOffset: PAGE_SIZE, writable: false });
  dma.writeSync(2 * BASE + PAGE_SIZE, Uint8Array.of(9));
  t.is(view(BASE, "read")?.[0], 9);
  t.is(view(BASE), undefined);
  const stray = view(BASE, "read");
  stray?.fill(4);
  while (stray?.[0] !== 9) await setImmediate();
  t.is(bytes[PAGE_SIZE], 9);
});

over(
  ["local"],
  "an unmap by force takes the page away, but not from another map of it; it comes back with a map after that",
  async (t, machine) => {
    const { client, device, enable } = machine;
    const { fd, bytes } = memory(t, MiB);
    const { view } = dmaOf(machine);
    await enable();
    const map = (n: number, fdOffset = n * PAGE_SIZE) =>
      client.mapMemory({ address: BASE + n * PAGE_SIZE, size: PAGE_SIZE, fd, fdOffset });
    for (const n of [0, 1, 2]) await map(n);
    await map(9, PAGE_SIZE * 2);
    const stale = [0, 1, 2].map((n) => view(BASE + n * PAGE_SIZE));
    const other = view(BASE + 9 * PAGE_SIZE);
    let finish = () => {};
    const held = new Promise<void>((resolve) => {
      finish = resolve;
    });
    device.onQuiesce = () => held;
    await client.unmapMemory(BASE + PAGE_SIZE, PAGE_SIZE);
    await client.unmapMemory(BASE + 2 * PAGE_SIZE, PAGE_SIZE);
    for (const one of stale) one?.fill(5);
    const inFile = () => [0, 1, 2].map((n) => bytes[n * PAGE_SIZE]);
    t.deepEqual(inFile(), [5, 0, 5], "page 2 is another map's, too");
    other?.fill(6);
    t.is(bytes[2 * PAGE_SIZE], 6);

    // Meanwhile new maps of the same pages are reached, and what is late does not reach them.
    await map(1);
    view(BASE + PAGE_SIZE)?.fill(7);
    stale[1]?.fill(8);
    t.deepEqual(inFile(), [5, 7, 6]);
    await client.unmapMemory(BASE + 9 * PAGE_SIZE, PAGE_SIZE);
    stale[2]?.fill(8);
    t.is(bytes[2 * PAGE_SIZE], 6, "now nobody has it");

    device.onQuiesce = async () => {};
    finish();
    await setImmediate();
    await client.unmapMemory(BASE + PAGE_SIZE, PAGE_SIZE);
    for (const n of [1, 2]) await map(n);
    view(BASE + 2 * PAGE_SIZE)?.fill(2);
    t.deepEqual(inFile(), [5, 7, 2]);
    t.is(view(BASE)?.[0], 5, "what stayed mapped is where it was");
  },
  OPTIONS,
);

over(
  ["local"],
  "what is late reaches a page no more when its last map goes, though that one waited for nobody",
  async (t, { client, device, enable }) => {
    const { fd, bytes } = memory(t, MiB);
    await enable();
    const map = (n: number, fdOffset: number) =>
      client.mapMemory({ address: BASE + n * PAGE_SIZE, size: PAGE_SIZE, fd, fdOffset });
    for (const n of [0, 1]) await map(n, n * PAGE_SIZE);
    await map(9, PAGE_SIZE);
    const stale = device.context.dma.view(BASE + PAGE_SIZE, PAGE_SIZE, "write");
    device.onQuiesce = () => new Promise(() => {});
    await client.unmapMemory(BASE + PAGE_SIZE, PAGE_SIZE);
    device.onQuiesce = async () => {};
    stale?.fill(5);
    t.is(bytes[PAGE_SIZE], 5, "it is another map's");
    await client.unmapMemory(BASE + 9 * PAGE_SIZE, PAGE_SIZE);
    stale?.fill(6);
    t.is(bytes[PAGE_SIZE], 5);
    t.is(device.context.dma.view(BASE, PAGE_SIZE, "read")?.[0], 0, "page 0 is there");
  },
  OPTIONS,
);

over(["local"], "nothing is left of a client that is gone", async (t, machine) => {
  const { client, enable } = machine;
  const { fd, bytes } = memory(t, MiB);
  await enable();
  await client.mapMemory({ address: BASE, size: PAGE_SIZE, fd });
  await client.unmapMemory(BASE, PAGE_SIZE);
  t.is(mappings(fd).length, 1, "kept for the next map");
  await client.mapMemory({ address: BASE, size: PAGE_SIZE, fd });
  client.close();
  while (mappings(fd).length > 0) await setImmediate();
  t.is(bytes[0], 0);
});
