/** A disk's file: holes and zeros, locks, extended attributes. */
import fs from "node:fs";
import path from "node:path";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { folder, MiB, owned } from "./helpers.js";

const HOLE = native.FALLOC_FL_PUNCH_HOLE | native.FALLOC_FL_KEEP_SIZE;

function fallocate(fd: number, mode: number, offset: number, length: number): Promise<native.SystemFailure | null> {
  return new Promise((resolve) => native.fallocate(fd, mode, offset, length, resolve));
}

function opened(t: ExecutionContext, file: string, flags = "r+"): number {
  const fd = fs.openSync(file, flags);
  t.teardown(() => fs.closeSync(fd));
  return fd;
}

test("a hole reads as zeros, gives space back and leaves the rest", async (t) => {
  const fd = owned(t, native.createMemory("hole", MiB, false));
  fs.writeSync(fd, new Uint8Array(MiB).fill(7));
  const before = fs.fstatSync(fd).blocks;
  t.is(await fallocate(fd, HOLE, 4096, 65536), null);
  const bytes = new Uint8Array(MiB);
  fs.readSync(fd, bytes, 0, MiB, 0);
  t.true(bytes.subarray(4096, 4096 + 65536).every((byte) => byte === 0));
  t.is(bytes[4095], 7);
  t.is(bytes[4096 + 65536], 7);
  t.is(before - fs.fstatSync(fd).blocks, 128);
  t.is(fs.fstatSync(fd).size, MiB);
});

test("fallocate does not hold up the event loop, and its failures come back", async (t) => {
  const fd = owned(t, native.createMemory("modes", MiB, false));
  let called = false;
  const done = new Promise<void>((resolve) =>
    native.fallocate(fd, HOLE, 0, 4096, () => {
      called = true;
      resolve();
    }),
  );
  t.false(called);
  await done;
  // A memory file has no ZERO_RANGE.
  t.like(await fallocate(fd, native.FALLOC_FL_ZERO_RANGE, 0, 4096), { code: "ENOTSUP", syscall: "fallocate" });
  t.like(await fallocate(fd, HOLE, 0, 0), { code: "EINVAL" });
  t.like(await fallocate(1 << 30, HOLE, 0, 4096), { code: "EBADF" });
  t.throws(() => native.fallocate(fd, HOLE, -1, 4096, () => {}), { instanceOf: RangeError });
  t.throws(() => native.fallocate(fd, HOLE, 0, 0.5, () => {}), { instanceOf: RangeError });
  t.throws(() => native.fallocate(fd, HOLE, 0, 1, null as never), { instanceOf: TypeError });
});

test("a lock is held once, also within a process, until its file is closed or it is given back", (t) => {
  const file = path.join(folder(t), "disk");
  fs.writeFileSync(file, "");
  const first = fs.openSync(file, "r+");
  const second = opened(t, file);
  t.true(native.lockFile(first, false));
  t.true(native.lockFile(first, false));
  t.false(native.lockFile(second, false));
  t.false(native.lockFile(second, true));
  fs.closeSync(first);
  t.true(native.lockFile(second, false));
  const third = opened(t, file);
  t.false(native.lockFile(third, false));
  native.unlockFile(second);
  t.true(native.lockFile(third, false));
  t.throws(() => native.unlockFile(1 << 30), { code: "EBADF" });
  t.throws(() => native.lockFile(1 << 30, false), { code: "EBADF" });
  t.throws(() => native.lockFile(third, undefined as never), { instanceOf: TypeError });
});

test("shared locks go together, and with no exclusive one", (t) => {
  const file = path.join(folder(t), "disk");
  fs.writeFileSync(file, "");
  const [first, second] = [opened(t, file, "r"), opened(t, file, "r")];
  const writer = opened(t, file);
  t.true(native.lockFile(first, true));
  t.true(native.lockFile(second, true));
  t.false(native.lockFile(writer, false));
  native.unlockFile(first);
  t.false(native.lockFile(writer, false));
  native.unlockFile(second);
  t.true(native.lockFile(writer, false));
  t.false(native.lockFile(first, true));
  t.throws(() => native.lockFile(first, false), { code: "EBADF" });
});

test("what O_DIRECT wants of a file is a power of two, where it is said", (t) => {
  const file = path.join(folder(t), "disk");
  fs.writeFileSync(file, new Uint8Array(65536));
  const alignment = native.directAlignment(opened(t, file));
  if (alignment !== undefined) t.is(2 ** Math.round(Math.log2(alignment)), alignment);
  t.is(native.directAlignment(opened(t, "/dev/null", "r")), undefined);
  t.throws(() => native.directAlignment(1 << 30), { code: "EBADF" });
});

test("attributes are kept with the file", (t) => {
  const file = path.join(folder(t), "disk");
  fs.writeFileSync(file, "");
  const fd = opened(t, file);
  t.is(native.getAttribute(fd, "user.some"), undefined);
  native.setAttribute(fd, "user.some", "größe");
  t.is(native.getAttribute(opened(t, file, "r"), "user.some"), "größe");
  native.setAttribute(fd, "user.some", "");
  t.is(native.getAttribute(fd, "user.some"), "");
  native.setAttribute(fd, "user.long", "x".repeat(4096 - 512));
  t.is(native.getAttribute(fd, "user.long")?.length, 4096 - 512);
  t.throws(() => native.setAttribute(fd, "nonsense", "1"), { code: "ENOTSUP" });
  t.throws(() => native.getAttribute(1 << 30, "user.some"), { code: "EBADF" });
  t.throws(() => native.getAttribute(fd, "user.a\0b"), { instanceOf: TypeError });
});
