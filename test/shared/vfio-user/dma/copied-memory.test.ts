/** Memory for copies: what is reached, how it is mapped, and what becomes of it when its owner changes the file. */
import fs from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { close, createMemory, duplicate } from "../../../../native/index.js";
import { GiB, MAX_DMA_MAPS, MiB, PAGE_SIZE } from "../../../../shared/limits.js";
import { quietLog } from "../../../../shared/log.js";
import { type CopiedMap, CopiedMemory } from "../../../../shared/vfio-user/dma/copied-memory.js";

function copied(t: ExecutionContext): CopiedMemory {
  const made = new CopiedMemory(quietLog);
  t.teardown(() => made.close());
  return made;
}

function file(t: ExecutionContext, size: number, hugePages = false): number {
  const fd = createMemory("copied", size, hugePages);
  t.teardown(() => close(fd));
  return fd;
}

function map(fd: number, address: number, size: number, fdOffset = 0, writable = true): CopiedMap {
  const { dev, ino } = fs.fstatSync(fd);
  return { address, backed: size, fd, fdOffset, writable, readable: true, device: dev, inode: ino };
}

/** The byte at a driver-VM address. */
function at(memory: CopiedMemory, address: number): number {
  return memory.locate(address, 1) === 1 ? memory.bytes[memory.offset] : -1;
}

const put = (fd: number, value: number, at: number) => fs.writeSync(fd, Uint8Array.of(value), 0, 1, at);
/** Mappings of this process of that file. */
function mappings(fd: number): string[] {
  const { ino } = fs.fstatSync(fd);
  const lines = fs.readFileSync("/proc/self/maps", "utf8").split("\n");
  return lines.filter((line) => line.includes("memfd:copied") && line.split(/ +/)[4] === String(ino));
}

/** What no map needs goes a moment later. */
async function unmapped(fd: number): Promise<boolean> {
  for (let waited = 0; mappings(fd).length > 0 && waited < 10_000; waited += 50) await delay(50);
  return mappings(fd).length === 0;
}

test("as many maps as a client may have are one mapping of its file", async (t) => {
  const memory = copied(t);
  const fd = file(t, 2 * PAGE_SIZE);
  put(fd, 7, PAGE_SIZE);
  const maps = Array.from({ length: 2000 }, (_, n) => map(fd, n * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE));
  for (const each of maps) memory.put(each);
  t.true(maps.length < MAX_DMA_MAPS);
  t.is(at(memory, 1999 * PAGE_SIZE), 7);
  t.is(mappings(fd).length, 1);
  for (const each of maps.slice(1)) memory.remove(each);
  t.is(at(memory, PAGE_SIZE), -1, "no map, no access, though the file is mapped");
  t.is(at(memory, 0), 7);
  memory.remove(maps[0]);
  t.true(await unmapped(fd));
});

test("a read-only map is found in read-only memory, beside a writable one of the same pages", (t) => {
  const memory = copied(t);
  const fd = file(t, MiB);
  memory.put(map(fd, 0, MiB, 0, false));
  t.regex(mappings(fd)[0], / r--s /);
  t.true(memory.reaches(0, MiB, false));
  t.false(memory.reaches(0, 1, true));
  memory.put(map(fd, MiB, MiB));
  t.is(mappings(fd).length, 2);
  memory.locate(MiB, 1);
  memory.bytes[memory.offset] = 5;
  t.is(at(memory, 0), 5);
});

test("maps that lie in several GiB of a file, and two files of the same size", (t) => {
  const memory = copied(t);
  const [fd, other] = [file(t, 3 * GiB), file(t, 3 * GiB)];
  const begin = GiB - PAGE_SIZE;
  memory.put(map(fd, 0, GiB + 2 * PAGE_SIZE, begin));
  memory.put(map(other, 4 * GiB, GiB, GiB));
  put(fd, 1, begin);
  put(fd, 2, GiB);
  put(fd, 3, 2 * GiB + PAGE_SIZE - 1);
  put(other, 9, GiB);
  t.is(memory.locate(0, GiB), PAGE_SIZE, "no run goes from one ArrayBuffer to the next");
  t.is(memory.locate(PAGE_SIZE, 2 * GiB), GiB);
  const last = GiB + 2 * PAGE_SIZE - 1;
  t.deepEqual(
    [0, PAGE_SIZE, last, 4 * GiB].map((address) => at(memory, address)),
    [1, 2, 3, 9],
  );
  t.false(memory.reaches(last, 2, false));
});

test("what is cut short reads as zeros, and is memory again for a map that comes later", (t) => {
  const memory = copied(t);
  const fd = file(t, 2 * MiB);
  memory.put(map(fd, 0, MiB));
  put(fd, 1, 0);
  put(fd, 2, MiB - 1);
  fs.ftruncateSync(fd, PAGE_SIZE);
  t.deepEqual([at(memory, 0), at(memory, MiB - 1)], [1, 0]);
  fs.ftruncateSync(fd, 4 * MiB);
  put(fd, 3, MiB - 1);
  put(fd, 4, 4 * MiB - 1);
  t.is(at(memory, MiB - 1), 0);
  memory.put(map(fd, MiB, MiB, 3 * MiB));
  t.deepEqual([at(memory, MiB - 1), at(memory, 2 * MiB - 1)], [3, 4]);
});

test("a map that was checked before its file was cut short is zeros", (t) => {
  const memory = copied(t);
  const fd = file(t, 2 * MiB);
  fs.ftruncateSync(fd, 0);
  memory.put(map(fd, 0, 2 * MiB));
  t.is(at(memory, MiB), 0);
});

test("a part of a huge page is reached; holes for which no page is left are zeros", (t) => {
  const memory = copied(t);
  const fd = file(t, 4 * MiB, true);
  const edge = map(fd, MiB, MiB, MiB);
  memory.put(edge);
  t.true(memory.has(edge));
  t.is(at(memory, 2 * MiB - 1), 0);
  t.is(memory.locate(MiB, MiB), MiB);
});

test("more than is permitted, and what cannot be mapped, goes by messages", async (t) => {
  const memory = copied(t);
  const fd = file(t, 1025 * GiB);
  const whole = map(fd, 0, 1025 * GiB);
  memory.put(whole);
  t.false(memory.has(whole));
  t.false(memory.reaches(0, 1, false));
  memory.dropIdle();
  t.is(mappings(fd).length, 0);
  const readOnly = fs.openSync(`/proc/self/fd/${fd}`, "r");
  t.teardown(() => fs.closeSync(readOnly));
  const refused = map(duplicate(readOnly), 0, PAGE_SIZE);
  t.teardown(() => close(refused.fd));
  memory.put(refused);
  t.false(memory.has(refused));
  const small = map(fd, 0, PAGE_SIZE, 1024 * GiB);
  memory.put(small);
  t.true(memory.has(small), "all that was taken for the others is free again");
});
