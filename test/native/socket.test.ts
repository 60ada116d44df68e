/** Sockets: bytes and fds, what is not now, the end of a stream, and what a peer does wrong. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import type { Readable } from "node:stream";
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { failure, fdsOfMemory, folder, owned, PAGE, pair } from "./helpers.js";

const { errno } = constants;

function system(
  t: import("ava").ExecutionContext,
  code: keyof typeof errno,
  syscall: string,
  call: () => unknown,
): void {
  const error = t.throws(call);
  t.like(error, { code, errno: errno[code], syscall });
  t.regex(error.message, failure(code, errno[code], syscall).message);
}

test("bytes go both ways, at the offsets given", (t) => {
  const [a, b] = pair(t);
  const fds = new Int32Array(1);
  const bytes = new Uint8Array(8);
  t.is(native.send(a, Buffer.from("xxhello"), 2, 5), 5);
  t.is(native.receive(b, bytes, 1, 7, fds), 5);
  t.is(Buffer.from(bytes).toString("latin1"), "\0hello\0\0");
  t.is(fds[0], 0);
  t.is(native.send(b, bytes, 1, 1), 1);
  t.is(native.receive(a, bytes, 0, 8, fds), 1);
});

test("nothing to receive is -1, also on a blocking socket; the peer's close is 0", (t) => {
  const [a, b] = native.socketPair();
  owned(t, a);
  const fds = new Int32Array(2);
  const bytes = new Uint8Array(8);
  t.is(native.receive(a, bytes, 0, 8, fds), -1);
  native.ioctl(a, 0x5421, new Uint8Array(4));
  t.is(native.receive(a, bytes, 0, 8, fds), -1);
  native.close(b);
  t.is(native.receive(a, bytes, 0, 8, fds), 0);
});

test("a full socket is -1, a closed one EPIPE without a signal", (t) => {
  const [a, b] = native.socketPair();
  owned(t, a);
  const bytes = new Uint8Array(1 << 16);
  while (native.send(a, bytes, 0, bytes.length) !== -1);
  native.close(b);
  system(t, "EPIPE", "sendmsg", () => native.send(a, bytes, 0, 1));
});

for (const count of [1, 253]) {
  test(`${count} fds on one message arrive close-on-exec, in order`, (t) => {
    const [a, b] = pair(t);
    const name = `fds-${count}`;
    const sent = Array.from({ length: count }, (_, i) => native.createMemory(name, (i + 1) * 4096, false));
    t.is(native.send(a, new Uint8Array(3), 0, 3, sent), 3);
    for (const fd of sent) native.close(fd);
    t.is(fdsOfMemory(name), 0);
    const fds = new Int32Array(254);
    t.is(native.receive(b, new Uint8Array(9), 0, 9, fds), 3);
    t.is(fds[0], count);
    for (let i = 1; i <= count; i++) {
      t.is(native.fileStatus(fds[i]!).size, i * 4096);
      t.regex(fs.readFileSync(`/proc/self/fdinfo/${fds[i]}`, "utf8"), /^flags:\s*02\d{6}$/m);
      native.close(fds[i]!);
    }
    t.is(fdsOfMemory(name), 0);
  });
}

/** What does not fit is thrown away by a thread, and nothing is received before it has been. */
async function receiveBehind(fd: number, bytes: Uint8Array, fds: Int32Array, most?: number): Promise<number> {
  for (;;) {
    const count = native.receive(fd, bytes, 0, 1, fds, most);
    if (count >= 0) return count;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

test("of fds that do not all fit none is left, and the bytes arrive", async (t) => {
  const [a, b] = pair(t);
  const memory = owned(t, native.createMemory("too-many", 4096, false));
  const bytes = new Uint8Array(1);
  for (const room of [1, 2, 3]) {
    native.send(a, new Uint8Array([room]), 0, 1, [memory, memory, memory]);
    const fds = new Int32Array(room);
    t.is(await receiveBehind(b, bytes, fds), 1);
    t.deepEqual([bytes[0], fds[0]], [room, native.LOST_FDS - (room - 1)]);
    for (let n = 1; n < room; n++) native.close(fds[n]!);
    t.is(fdsOfMemory("too-many"), 1);
  }
  for (const most of [0, 2, 3]) {
    native.send(a, new Uint8Array(1), 0, 1, [memory, memory, memory]);
    const fds = new Int32Array(10);
    t.is(await receiveBehind(b, bytes, fds, most), 1);
    t.is(fds[0], most < 3 ? native.LOST_FDS - most : 3);
    for (let n = 1; n <= most; n++) native.close(fds[n]!);
    t.is(fdsOfMemory("too-many"), 1);
  }
  // A message without fds needs no room for any.
  native.send(a, new Uint8Array(1), 0, 1);
  const fds = new Int32Array(1);
  t.is(native.receive(b, bytes, 0, 1, fds), 1);
  t.is(fds[0], 0);
});

test("fds for which the process has no room are lost, those that arrived can be closed, and the bytes arrive", (t) => {
  // In a process of its own, for the limit is the process's.
  const script = `
    import * as native from ${JSON.stringify(new URL("../../native/index.js", import.meta.url).href)};
    const [a, b] = native.socketPair();
    const sent = Array.from({ length: 100 }, () => native.eventfd(0));
    native.send(a, new Uint8Array(1), 0, 1, sent);
    const spare = [];
    try { for (;;) spare.push(native.eventfd(0)); } catch {}
    native.close(spare.pop()); native.close(spare.pop());
    const fds = new Int32Array(254);
    const count = native.receive(b, new Uint8Array(1), 0, 1, fds);
    for (let n = 1; n <= native.LOST_FDS - fds[0]; n++) native.close(fds[n]);
    const left = [native.eventfd(0), native.eventfd(0)];
    process.stdout.write([count, fds[0], left.length].join(" "));`;
  const command = 'ulimit -n 300 && exec "$0" --input-type=module -e "$1"';
  const printed = execFileSync("bash", ["-c", command, process.execPath, script], { encoding: "utf8" });
  t.is(printed, "1 -3 2");
});

test("arguments out of range are refused before any call", (t) => {
  const [a, b] = pair(t);
  const bytes = new Uint8Array(4);
  const fds = new Int32Array(2);
  for (const [offset, length] of [
    [0, 5],
    [3, 2],
    [5, 0],
    [-1, 1],
    [0, 0],
    [0.5, 1],
    [Number.NaN, 1],
    [0, 2 ** 53],
  ]) {
    t.throws(() => native.receive(a, bytes, offset!, length!, fds), { instanceOf: RangeError });
    t.throws(() => native.send(b, bytes, offset!, length!), { instanceOf: RangeError });
  }
  t.throws(() => native.receive(a, bytes, 0, 1, new Int32Array(0)), { instanceOf: RangeError });
  t.throws(() => native.receive(a, bytes, 0, 1, new Uint8Array(8) as never), { instanceOf: TypeError });
  t.throws(() => native.receive("0" as never, bytes, 0, 1, fds), { instanceOf: TypeError });
  t.throws(() => native.send(b, new Int8Array(4) as never, 0, 1), { instanceOf: TypeError });
  t.throws(() => native.send(b, bytes, 0, 1, new Array(254).fill(0)), { instanceOf: RangeError });
  t.throws(() => native.send(b, bytes, 0, 1, {} as never), { instanceOf: TypeError });
  system(t, "EBADF", "sendmsg", () => native.send(b, bytes, 0, 1, [-1]));
  t.is(native.receive(a, bytes, 0, 1, fds), -1);
});

test("listen, connect, accept", async (t) => {
  const place = path.join(folder(t), "socket");
  const listener = owned(t, native.listen(place, 4));
  t.is(native.accept(listener), -1);
  t.is(fs.statSync(place).mode & 0o777, 0o600 & ~process.umask());
  const client = owned(t, native.connect(place));
  const server = owned(t, native.accept(listener));
  native.send(client, Buffer.from("hi"), 0, 2);
  t.is(native.receive(server, new Uint8Array(4), 0, 4, new Int32Array(1)), 2);
  t.is(native.accept(listener), -1);
});

test("a stale socket file is replaced, a served one is not", (t) => {
  const place = path.join(folder(t), "socket");
  native.close(native.listen(place, 1));
  t.true(fs.existsSync(place));
  system(t, "ECONNREFUSED", "connect", () => native.connect(place));
  const listener = owned(t, native.listen(place, 1));
  system(t, "EADDRINUSE", "bind", () => native.listen(place, 1));
  const client = owned(t, native.connect(place));
  t.true(client >= 0);
  // The look whether it is served left a connection that is closed already; then comes the real one.
  t.is(native.receive(owned(t, native.accept(listener)), new Uint8Array(1), 0, 1, new Int32Array(1)), 0);
  t.true(owned(t, native.accept(listener)) >= 0);
});

test("what is not a socket is never removed", (t) => {
  const at = folder(t);
  const file = path.join(at, "file");
  fs.writeFileSync(file, "precious");
  const link = path.join(at, "link");
  native.close(native.listen(path.join(at, "stale"), 1));
  fs.symlinkSync("stale", link);
  for (const place of [file, link, at]) system(t, "EADDRINUSE", "bind", () => native.listen(place, 1));
  t.is(fs.readFileSync(file, "utf8"), "precious");
  t.is(fs.readlinkSync(link), "stale");
});

test("paths that cannot be", (t) => {
  const long = `/tmp/${"x".repeat(103)}`;
  system(t, "ENAMETOOLONG", "bind", () => native.listen(long, 1));
  system(t, "ENAMETOOLONG", "connect", () => native.connect(long));
  system(t, "ENOENT", "connect", () => native.connect(path.join(folder(t), "none")));
  system(t, "ENOENT", "bind", () => native.listen("", 1));
  t.throws(() => native.listen("a\0b", 1), { instanceOf: TypeError });
  t.regex(t.throws(() => native.connect("/nonexistent/socket")).message, / '\/nonexistent\/socket'$/);
});

test("descriptors come with their own message, however little of the one before it is asked for", (t) => {
  const [a, b] = pair(t);
  const file = owned(t, native.createMemory("with-its-message", PAGE, false));
  const fds = new Int32Array(9);
  const bytes = new Uint8Array(32);
  native.send(a, bytes, 0, 20);
  native.send(a, bytes, 0, 10, new Array(7).fill(file));
  for (const [length, expected] of [
    [12, 0],
    [8, 0],
    [4, 7],
    [6, 0],
  ]) {
    t.is(native.receive(b, bytes, 0, length!, fds), length);
    t.is(fds[0], expected);
    for (let n = 1; n <= expected!; n++) native.close(fds[n]!);
  }
  t.is(fdsOfMemory("with-its-message"), 1);
});

/** Runs Python, which can do what the addon cannot, with sockets as its descriptors from 3 on; resolves at its end. */
async function python(t: ExecutionContext, script: string, ...sockets: number[]): Promise<void> {
  const child = spawn("python3", ["-c", script], { stdio: ["ignore", "ignore", "inherit", ...sockets] });
  t.teardown(() => child.kill("SIGKILL"));
  const [code] = await once(child, "close");
  t.is(code, 0);
}

test("a byte out of band is one of the stream, with its descriptors, and leaves no socket readable", async (t) => {
  const bytes = new Uint8Array(8);
  for (const room of [254, 9]) {
    const [ours, theirs] = pair(t);
    const fds = new Int32Array(room);
    await python(
      t,
      `
import array, os, socket
s = socket.socket(fileno=3)
s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))], socket.MSG_OOB)
s.send(b"y")`,
      theirs,
    );
    t.is(native.receive(ours, bytes, 0, 8, fds), 1);
    t.deepEqual([bytes[0], fds[0]], [0x78, 1]);
    native.close(fds[1]!);
    t.is(native.receive(ours, bytes, 0, 8, fds), 1);
    t.deepEqual([bytes[0], fds[0]], [0x79, 0]);
    t.is(native.receive(ours, bytes, 0, 8, fds), -1);
  }

  // Where the peer has our end, too.
  const [ours, theirs] = pair(t);
  const script = `
import socket
socket.socket(fileno=4).setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)
socket.socket(fileno=3).send(b"x", socket.MSG_OOB)`;
  await python(t, script, theirs, ours);
  const fds = new Int32Array(9);
  t.is(native.receive(ours, bytes, 0, 8, fds), -1);
  t.is(native.receive(ours, bytes, 0, 8, fds), 1);
});

/** A TCP socket that takes so many seconds to close, as what was sent is not read. */
async function lingering(t: ExecutionContext, seconds: number): Promise<number> {
  // Python can set SO_LINGER, and hands the socket over.
  const [ours, theirs] = pair(t);
  const script = `
import array, os, socket, struct, sys
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
s = socket.socket()
s.connect(listener.getsockname())
peer, _ = listener.accept()
s.setblocking(False)
try:
    while True: s.send(bytes(65536))
except BlockingIOError: pass
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, ${seconds}))
socket.socket(fileno=3).sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))])
os.close(s.detach())
sys.stdout.write("sent")
sys.stdout.flush()
sys.stdin.read()`;
  const child = spawn("python3", ["-c", script], { stdio: ["pipe", "pipe", "inherit", theirs] });
  t.teardown(() => child.kill("SIGKILL"));
  await once(child.stdout as Readable, "data");
  const fds = new Int32Array(254);
  t.is(native.receive(ours, new Uint8Array(1), 0, 1, fds), 1);
  t.is(fds[0], 1);
  return fds[1]!;
}

test("a file that takes long to close stops nobody: not dropped with its message, nor left in a socket", async (t) => {
  const bytes = new Uint8Array(2);
  const fds = new Int32Array(1);
  for (const isReceived of [true, false]) {
    const file = await lingering(t, 60);
    const [a, b] = native.socketPair();
    native.send(a, bytes, 0, 1, [file]);
    native.send(a, bytes, 0, 1);
    // The reference that is left is the message's.
    native.close(file);
    if (isReceived) {
      t.is(native.receive(b, bytes, 0, 1, fds), 1);
      t.is(fds[0], native.LOST_FDS);
      await t.throwsAsync(() => receiveBehind(b, bytes, fds), { code: "EBUSY" });
    }
    const token = native.discard(b, 1, true);
    t.true(token > 0, "what waits in it is a thread's to close");
    // Another owner's are closed meanwhile.
    const other = native.discard(fs.openSync(process.execPath, "r"), 2);
    const closed: number[] = [];
    while (!closed.includes(other)) {
      closed.push(...native.takeDiscarded());
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (!isReceived) t.false(closed.includes(token));
    native.close(a);
  }
  const [c, d] = native.socketPair();
  t.is(native.discard(c, 1, true), 0);
  t.is(native.discard(d, 1, true), 0);
});
