/** Who connects to a socket of ours: one by one, while there is room, whatever becomes of a connection. */
import { existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { close, connect, isHungUp } from "../../native/index.js";
import { systemError, UserError } from "../../shared/errors.js";
import { Listener, type ListenerOptions } from "../../shared/listener.js";
import { type Log, quietLog } from "../../shared/log.js";
import { FdShare } from "../../shared/peer-fds.js";
import { Share } from "../../shared/turn.js";

function setUp(t: ExecutionContext, options: Partial<ListenerOptions> = {}) {
  const folder = mkdtempSync(join(tmpdir(), "listener-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const socket = join(folder, "socket");
  const connected: number[] = [];
  const lines: string[] = [];
  const log = { ...quietLog, error: (_: object, message: string) => lines.push(message) } as unknown as Log;
  const defaults = {
    socket,
    log,
    share: new Share(),
    fds: new FdShare(),
    connected: (fd: number) => connected.push(fd),
  };
  const listener = new Listener({ ...defaults, ...options });
  t.teardown(() => connected.forEach(close));
  const client = () => {
    const fd = connect(socket);
    t.teardown(() => close(fd));
    return fd;
  };
  return { listener, socket, connected, lines, connect: client };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

test("connections wait while they are to, and are had after resume", async (t) => {
  let waits = true;
  let asked = 0;
  const { listener, connected, connect } = setUp(t, {
    waits: () => {
      asked++;
      return waits;
    },
  });
  t.teardown(() => listener.close());
  connect();
  connect();
  await until(() => asked > 0);
  t.deepEqual([asked, connected.length], [1, 0], "it does not ask again by itself");
  waits = false;
  listener.resume();
  await until(() => connected.length === 2);
  t.pass();
});

test("a connection whose set-up fails is closed and logged, and the next one is had", async (t) => {
  const seen: number[] = [];
  const { listener, lines, connect } = setUp(t, {
    connected: (fd) => {
      if (seen.push(fd) === 1) throw systemError("epoll_ctl", 24);
    },
  });
  t.teardown(() => listener.close());
  const first = connect();
  await until(() => isHungUp(first));
  t.deepEqual(lines, ["cannot accept a connection: raise LimitNOFILE"]);
  const second = connect();
  await until(() => seen.length === 2);
  t.false(isHungUp(second));
  close(seen[1]);
});

test("nobody is accepted while no descriptor is left for a peer", async (t) => {
  let most = 0;
  const { listener, connected, connect } = setUp(t, { fds: new FdShare(() => most) });
  t.teardown(() => listener.close());
  connect();
  for (let n = 0; n < 50; n++) await new Promise((resolve) => setImmediate(resolve));
  t.is(connected.length, 0);
  most = 1;
  await until(() => connected.length === 1);
  t.pass();
});

test("its file goes with it, unless it is somebody else's by then", (t) => {
  const { listener, socket } = setUp(t);
  listener.close();
  t.false(existsSync(socket));
  const other = setUp(t);
  renameSync(other.socket, `${other.socket}.old`);
  writeFileSync(other.socket, "");
  other.listener.close();
  t.true(existsSync(other.socket));
});

test("what is no listening socket is a user's mistake", (t) => {
  t.throws(() => setUp(t, { socket: 0 }), { instanceOf: UserError, message: /file descriptor 0/ });
  t.throws(() => setUp(t, { socket: "/nowhere/socket" }), { instanceOf: UserError, message: /no such directory/ });
});
