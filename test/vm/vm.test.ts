/**
 * Both VMs for real, without our device: they boot, have what the scenarios need, and end in every way without a trace.
 */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import anyTest, { type ExecutionContext, type TestFn } from "ava";
import { deviceVmArguments, driverVmArguments } from "../../scripts/vm/arguments.js";
import { PROJECT_ROOT, prepareVmEnvironment, qemuVersion, type VmEnvironment } from "../../scripts/vm/environment.js";
import { initScript } from "../../scripts/vm/init.js";
import { deviceVmBase, driverVmBase, GUEST_PROJECT, projectEntries, writeInitrd } from "../../scripts/vm/initramfs.js";
import { Vm } from "../../scripts/vm/qemu.js";
import { UserError } from "../../shared/errors.js";

const SETUP_MS = 15 * 60_000;
const BOOT_MS = 180_000;
const COMMAND_MS = 60_000;

const test = anyTest as TestFn<{ environment: VmEnvironment; directory: string }>;

test.before(async (t) => {
  t.timeout(SETUP_MS);
  t.context = {
    environment: await prepareVmEnvironment(),
    directory: await mkdtemp(join(tmpdir(), "vfio-user-vm-")),
  };
});

test.after.always(async (t) => {
  if (t.context.directory !== undefined) await rm(t.context.directory, { recursive: true });
});

function start(t: ExecutionContext, environment: VmEnvironment, name: string, args: readonly string[]): Vm {
  const vm = new Vm(environment, name, args);
  t.teardown(() => vm.stop());
  return vm;
}

test.serial("the environment has QEMU 11.1 and, the second time, everything at once", async (t) => {
  const { environment } = t.context;
  t.regex(environment.qemuVersion, /^\d+\.\d+/);
  t.deepEqual(await prepareVmEnvironment(), environment);
  t.is(await driverVmBase(environment), await driverVmBase(environment));
});

test.serial("a QEMU that is too old, silent or absent is told in one sentence", async (t) => {
  const old = { program: "echo", args: ["QEMU emulator version 7.2.1 (Debian)"], environment: {} };
  const tooOld = await t.throwsAsync(qemuVersion(old), { instanceOf: UserError });
  t.is(tooOld?.message, "QEMU 7.2 is too old: vfio-user-pci needs QEMU 11.1 or newer.");
  const silent = { program: "true", args: [], environment: {} };
  await t.throwsAsync(qemuVersion(silent), { instanceOf: UserError, message: /is this really QEMU/ });
  const absent = { program: "/nonexistent/qemu", args: [], environment: {} };
  await t.throwsAsync(qemuVersion(absent), { instanceOf: UserError, message: /QEMU does not start/ });
});

test.serial("a driver VM boots, has the nvme driver and makes a file system, and powers off", async (t) => {
  t.timeout(BOOT_MS + 4 * COMMAND_MS);
  const { environment, directory } = t.context;
  const initrd = join(directory, "driver.cpio");
  const lines = [
    "uname -r",
    "test -d /sys/bus/pci/drivers/nvme && echo nvme is there",
    "truncate -s 16M /tmp/disk && mkfs.ext4 -q /tmp/disk && e2fsck -fp /tmp/disk",
    "grep -w ext4 /proc/filesystems",
    "false",
    "echo not reached",
  ];
  await writeInitrd(await driverVmBase(environment), initScript({ lines, afterwards: "poweroff" }), initrd);
  const vm = start(
    t,
    environment,
    "driver VM",
    driverVmArguments({ kernel: environment.kernel, initrd, memoryMiB: 512 }),
  );
  const booted = await vm.waitForLine(/^@@booted$/, BOOT_MS);
  const kernel = await vm.waitForLine(/^6\.|^[7-9]\.|^\d\d\./, COMMAND_MS, booted.number);
  t.is(kernel.text, environment.kernelVersion);
  await vm.waitForLine(/^nvme is there$/, COMMAND_MS);
  await vm.waitForLine(/^\/tmp\/disk: \d+\/\d+ files/, COMMAND_MS);
  const done = await vm.waitForLine(/^@@done (\d+)$/, COMMAND_MS);
  t.is(done.match[1], "1");
  t.deepEqual(await vm.exited, { code: 0, signal: null });
  await t.throwsAsync(vm.waitForLine(/not reached/, COMMAND_MS), { message: /ended \(status 0\).*nvme is there/s });
  await t.throwsAsync(vm.qmp("query-status"), { message: /QMP/ });
});

test.serial("a device VM boots, runs node and our build, and has VFIO behind an IOMMU", async (t) => {
  t.timeout(BOOT_MS + 10 * COMMAND_MS);
  const { environment, directory } = t.context;
  const initrd = join(directory, "device.cpio");
  const entries = [...(await projectEntries()), ...initScript({ afterwards: "commands" })];
  await writeInitrd(await deviceVmBase(environment), entries, initrd);
  const args = deviceVmArguments({ kernel: environment.kernel, initrd, memoryMiB: 1024, hugePages: 8 });
  const vm = start(t, environment, "device VM", args);
  await vm.waitForLine(/^@@ready$/, BOOT_MS);

  t.is(await vm.check("node -p process.version", COMMAND_MS), process.version);
  const loaded = await vm.check("cut -d ' ' -f 1 /proc/modules", COMMAND_MS);
  const modules = environment.modules.map((path) => basename(path, ".ko").replaceAll("-", "_"));
  t.deepEqual(loaded.split("\n").sort(), modules.sort());
  await vm.check('test -c /dev/vfio/vfio && test -n "$(ls /sys/kernel/iommu_groups)"', COMMAND_MS);
  t.regex(await vm.check("cat /proc/meminfo", COMMAND_MS), /^HugePages_Free: +8$/m);
  const source = "import('pino').then(({ pino }) => console.log(typeof pino))";
  t.is(await vm.check(`cd ${GUEST_PROJECT} && node -e "${source}"`, COMMAND_MS), "function");

  t.deepEqual(await vm.run("printf 'two\\nlines'; exit 7", COMMAND_MS), { status: 7, output: "two\nlines" });
  await t.throwsAsync(vm.check("echo why >&2; false", COMMAND_MS), { message: /gave status 1:\nwhy/ });
  await t.throwsAsync(vm.run(`: ${"x".repeat(4000)}`, COMMAND_MS), { instanceOf: RangeError });
  await t.throwsAsync(vm.waitForLine(/never printed/, 1), { message: /did not come in 1 ms; its last lines:.*why/s });

  t.like(await vm.qmp("query-status"), { running: true });
  await t.throwsAsync(vm.qmp("no-such-command"), { message: /no-such-command/ });
  const stopped = vm.waitForEvent("STOP", COMMAND_MS);
  await vm.qmp("stop");
  await stopped;
  t.deepEqual(await vm.kill(), { code: null, signal: "SIGKILL" });
});

test.serial("QEMU says why it does not start, and a failed start is an exit", async (t) => {
  const { environment } = t.context;
  const vm = start(t, environment, "bad VM", ["-no-such-option"]);
  await t.throwsAsync(vm.waitForLine(/@@booted/, COMMAND_MS), { message: /status 1.*\[qemu\].*no-such-option/s });
  t.like(await vm.exited, { code: 1 });
});

test.serial("QEMU takes the command lines with our devices, whose sockets it then wants", async (t) => {
  const { environment, directory } = t.context;
  const machine = { kernel: environment.kernel, initrd: environment.kernel, memoryMiB: 64 };
  const absent = join(directory, "no,such.sock");
  for (const args of [
    deviceVmArguments({ ...machine, vhostUserSocket: absent }),
    driverVmArguments({ ...machine, vfioUserSocket: absent }),
  ]) {
    const vm = start(t, environment, "VM without a peer", args);
    await t.throwsAsync(vm.waitForLine(/@@booted/, COMMAND_MS), { message: /no,such\.sock.*No such file/s });
  }
});

test.serial("each VM's QEMU connects to the socket it was given", async (t) => {
  const { environment, directory } = t.context;
  const machine = { kernel: environment.kernel, initrd: environment.kernel, memoryMiB: 64 };
  const path = join(directory, "peer.sock");
  for (const args of [
    deviceVmArguments({ ...machine, vhostUserSocket: path }),
    driverVmArguments({ ...machine, vfioUserSocket: path }),
  ]) {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const first = new Promise<Buffer>((resolve) =>
      server.once("connection", (socket) => {
        socket.on("error", () => {});
        socket.once("data", (bytes) => {
          resolve(bytes);
          socket.destroy();
        });
      }),
    );
    const vm = start(t, environment, "VM with a deaf peer", args);
    // vhost-user: GET_FEATURES (1), version 1. vfio-user: VERSION (1) as a command of some length.
    const header = await first;
    t.is(args.join(" ").includes("vhost-user") ? header.readUInt32LE(0) : header.readUInt16LE(2), 1);
    await vm.stop();
    await new Promise((resolve) => server.close(resolve));
  }
});

test.serial("QEMU does not outlive the process that started it, even a killed one", async (t) => {
  const source = `
    const { prepareVmEnvironment } = await import("./build/scripts/vm/environment.js");
    const { Vm } = await import("./build/scripts/vm/qemu.js");
    const vm = new Vm(await prepareVmEnvironment(), "orphan", ["-S", "-nodefaults", "-display", "none"]);
    await vm.qmp("query-status");
    console.log(vm.pid);
    await vm.exited;`;
  const parent = spawn(process.execPath, ["--input-type=module", "-e", source], {
    cwd: PROJECT_ROOT,
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.teardown(() => parent.kill("SIGKILL"));
  const lines = createInterface({ input: parent.stdout });
  const pid = await new Promise<number>((resolve) => lines.once("line", (line) => resolve(Number(line))));
  t.true(process.kill(pid, 0));
  const ended = new Promise((resolve) => parent.stdout.once("end", resolve).resume());
  parent.kill("SIGKILL");
  await ended;
  await waitUntilGone(pid);
  t.pass();
});

/** A process that is no child of ours can only be asked about; AVA's timeout bounds this. */
async function waitUntilGone(pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
