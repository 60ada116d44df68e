/**
 * The Debian package in a VM that boots by systemd, and its units there, with all that they may not do: sockets that
 * start their service, a device on this host, a bridge with a configuration, and a device behind a bridge outside.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import anyTest, { type TestFn } from "ava";
import { deviceVmArguments } from "../../scripts/vm/arguments.js";
import { BridgeProcess } from "../../scripts/vm/bridge-process.js";
import { PROJECT_ROOT, prepareDebian, prepareExtras, prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { Vm } from "../../scripts/vm/qemu.js";
import { BOOT_MS, booted, COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { runTool } from "./boot-image.js";
import { Chroot } from "./chroot.js";

const IMAGE_MIB = 1024;
const DISK_MIB = 32;
const PCI = "0000:01:00.0";

/** Takes Vm.run's commands from the console. */
const COMMANDS = `stty -echo
echo "@@ready"
while read -r number command; do
  echo "$command" | base64 -d >/run/command
  sh /run/command </dev/null 2>&1
  echo "@@end $number $?"
done
`;
const COMMANDS_UNIT = `[Service]
ExecStart=/bin/sh /commands
StandardInput=tty-force
StandardOutput=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
`;

const test = anyTest as TestFn<{ vm: Vm; bridge: BridgeProcess; directory: string }>;

test.before(async (t) => {
  t.timeout(40 * 60_000);
  const environment = await prepareVmEnvironment();
  const [extras, debian] = [await prepareExtras(), await prepareDebian()];
  const env = { ...process.env, DEBEMAIL: "packages@example.org" };
  const made = execFileSync("npm", ["run", "--silent", "deb"], { cwd: PROJECT_ROOT, env, encoding: "utf8" });
  const debs = made.trim().split("\n").slice(-2);

  const directory = mkdtempSync(join(tmpdir(), "vfio-user-units-"));
  const system = new Chroot(debian.system);
  try {
    const names = system.put(...debs).join(" ");
    const modules = join("lib/modules", environment.kernelVersion, "kernel");
    mkdirSync(join(system.root, modules), { recursive: true });
    for (const path of environment.modules) execFileSync("cp", [path, join(system.root, modules, basename(path))]);
    writeFileSync(join(system.root, "commands"), COMMANDS);
    writeFileSync(join(system.root, "etc/systemd/system/commands.service"), COMMANDS_UNIT);
    const { status, output } = system.run(`
      dpkg -i ${names} && rm ${names}
      depmod ${environment.kernelVersion}
      touch /lib/modules/${environment.kernelVersion}/modules.{order,builtin} 2>/dev/null
      systemctl enable commands.service
      systemctl mask serial-getty@ttyS0.service systemd-networkd-wait-online.service
      echo device >/etc/hostname`);
    t.is(status, 0, output);
    const image = join(directory, "system.img");
    const mkfs = ["-q", "-F", "-d", system.root, image, `${IMAGE_MIB}M`];
    await runTool(extras.root, "usr/sbin/mkfs.ext4", ...mkfs);
  } finally {
    system.remove();
  }
  const bridge = new BridgeProcess(directory);
  await bridge.listening();
  const append = "root=/dev/nvme0n1 rw init=/lib/systemd/systemd systemd.show_status=no";
  writeFileSync(join(directory, "disk.img"), Buffer.alloc(DISK_MIB * 2 ** 20));
  const args = deviceVmArguments({
    ...{ kernel: environment.kernel, memoryMiB: 1536, cpus: 2, append, queues: 22 },
    ...{ vhostUserSocket: bridge.vhostUserSocket, drive: { file: join(directory, "disk.img"), sector: 512 } },
  });
  args.push("-drive", `file=${join(directory, "system.img")},format=raw,if=none,id=system`);
  args.push("-device", "nvme,serial=system,drive=system");
  const vm = new Vm(environment, "device VM with systemd", args);
  t.context = { vm, bridge, directory };
  await booted(vm);
  await vm.check("systemctl is-system-running --wait || systemctl --failed --no-pager", BOOT_MS);
});

test.after.always(async (t) => {
  const { vm, bridge, directory } = t.context;
  await vm?.stop();
  await bridge?.stop();
  if (directory !== undefined) rmSync(directory, { recursive: true });
});

test.serial("a device on this host: its socket starts it, all that can be checked of it is right", async (t) => {
  t.timeout(15 * 60_000);
  const { vm } = t.context;
  await vm.check(
    `mkdir -p /var/lib/vfio-user/disk1 && truncate -s ${DISK_MIB}M /var/lib/vfio-user/disk1/disk.img`,
    COMMAND_MS,
  );
  await vm.check("systemctl start vfio-user-device@disk1.socket", COMMAND_MS);
  t.is(await vm.check("stat -c '%a %G' /run/vfio-user/disk1.sock", COMMAND_MS), "660 kvm");
  t.is((await vm.run("systemctl is-active vfio-user-device@disk1.service", COMMAND_MS)).output, "inactive");
  // Its first client may be gone before it has started.
  await vm.run("vfio-user-check --socket-path /run/vfio-user/disk1.sock", COMMAND_MS);
  const active = "systemctl is-active vfio-user-device@disk1.service";
  await vm.check(`until [ "$(${active})" != activating ]; do sleep 0.2; done; ${active}`, COMMAND_MS);
  const checked = await vm.run("vfio-user-check --destructive --socket-path /run/vfio-user/disk1.sock", 5 * 60_000);
  t.is(
    checked.status,
    0,
    `${checked.output}\n${await vm.check("journalctl -u vfio-user-device@disk1 --no-pager | tail", COMMAND_MS)}`,
  );
  t.is(await vm.check("systemctl show -P NRestarts vfio-user-device@disk1.service", COMMAND_MS), "0");
});

test.serial("a bridge by its sockets: started by who connects, and again when it is killed", async (t) => {
  t.timeout(15 * 60_000);
  const { vm } = t.context;
  await vm.check("systemctl start vfio-user-bridge@disk0.socket vfio-user-bridge-device@disk0.socket", COMMAND_MS);
  const stat = "stat -c '%a %G' /run/vfio-user/disk0.sock /run/vfio-user/disk0-device.sock";
  t.is(await vm.check(stat, COMMAND_MS), "660 kvm\n660 kvm");
  await vm.check("systemctl start vfio-user-bridge@disk0.service", COMMAND_MS);
  await vm.check("systemctl kill -s KILL vfio-user-bridge@disk0.service", COMMAND_MS);
  const state = "$(systemctl show -P NRestarts -P ActiveState vfio-user-bridge@disk0.service | tr '\\n' ' ')";
  await vm.check(`until [ "${state}" = "active 1 " ] || [ "${state}" = "1 active " ]; do sleep 0.2; done`, COMMAND_MS);
  t.is(await vm.check(stat, COMMAND_MS), "660 kvm\n660 kvm");
  await vm.check(
    "systemctl stop vfio-user-bridge@disk0.socket vfio-user-bridge-device@disk0.socket vfio-user-bridge@disk0",
    COMMAND_MS,
  );
  t.is((await vm.run(stat, COMMAND_MS)).status, 1, "the sockets are gone");
});

test.serial("a bridge with many sessions, and a reload", async (t) => {
  const { vm } = t.context;
  const write = (...names: string[]) => {
    const sessions = names.map((name) => ({
      name,
      "socket-path": `/run/vfio-user-bridge/${name}.sock`,
      "vhost-user-socket-path": `/run/vfio-user-bridge/${name}-device.sock`,
    }));
    const config = JSON.stringify({ "socket-mode": "660", "socket-group": "kvm", sessions });
    return vm.check(`mkdir -p /etc/vfio-user && echo '${config}' >/etc/vfio-user/bridge.json`, COMMAND_MS);
  };
  await write("a");
  const started = await vm.run("systemctl start vfio-user-bridge.service", COMMAND_MS);
  t.is(started.status, 0, await vm.check("journalctl -u vfio-user-bridge --no-pager | tail -n 30", COMMAND_MS));
  t.is(await vm.check("stat -c '%a %G' /run/vfio-user-bridge/a.sock", COMMAND_MS), "660 kvm");
  await write("a", "b");
  await vm.check("systemctl reload vfio-user-bridge.service", COMMAND_MS);
  await vm.check("until [ -S /run/vfio-user-bridge/b.sock ]; do sleep 0.2; done", COMMAND_MS);
  t.regex(await vm.check("systemctl show -P StatusText vfio-user-bridge.service", COMMAND_MS), /\S/);
  await vm.check("systemctl stop vfio-user-bridge.service", COMMAND_MS);
});

test.serial("in a device VM: the device behind a bridge, under all that the unit forbids", async (t) => {
  t.timeout(15 * 60_000);
  const { vm, bridge } = t.context;
  const unit = `vfio-user-device-pci@${PCI}.service`;
  const started = await vm.run(`systemctl start ${unit}`, COMMAND_MS);
  t.is(
    started.status,
    0,
    await vm.check(`journalctl -u ${unit} --no-pager | tail -n 30; lsmod; ls -la /dev/vfio`, COMMAND_MS),
  );
  const check = join(PROJECT_ROOT, "build/host/check/main.js");
  t.notThrows(() =>
    execFileSync(process.execPath, [check, "--socket-path", bridge.vfioUserSocket], { encoding: "utf8" }),
  );
  t.is(await vm.check(`systemctl show -P NRestarts ${unit}`, COMMAND_MS), "0");
  t.is(await vm.check("systemctl --failed --no-legend", COMMAND_MS), "");
});
