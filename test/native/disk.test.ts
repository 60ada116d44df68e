/** A disk's file: locks, what O_DIRECT wants, extended attributes. */
import fs from "node:fs";
import path from "node:path";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { folder } from "./helpers.js";

function opened(t: ExecutionContext, file: string, flags = "r+"): number {
  const fd = fs.openSync(file, flags);
  t.teardown(() => fs.closeSync(fd));
  return fd;
}

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

test("attributes are read from the file", (t) => {
  const file = path.join(folder(t), "disk");
  fs.writeFileSync(file, "");
  const fd = opened(t, file);
  t.is(native.getAttribute(fd, "user.some"), undefined);
  t.throws(() => native.getAttribute(1 << 30, "user.some"), { code: "EBADF" });
  t.throws(() => native.getAttribute(fd, "user.a\0b"), { instanceOf: TypeError });
});
