/** What can be asked of an fd, memory files and their seals. */
import fs from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import test from "ava";
import * as native from "../../native/index.js";
import { fdsOfMemory, folder, MiB, owned, pair } from "./helpers.js";

const { errno } = constants;
const F_SEAL_WRITE = 0x8;

/** Size, whether it is writable, seals, and page size. */
function memoryStatus(fd: number): number[] {
  const status = new Float64Array(6);
  native.memoryStatus(fd, status);
  return [...status];
}

const sealsOf = (fd: number) => memoryStatus(fd)[2];

test("a memory file has its size and can be sealed", (t) => {
  const memory = owned(t, native.createMemory("sealed", 8192, false));
  t.like(native.fileStatus(memory), { size: 8192, kind: "memory" });
  t.is(sealsOf(memory), 0);
  native.addSeals(memory, native.F_SEAL_SHRINK | native.F_SEAL_GROW);
  t.is(sealsOf(memory), native.F_SEAL_SHRINK | native.F_SEAL_GROW);
  t.throws(() => fs.ftruncateSync(memory, 0), { code: "EPERM" });
  native.addSeals(memory, native.F_SEAL_SEAL);
  const error = t.throws(() => native.addSeals(memory, F_SEAL_WRITE));
  t.like(error, { code: "EPERM", errno: errno.EPERM, syscall: "fcntl" });
});

test("sizes and names that cannot be leave no fd behind", (t) => {
  t.like(
    t.throws(() => native.createMemory("partial", 4096, true)),
    { code: "EINVAL", syscall: "ftruncate" },
  );
  t.throws(() => native.createMemory("partial", -1, false), { instanceOf: RangeError });
  t.is(fdsOfMemory("partial"), 0);
  t.throws(() => native.createMemory("n".repeat(300), 4096, false), { code: "EINVAL" });
  const large = owned(t, native.createMemory("large", 2 * MiB, true));
  t.is(native.fileStatus(large).size, 2 * MiB);
});

test("what cannot be sealed has no seals", (t) => {
  const [a] = pair(t);
  t.is(sealsOf(a), -1);
  t.throws(() => sealsOf(1 << 30), { code: "EBADF" });
});

test("kinds of files", (t) => {
  const [a] = pair(t);
  const event = owned(t, native.eventfd(0));
  t.is(native.fileStatus(a).kind, "socket");
  t.is(native.fileStatus(event).kind, "other");
  const program = process.execPath;
  const reading = fs.openSync(program, "r");
  t.teardown(() => fs.closeSync(reading));
  const { dev: device, ino: inode, size } = fs.statSync(program);
  t.deepEqual(native.fileStatus(reading), { device, inode, size, kind: "file" });
  t.throws(() => native.fileStatus(1 << 30), { code: "EBADF", message: /statx/ });
});

test("an eventfd is told from every other file", (t) => {
  const at = folder(t);
  const impostor = path.join(at, "anon_inode:[eventfd]");
  fs.writeFileSync(impostor, "");
  const file = fs.openSync(impostor, "r");
  t.teardown(() => fs.closeSync(file));
  const [socket] = pair(t);
  const memory = owned(t, native.createMemory("anon_inode:[eventfd]", 0, false));
  t.true(native.isEventfd(owned(t, native.eventfd(0))));
  for (const fd of [file, socket, memory]) t.false(native.isEventfd(fd));
  t.throws(() => native.isEventfd(1 << 30), { code: "EBADF" });
});

test("an fd is writable when it was opened so", (t) => {
  const memory = owned(t, native.createMemory("rw", 4096, false));
  const { device, inode } = native.fileStatus(memory);
  t.deepEqual(memoryStatus(memory).slice(1), [1, 0, 4096, device, inode]);
  t.is(memoryStatus(memory)[0], native.fileStatus(memory).size);
  t.is(memoryStatus(owned(t, native.createMemory("huge", 0, true)))[3], 2 * MiB);
  const reading = fs.openSync(`/proc/self/fd/${memory}`, "r");
  t.teardown(() => fs.closeSync(reading));
  t.is(memoryStatus(reading)[1], 0);
  const writing = fs.openSync("/dev/null", "w");
  t.teardown(() => fs.closeSync(writing));
  t.deepEqual(memoryStatus(writing).slice(0, 4), [-1, 1, -1, 4096]);
});

test("a duplicate outlives the original", (t) => {
  const event = native.eventfd(7);
  const copy = owned(t, native.duplicate(event));
  native.close(event);
  t.is(native.eventfdRead(copy), 7);
  t.throws(() => native.close(1 << 30), { code: "EBADF" });
});

test("ioctl: structure in place, number by value, errors", (t) => {
  const [a, b] = pair(t);
  native.send(a, new Uint8Array(5), 0, 5);
  const FIONREAD = 0x541b;
  const answer = new Uint8Array(4);
  t.is(native.ioctl(b, FIONREAD, answer), 0);
  t.is(answer[0], 5);
  const FIOCLEX = 0x5451;
  t.is(native.ioctl(b, FIOCLEX, 0), 0);
  t.like(
    t.throws(() => native.ioctl(b, 0x3b64, 0)),
    { code: "ENOTTY", errno: errno.ENOTTY, syscall: "ioctl" },
  );
  // _IOR('x', 1, 16 bytes) says how much it writes.
  t.throws(() => native.ioctl(b, 0x80107801, new Uint8Array(15)), { instanceOf: RangeError });
  t.throws(() => native.ioctl(b, FIONREAD, new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => native.ioctl(b, 2 ** 32, 0), { instanceOf: RangeError });
});

test("an fd of a peer's is closed at once where that cannot wait, and otherwise by a thread", async (t) => {
  const memory = native.createMemory("discarded", 4096, false);
  for (const fd of [memory, native.eventfd(0)]) {
    t.is(native.discard(fd), 0);
    t.throws(() => native.fileStatus(fd), { code: "EBADF" });
  }
  t.is(fdsOfMemory("discarded"), 0);
  const files = [0, 1, 2].map(() => fs.openSync(process.execPath, "r"));
  // The thread closes them, not Node.
  const tokens = files.map((fd) => native.discard(native.duplicate(fd)));
  for (const fd of files) fs.closeSync(fd);
  t.true(tokens.every((token) => token > 0));
  t.is(new Set(tokens).size, 3);
  const closed: number[] = [];
  while (closed.length < 3) {
    closed.push(...native.takeDiscarded());
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.deepEqual(new Set(closed), new Set(tokens));
  t.deepEqual(native.takeDiscarded(), []);
  t.throws(() => native.discard(1 << 30), { code: "EBADF" });
});
