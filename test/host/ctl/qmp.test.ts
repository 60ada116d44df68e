/** `vfio-user-ctl plug` and `unplug` without a VM: what is wrong is said; test/vm/plug.test.ts has VMs. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { folder } from "../../native/helpers.js";

const PROGRAM = fileURLToPath(new URL("../../../host/ctl/main.js", import.meta.url));

async function ctl(...args: readonly string[]): Promise<{ code: number; errors: string }> {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    errors += text;
  });
  const [code] = await once(child, "close");
  return { code, errors };
}

/** Something at a path that does this with whoever connects. */
async function peer(t: ExecutionContext, serve: (socket: Socket) => void): Promise<string> {
  const path = join(folder(t), "qmp.sock");
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket.on("error", () => {}));
    serve(socket);
  }).listen(path);
  await once(server, "listening");
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return path;
}

/** QEMU's part, with these answers. */
const qemu = (answers: Readonly<Record<string, unknown>>) => (socket: Socket) => {
  let rest = "";
  socket.write('{"QMP": {}}\r\n');
  socket.setEncoding("utf8").on("data", (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const { execute, id } = JSON.parse(line);
      const answer = execute in answers ? { return: answers[execute] } : { error: { desc: `no ${execute}` } };
      socket.write(`${JSON.stringify({ id, ...answer })}\r\n`);
    }
  });
};
const QEMU = { qmp_capabilities: {}, "query-status": {} };

for (const [what, args, message] of [
  ["no socket", ["plug"], /plug needs --qmp PATH/],
  ["neither VM's socket", ["plug", "--qmp", "QMP"], /plug needs --socket-path, for a driver VM, or/],
  ["both", ["plug", "--qmp", "QMP", "--socket-path", "a", "--vhost-user-socket-path", "b"], /plug needs --socket-path/],
  ["a name that is none", ["unplug", "--qmp", "QMP", "--id", "a/../b"], /--id a\/..\/b: it must begin with a letter/],
  ["no time", ["unplug", "--qmp", "QMP", "--timeout", "0"], /--timeout 0: it must be a number from 1/],
  [
    "queues that cannot be",
    ["plug", "--qmp", "QMP", "--vhost-user-socket-path", "b", "--queues", "3"],
    /from 4 to 1024/,
  ],
] as const) {
  test(`wrong usage: ${what}`, async (t) => {
    const path = await peer(t, qemu(QEMU));
    const { code, errors } = await ctl(...args.map((arg) => (arg === "QMP" ? path : arg)));
    t.is(code, 2);
    t.regex(errors, message);
  });
}

test("who says nothing, who says something else, and who leaves, is not waited for", async (t) => {
  const silent = await ctl("unplug", "--qmp", await peer(t, () => {}));
  t.regex(silent.errors, /does not answer: it is no QMP socket/);
  const other = await ctl("unplug", "--qmp", await peer(t, (socket) => socket.write("220 ready\n")));
  t.regex(other.errors, /QEMU closed its QMP connection/);
  const gone = await ctl("unplug", "--qmp", await peer(t, (socket) => socket.end()));
  t.regex(gone.errors, /QEMU closed its QMP connection/);
  t.deepEqual([silent.code, other.code, gone.code], [1, 1, 1]);
  const nobody = await ctl("unplug", "--qmp", join(folder(t), "none.sock"));
  t.regex(nobody.errors, /nobody answers at .*ENOENT/);
});

test("a device VM whose memory is not shared is refused, and QEMU's own words are passed on", async (t) => {
  const unshared = await peer(t, qemu({ ...QEMU, "query-memdev": [{ share: false }] }));
  const refused = await ctl("plug", "--qmp", unshared, "--vhost-user-socket-path", "x.sock");
  t.regex(refused.errors, /the VM's memory is not shared/);
  const shared = await peer(t, qemu({ ...QEMU, "query-memdev": [{ share: true }] }));
  const failed = await ctl("plug", "--qmp", shared, "--socket-path", "x.sock", "--bus", "port");
  t.regex(failed.errors, /plug: .*no device_add/);
});
