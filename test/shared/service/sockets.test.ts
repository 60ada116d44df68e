/** Sockets of the programs that serve: handed down by number or by a service manager, and who may connect to them. */
import { existsSync, openSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { listen } from "../../../native/index.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { fails, fdArgs, NAMES, type Name, socketArgs, start } from "../../fakes/service-process.js";
import { folder, owned } from "../../native/helpers.js";

/** Listening sockets as a service manager makes them. */
function listeners(t: ExecutionContext, directory: string): number[] {
  return ["a", "b"].map((name) => owned(t, listen(join(directory, name), 4)));
}
const ACTIVATE = 'export LISTEN_PID=$$; exec "$@"';
const NAMED: Record<Name, { LISTEN_FDS: string; LISTEN_FDNAMES: string }> = {
  bridge: { LISTEN_FDS: "2", LISTEN_FDNAMES: "vhost-user:vfio-user" },
  device: { LISTEN_FDS: "1", LISTEN_FDNAMES: "disk.socket" },
};

async function answers(t: ExecutionContext, name: Name, path: string): Promise<void> {
  const client = await Client.connect(path).catch((error) => error as Error);
  // Behind a bridge there is no device yet, and that is its answer.
  if (name === "bridge") t.regex(String(client), /no device|errno/);
  else t.is((await (client as Client).getInfo()).numRegions, 9);
  if (client instanceof Client) client.close();
}

for (const name of NAMES) {
  test(`${name}: sockets that were handed down by number are served, and stay`, async (t) => {
    const directory = folder(t);
    const running = start(t, name, fdArgs(name), { fds: listeners(t, directory) });
    await running.serving();
    await answers(t, name, join(directory, "a"));
    t.is(await running.stop(), 0);
    t.true(existsSync(join(directory, "a")));
  });

  test(`${name}: sockets of a service manager are served, by their names`, async (t) => {
    const directory = folder(t);
    const fds = listeners(t, directory);
    if (name === "bridge") fds.reverse();
    const running = start(t, name, [], { fds, env: NAMED[name], shell: ACTIVATE });
    await running.serving();
    await answers(t, name, join(directory, "a"));
    t.is(await running.stop(), 0);
  });

  test(`${name}: what is no listening AF_UNIX stream socket is refused, and said what it is`, async (t) => {
    const directory = folder(t);
    const unix = "socket.socket(socket.AF_UNIX, socket.";
    const cases: [string, RegExp][] = [
      ["os.closerange(3, 9)", /none was handed down by that number|it is not open/],
      [`os.dup2(os.open("${join(directory, "file")}", os.O_RDWR | os.O_CREAT), 3)`, /it is the file .*\/file;/],
      ['os.dup2(os.open("/dev/null", os.O_RDWR), 3)', /it is \/dev\/null;/],
      ["os.dup2(os.pipe()[0], 3)", /it is pipe:/],
      [`s = ${unix}SOCK_DGRAM); os.dup2(s.fileno(), 3)`, /it is a datagram socket/],
      [`s = ${unix}SOCK_SEQPACKET); os.dup2(s.fileno(), 3)`, /it is a SOCK_SEQPACKET socket/],
      [`s = ${unix}SOCK_STREAM); os.dup2(s.fileno(), 3)`, /nobody has called listen/],
      ["s = socket.create_server(('127.0.0.1', 0)); os.dup2(s.fileno(), 3)", /it is a socket of another family/],
    ];
    const inherit = "\n[os.set_inheritable(fd, True) for fd in (3, 4) if os.path.exists(f'/proc/self/fd/{fd}')]";
    for (const [python, what] of cases) {
      const other = `t = ${unix}SOCK_STREAM); t.bind(""); t.listen(); os.dup2(t.fileno(), 40)\n`;
      const { code, text } = await fails(t, name, fdArgs(name), {
        python: `${other}${python}\nos.dup2(40, 4)${inherit}`,
      });
      t.is(code, 1, text);
      t.regex(text, /^file descriptor 3 is no listening AF_UNIX stream socket: [^\n]+$/);
      t.regex(text, what);
    }
    const closed = await fails(t, name, [...fdArgs(name).slice(1), "--fd=99"], { fds: listeners(t, directory) });
    t.regex(closed.text, /^file descriptor 99 is no listening AF_UNIX stream socket: it is not open;/);
  });

  test(`${name}: what a service manager says wrongly is refused`, async (t) => {
    const directory = folder(t);
    const fds = listeners(t, directory);
    const refused = async (env: NodeJS.ProcessEnv, what: RegExp, args: string[] = [], shell = ACTIVATE) => {
      const { code, text } = await fails(t, name, args, { fds, env: { ...NAMED[name], ...env }, shell });
      t.true(code === 1 || code === 2, text);
      t.regex(text, what);
      t.notRegex(text, /\n/);
    };
    await refused({ LISTEN_PID: "1" }, /LISTEN_PID is "1", and this is process \d+/, [], 'exec "$@"');
    await refused({ LISTEN_FDS: "x" }, /LISTEN_FDS is "x"/);
    await refused({ LISTEN_FDS: "9" }, /LISTEN_FDS is 9, and LISTEN_FDNAMES has \d names/);
    await refused({ LISTEN_FDS: "0" }, /(are|is) needed/);
    await refused({ LISTEN_FDS: "2", LISTEN_FDNAMES: "a:b" }, /LISTEN_FDNAMES is a:b: /);
    await refused({ LISTEN_FDS: "2", LISTEN_FDNAMES: undefined }, /LISTEN_FDNAMES is unknown:unknown: /);
    const names = { LISTEN_FDS: "2", LISTEN_FDNAMES: "vfio-user:vhost-user" };
    await refused(names, /handed down .*leave out the one or the other/, socketArgs(name, join(directory, "no")));
  });

  test(`${name}: LISTEN_FDS of another process is nobody's matter where sockets are given`, async (t) => {
    const running = start(t, name, socketArgs(name, folder(t)), { env: { LISTEN_FDS: "3", LISTEN_PID: "1" } });
    await running.serving();
    t.is(await running.stop(), 0);
  });

  test(`${name}: who may connect`, async (t) => {
    const directory = folder(t);
    const args = socketArgs(name, directory);
    const first = start(t, name, args);
    await first.serving();
    t.is(statSync(join(directory, "a")).mode & 0o777, 0o600);
    await first.stop();
    for (const group of ["daemon", "1"]) {
      const running = start(t, name, [...args, "--socket-mode=0660", `--socket-group=${group}`]);
      await running.said(/the device is ready|"msg":"serving"/);
      const { mode, gid } = statSync(join(directory, "a"));
      t.deepEqual([mode & 0o777, gid], [0o660, 1]);
      t.is(await running.stop(), 0);
    }
    for (const mode of ["0999", "1777", "rw", ""]) {
      t.like(await fails(t, name, [...args, `--socket-mode=${mode}`]), {
        code: 2,
        text: `--socket-mode ${mode}: it must be three octal digits, such as 660 or 0660`,
      });
    }
    for (const group of ["no-such-group", "", "4294967295", "a b", "../x"]) {
      t.like(await fails(t, name, [...args, `--socket-group=${group}`]), {
        code: 1,
        text: `--socket-group ${group}: there is no such group`,
      });
    }
    t.false(existsSync(join(directory, "a")));
  });

  test(`${name}: a group that its user is not in is refused, and the socket goes`, async (t) => {
    const directory = folder(t);
    const args = [...socketArgs(name, directory), "--socket-group=0"];
    const shell = `chown 1:1 ${directory}; exec setpriv --reuid 1 --regid 1 --clear-groups -- "$@"`;
    const { code, text } = await fails(t, name, args, { shell });
    t.is(code, 1, text);
    t.regex(text, /cannot set who may connect to .*\/a: this user may not give files to that group/);
    t.false(existsSync(join(directory, "a")));
  });
}

test("a bridge takes a path for the one side and a descriptor for the other, and not one socket twice", async (t) => {
  const directory = folder(t);
  const [fd] = listeners(t, directory);
  const path = join(directory, "vhost");
  const running = start(t, "bridge", [`--vhost-user-socket-path=${path}`, "--fd=3"], { fds: [fd] });
  await running.serving();
  t.regex(running.log, /"fd":3,"vhostUserSocketPath"/);
  t.is(await running.stop(), 0);
  t.false(existsSync(path));
  const { code, text } = await fails(t, "bridge", ["--fd=3", "--vhost-user-fd=3"], { fds: [fd] });
  t.deepEqual([code, text.slice(0, 37)], [2, "file descriptor 3 was given twice: ea"]);
  const same = await fails(t, "bridge", ["--fd=3", "--vhost-user-fd=4"], { fds: [fd, fd] });
  t.is(same.code, 1);
  t.regex(same.text, /file descriptors 3 and 4 are one socket/);
});

test("a file in the place of a socket that was to be made is not touched", async (t) => {
  const directory = folder(t);
  writeFileSync(join(directory, "a"), "precious", { mode: 0o644 });
  openSync(join(directory, "a"), "r");
  const { code } = await fails(t, "device", [...socketArgs("device", directory), "--socket-mode=777"]);
  t.is(code, 1);
  t.is(statSync(join(directory, "a")).mode & 0o777, 0o644);
});
