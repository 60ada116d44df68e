/**
 * The product, whole: the bridge as a process, a device VM in which `vfio-user-device` runs the NVMe controller on a file, and
 * a driver VM whose kernel drives it. Behind `npm start` and the tests alike.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { deviceVmArguments, driverVmArguments } from "./arguments.js";
import { PROJECT_ROOT, type VmEnvironment } from "./environment.js";
import { initScript } from "./init.js";
import { deviceVmBase, driverVmBase, GUEST_PROJECT, projectEntries, writeInitrd } from "./initramfs.js";
import { Vm } from "./qemu.js";

export const BOOT_MS = 180_000;
export const COMMAND_MS = 120_000;
const BRIDGE_START_MS = 30_000;

const DISK = "/tmp/disk.img";
const DEVICE_LOG = "/tmp/device.log";
const DEVICE_PCI = "/sys/bus/pci/devices/0000:01:00.0";
/** Where each VM has its device: the first function behind the only root port. */
const PCI_ADDRESS = "0000:01:00.0";
/** The NVMe controller's 17 vectors, errors, requests. */
const DOORBELLS = 19;

/** A line of a pino log. */
export type LogLine = Record<string, unknown> & { msg: string };

/** The bridge, as its users start it. */
export class BridgeProcess {
  readonly vfioUserSocket: string;
  readonly vhostUserSocket: string;
  readonly lines: LogLine[] = [];
  private readonly child: ChildProcess;
  private readonly exited: Promise<unknown>;
  private wake: () => void = () => {};

  constructor(directory: string) {
    this.vfioUserSocket = join(directory, "vfio-user.sock");
    this.vhostUserSocket = join(directory, "vhost-user.sock");
    const main = join(PROJECT_ROOT, "build/host/main.js");
    const sockets = ["--socket-path", this.vfioUserSocket, "--vhost-user-socket-path", this.vhostUserSocket];
    const node = [process.execPath, main, ...sockets, "--log-level", "debug"];
    this.child = spawn("setpriv", ["--pdeathsig", "KILL", "--", ...node], { stdio: ["ignore", "inherit", "pipe"] });
    this.exited = once(this.child, "close").finally(() => this.wake());
    const reader = createInterface({ input: this.child.stderr as NonNullable<ChildProcess["stderr"]> });
    reader.on("line", (line) => {
      this.lines.push(parse(line));
      this.wake();
    });
  }

  /** The first log line that `matches`, past or future. */
  async waitForLog(matches: (line: LogLine) => boolean, timeoutMs = BRIDGE_START_MS): Promise<LogLine> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.wake();
    }, timeoutMs);
    try {
      for (let next = 0; ; ) {
        for (; next < this.lines.length; next++) if (matches(this.lines[next])) return this.lines[next];
        if (late || this.child.exitCode !== null || this.child.signalCode !== null) {
          const last = this.lines.slice(-10).map((line) => JSON.stringify(line));
          throw new Error(
            `the bridge ${late ? "did not say what was waited for" : "ended"}; it said last:\n${last.join("\n")}`,
          );
        }
        await new Promise<void>((resolve) => {
          this.wake = resolve;
        });
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async listening(): Promise<void> {
    await this.waitForLog((line) => line.msg === "serving");
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  get pid(): number {
    return this.child.pid ?? -1;
  }

  /** SIGTERM, as a supervisor does; gives the exit code. */
  async stop(): Promise<number | null> {
    this.child.kill("SIGTERM");
    await this.exited;
    return this.child.exitCode;
  }
}

function parse(line: string): LogLine {
  try {
    return JSON.parse(line) as LogLine;
  } catch {
    return { msg: line };
  }
}

/** Starts the device VM; `booted` waits for its shell. */
export async function startDeviceVm(
  environment: VmEnvironment,
  directory: string,
  vhostUserSocket: string,
): Promise<Vm> {
  const initrd = join(directory, "device.cpio");
  const entries = [...(await projectEntries()), ...initScript({ afterwards: "commands" })];
  await writeInitrd(await deviceVmBase(environment), entries, initrd);
  const queues = 3 + DOORBELLS;
  const machine = { kernel: environment.kernel, initrd, memoryMiB: 1536, hugePages: 8 };
  return new Vm(environment, "device VM", deviceVmArguments({ ...machine, vhostUserSocket, queues }));
}

/** Makes the disk, starts the NVMe controller on it in the background of the device VM, and waits until it is ready. */
export async function startNvme(vm: Vm, diskMiB: number, options = ""): Promise<void> {
  await vm.check(`[ -f ${DISK} ] || truncate -s ${diskMiB}M ${DISK}`, COMMAND_MS);
  const main = `${GUEST_PROJECT}/build/guest/main.js`;
  const command = `node ${main} run nvme --pci ${PCI_ADDRESS} --file ${DISK} ${options}`;
  // What a process that was killed said last is no news of this one.
  await vm.check(`touch ${DEVICE_LOG}; wc -l <${DEVICE_LOG} >/tmp/device.lines`, COMMAND_MS);
  await vm.check(`${command} 2>>${DEVICE_LOG} & echo $! >/tmp/device.pid`, COMMAND_MS);
  const news = `tail -n +$(($(cat /tmp/device.lines) + 1)) ${DEVICE_LOG}`;
  const ready = `${news} | grep -q '"msg":"the device is ready"'`;
  const ended = `{ cat ${DEVICE_LOG}; exit 1; }`;
  await vm.check(`until ${ready}; do kill -0 $(cat /tmp/device.pid) || ${ended}; sleep 0.1; done`, COMMAND_MS);
}

/** Ends the controller with a signal and waits until it is gone. */
export async function stopNvme(vm: Vm, signal: "TERM" | "KILL" = "TERM"): Promise<void> {
  const wait = "while kill -0 $pid 2>/dev/null && [ -d /proc/$pid ]; do sleep 0.1; done";
  await vm.check(`pid=$(cat /tmp/device.pid); kill -${signal} $pid; ${wait}`, COMMAND_MS);
}

/** Changes the size of the disk's file under the running controller. */
export async function resizeDisk(vm: Vm, diskMiB: number): Promise<void> {
  await vm.check(`truncate -s ${diskMiB}M ${DISK}`, COMMAND_MS);
}

/** Blocks of 512 bytes that the disk's file takes. */
export async function diskBlocks(vm: Vm): Promise<number> {
  return Number(await vm.check(`stat -c %b ${DISK}`, COMMAND_MS));
}

/** What the controller says of itself. */
export async function nvmeState(vm: Vm): Promise<string> {
  const wait = `until tail -n 1 ${DEVICE_LOG} | grep -q '"msg":"state"'; do sleep 0.1; done; tail -n 1 ${DEVICE_LOG}`;
  return vm.check(`kill -USR1 $(cat /tmp/device.pid); ${wait}`, COMMAND_MS);
}

/** The controller's log so far. */
export async function nvmeLog(vm: Vm): Promise<LogLine[]> {
  const text = await vm.check(`cat ${DEVICE_LOG}`, COMMAND_MS);
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map(parse);
}

/** Starts the driver VM; `booted` waits for its shell. */
export async function startDriverVm(
  environment: VmEnvironment,
  directory: string,
  vfioUserSocket: string,
): Promise<Vm> {
  const initrd = join(directory, "driver.cpio");
  await writeInitrd(await driverVmBase(environment), initScript({ afterwards: "commands" }), initrd);
  const machine = { kernel: environment.kernel, initrd, memoryMiB: 512 };
  return new Vm(environment, "driver VM", driverVmArguments({ ...machine, vfioUserSocket }));
}

/** Waits until the VM takes commands. */
export async function booted(vm: Vm): Promise<void> {
  await vm.waitForLine(/^@@ready$/, BOOT_MS);
}

/** "vendor:device class" of the VM's device, as its kernel sees it. */
export async function pciId(vm: Vm): Promise<string> {
  const id = await vm.check(`cd ${DEVICE_PCI} && cat vendor device class`, COMMAND_MS);
  const [vendor, device, classCode] = id.split("\n").map((line) => line.replace("0x", ""));
  return `${vendor}:${device} class ${classCode}`;
}

/** Waits for the kernel's block device and gives its size in bytes. */
export async function waitForDisk(vm: Vm): Promise<number> {
  await vm.check(
    "for i in $(seq 300); do [ -b /dev/nvme0n1 ] && exit 0; sleep 0.1; done; dmesg | tail -n 20; exit 1",
    COMMAND_MS,
  );
  return Number(await vm.check("cat /sys/block/nvme0n1/size", COMMAND_MS)) * 512;
}

/** One step of the driver VM's work and how long it took. */
export interface Step {
  readonly name: string;
  readonly ms: number;
}

/** The whole life of a file: file system, random data, flush, unmount, cold caches, and the same checksum again. */
export async function exerciseDisk(vm: Vm, dataMiB: number, onStep: (step: Step) => void = () => {}): Promise<string> {
  const step = async (name: string, command: string): Promise<string> => {
    const start = performance.now();
    const output = await vm.check(command, COMMAND_MS);
    onStep({ name, ms: performance.now() - start });
    return output;
  };
  await step("mkfs.ext4", "mkfs.ext4 -q -F /dev/nvme0n1");
  await step("mount", "mkdir -p /mnt && mount -t ext4 /dev/nvme0n1 /mnt");
  await step(`write ${dataMiB} MiB`, `dd if=/dev/urandom of=/mnt/data bs=1M count=${dataMiB} 2>/dev/null`);
  const written = await step("checksum", "sha256sum /mnt/data");
  await step("sync, unmount", "sync && umount /mnt && echo 3 >/proc/sys/vm/drop_caches");
  await step("mount again", "mount -t ext4 /dev/nvme0n1 /mnt");
  const read = await step(`read ${dataMiB} MiB back`, "sha256sum /mnt/data");
  await step("unmount", "umount /mnt && e2fsck -fn /dev/nvme0n1 >/dev/null");
  if (read !== written) throw new Error(`the disk gave back other data than was written:\n${written}\n${read}`);
  return read.split(" ")[0];
}

/** Interrupts of the nvme driver so far, summed over its vectors. */
export async function nvmeInterrupts(vm: Vm): Promise<number> {
  const lines = (await vm.check("grep nvme /proc/interrupts", COMMAND_MS)).split("\n");
  return lines.reduce((sum, line) => sum + Number(/^\s*\d+:\s+(\d+)/.exec(line)?.[1] ?? 0), 0);
}
