/** What a Notifier sends, byte by byte, and what becomes of it when the manager is slow or gone. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import test, { type ExecutionContext } from "ava";
import { close, createMemory } from "../../../native/index.js";
import { Notifier } from "../../../shared/notify/notifier.js";
import { folder } from "../../native/helpers.js";

/** A service manager's socket: one line of JSON for each datagram, read when told to. */
const MANAGER = `
import array, json, os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path = sys.argv[1]
s.bind("\\0" + path[1:] if path[0] == "@" else path)
print("bound", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        data, control, flags, _ = s.recvmsg(4096, socket.CMSG_SPACE(4 * 253))
        fds = array.array("i")
        for level, kind, bytes in control:
            fds.frombytes(bytes[:len(bytes) // 4 * 4])
        print(json.dumps([data.decode(), [os.fstat(fd).st_ino for fd in fds]]), flush=True)
        for fd in fds: os.close(fd)
`;

async function manager(t: ExecutionContext, path: string) {
  const process = spawn("python3", ["-c", MANAGER, path], { stdio: ["pipe", "pipe", "inherit"] });
  t.teardown(() => process.kill());
  const lines = createInterface({ input: process.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    async take(count = 1): Promise<[string, number[]][]> {
      process.stdin.write(`${count}\n`);
      const taken: [string, number[]][] = [];
      for (let i = 0; i < count; i++) taken.push(JSON.parse((await lines.next()).value));
      return taken;
    },
    async end(): Promise<void> {
      process.kill("SIGKILL");
      await once(process, "close");
    },
  };
}

for (const kind of ["path", "abstract name"]) {
  test(`messages as sd_notify(3) has them, to a ${kind}`, async (t) => {
    const path = kind === "path" ? join(folder(t), "notify") : `@vvu-notifier-test-${process.pid}`;
    const peer = await manager(t, path);
    const notifier = Notifier.ofProcess({ NOTIFY_SOCKET: path });
    if (!notifier) return t.fail();
    t.teardown(() => notifier.close());
    const fds = [createMemory("a", 4096, false), createMemory("b", 4096, false)];
    t.true(await notifier.ready());
    t.true(await notifier.status("two\nlines"));
    t.true(await notifier.watchdog());
    t.true(await notifier.store("0.1 x", fds));
    t.true(await notifier.remove("0.1 x"));
    t.true(await notifier.stopping());
    const inodes = fds.map((fd) => fs.fstatSync(fd).ino);
    fds.forEach(close);
    t.deepEqual(await peer.take(6), [
      ["READY=1", []],
      ["STATUS=two lines", []],
      ["WATCHDOG=1", []],
      ["FDSTORE=1\nFDNAME=0.1 x\nFDPOLL=0", inodes],
      ["FDSTOREREMOVE=1\nFDNAME=0.1 x", []],
      ["STOPPING=1", []],
    ]);
  });
}

test("messages that find no room wait in their order, and hold nobody up", async (t) => {
  const path = join(folder(t), "notify");
  const peer = await manager(t, path);
  const notifier = new Notifier(path);
  t.teardown(() => notifier.close());
  const most = Number(fs.readFileSync("/proc/sys/net/unix/max_dgram_qlen", "utf8"));
  const count = most + 20;
  let sent = 0;
  const all = Array.from({ length: count }, (_, i) =>
    notifier.status(String(i)).then((isSent) => {
      if (isSent) sent++;
    }),
  );
  await new Promise(setImmediate);
  t.true(sent >= most && sent < count, `${sent} of ${count}`);
  const taken = await peer.take(count);
  await Promise.all(all);
  t.is(sent, count);
  t.deepEqual(
    taken.map(([text]) => text),
    Array.from({ length: count }, (_, i) => `STATUS=${i}`),
  );
});

test("a manager that is gone is a false, and one that came again is found", async (t) => {
  const path = join(folder(t), "notify");
  const notifier = new Notifier(path);
  t.teardown(() => notifier.close());
  t.false(await notifier.ready());
  const first = await manager(t, path);
  t.true(await notifier.ready());
  await first.end();
  t.false(await notifier.ready());
  fs.unlinkSync(path);
  const second = await manager(t, path);
  t.true(await notifier.ready());
  t.deepEqual(await second.take(), [["READY=1", []]]);
});

test("messages that wait when it is closed, or when the manager ends, are not sent", async (t) => {
  const path = join(folder(t), "notify");
  const peer = await manager(t, path);
  const most = Number(fs.readFileSync("/proc/sys/net/unix/max_dgram_qlen", "utf8"));
  const closed = new Notifier(path);
  const first = Array.from({ length: most + 5 }, () => closed.ready());
  closed.close();
  t.is((await Promise.all(first)).at(-1), false);
  const left = new Notifier(path);
  const second = Array.from({ length: 5 }, () => left.ready());
  await peer.end();
  t.is((await Promise.all(second)).at(-1), false);
  left.close();
});

test("nobody supervises, or somebody whom we do not know how to reach", (t) => {
  t.is(Notifier.ofProcess({}), undefined);
  t.is(Notifier.ofProcess({ NOTIFY_SOCKET: "" }), undefined);
  t.is(Notifier.ofProcess({ NOTIFY_SOCKET: "vsock:2:1234" }), undefined);
});

test("a watchdog is this process's, or anybody's", (t) => {
  t.is(Notifier.watchdogPeriod({}, 5), undefined);
  t.is(Notifier.watchdogPeriod({ WATCHDOG_USEC: "2000000" }, 5), 2000);
  t.is(Notifier.watchdogPeriod({ WATCHDOG_USEC: "2000000", WATCHDOG_PID: "5" }, 5), 2000);
  t.is(Notifier.watchdogPeriod({ WATCHDOG_USEC: "2000000", WATCHDOG_PID: "4" }, 5), undefined);
  for (const usec of ["", "0", "-1", "x"]) t.is(Notifier.watchdogPeriod({ WATCHDOG_USEC: usec }, 5), undefined);
});

test("names and numbers of descriptors are the caller's to get right", (t) => {
  const notifier = new Notifier("/nowhere");
  for (const name of ["", "a:b", "a\nb", "ä", "n".repeat(256)]) t.throws(() => notifier.store(name, [0]));
  t.throws(() => notifier.store("a", []));
  t.throws(() => notifier.store("a", Array(254).fill(0)));
  t.throws(() => notifier.remove(""));
});
