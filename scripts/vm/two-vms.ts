/**
 * The product, whole: the bridge as a process, a device VM in which `vfio-user-device` runs the NVMe controller on a
 * file, and a driver VM whose kernel drives it. Behind `npm start` and the tests alike.
 *
 * The folder, from the ground up: setup.sh and setup-extra.sh unpack QEMU, kernels and programs by packages.sh, and
 * setup-debian.sh makes systems; environment finds them; cpio, libraries and init make a VM's file
 * system, which initramfs puts together; arguments
 * has QEMU's command lines, qemu runs it, with wake-ups below; bridge-process runs the bridge.
 */
import { join } from "node:path";
import { type Drive, deviceVmArguments, driverVmArguments, type Iommu } from "./arguments.js";
import { type LogLine, parseLogLine } from "./bridge-process.js";
import type { Entry } from "./cpio.js";
import type { GuestKernel, VmEnvironment } from "./environment.js";
import { initScript } from "./init.js";
import {
  DEVICE_USER,
  deviceVmBase,
  driverVmBase,
  GUEST_PROJECT,
  projectEntries,
  userEntries,
  writeInitrd,
} from "./initramfs.js";
import { Vm } from "./qemu.js";
import { quote } from "./quote.js";

export const BOOT_MS = 180_000;
export const COMMAND_MS = 120_000;

/** Where a driver VM has its disk. */
const DEVICE_PCI = "/sys/bus/pci/devices/0000:01:00.0";
/** The NVMe controller's 17 vectors, errors, requests. */
const DOORBELLS = 19;

/** Where a device VM's first disk is, and a driver VM's only one. */
const FIRST: Disk = disk(0);

/** One of the device VM's disks: its PCI function, its file, its process's log and process id. */
export interface Disk {
  readonly pci: string;
  readonly file: string;
  readonly log: string;
  readonly pid: string;
}

/** The n-th disk: the first function behind the n-th root port. */
export function disk(n: number): Disk {
  const suffix = n || "";
  return {
    pci: `0000:0${n + 1}:00.0`,
    file: `/tmp/disk${suffix}.img`,
    log: `/tmp/device${suffix}.log`,
    pid: `/tmp/device${suffix}.pid`,
  };
}

/**
 * Who the device process runs as: a user who owns the VFIO group, and whose addresses are those of the device VM's
 * IOMMU; or root, with physical addresses and huge pages.
 */
export type DeviceUser = "user" | "root";

/**
 * Starts the device VM, with a device for each socket; `booted` waits for its shell. `entries` are more files in it.
 */
export async function startDeviceVm(
  environment: VmEnvironment,
  directory: string,
  vhostUserSocket: string,
  moreVhostUserSockets: readonly string[] = [],
  entries: readonly Entry[] = [],
  drive?: Drive,
  user: DeviceUser = "user",
): Promise<Vm> {
  const initrd = join(directory, "device.cpio");
  const own = [...(await projectEntries()), ...userEntries(), ...initScript({ afterwards: "commands" })];
  await writeInitrd(await deviceVmBase(environment), [...own, ...entries], initrd);
  const queues = 3 + DOORBELLS;
  const iommuPlatform = user === "user";
  const hugePages = iommuPlatform ? 0 : 8 * (1 + moreVhostUserSockets.length);
  const machine = { kernel: environment.kernel, initrd, memoryMiB: 1536, hugePages, iommuPlatform };
  const devices = { vhostUserSocket, moreVhostUserSockets, queues, drive };
  return new Vm(environment, "device VM", deviceVmArguments({ ...machine, ...devices }));
}

/** Gives the device VM's function at `pci` to vfio-pci, and its IOMMU group to the user: all that takes root. */
function giveToUser(pci: string): string {
  const device = `/sys/bus/pci/devices/${pci}`;
  return `
if [ "$(basename $(readlink ${device}/driver) 2>/dev/null)" != vfio-pci ]; then
  echo vfio-pci >${device}/driver_override
  [ ! -e ${device}/driver ] || echo ${pci} >${device}/driver/unbind
  echo ${pci} >/sys/bus/pci/drivers_probe
fi
chown ${DEVICE_USER} /dev/vfio/$(basename $(readlink ${device}/iommu_group))`;
}

/** Makes the disk, starts the NVMe controller on it in the background of the device VM, and waits until it is ready. */
export async function startNvme(
  vm: Vm,
  diskMiB: number,
  options = "",
  disk = FIRST,
  user: DeviceUser = "user",
): Promise<void> {
  const { pci, file, log, pid } = disk;
  await vm.check(`[ -e ${file} ] || truncate -s ${diskMiB}M ${file}`, COMMAND_MS);
  const main = `${GUEST_PROJECT}/build/guest/main.js`;
  let command = `node ${main} run nvme --pci ${pci} --file ${file} ${options}`;
  if (user === "user") {
    const files = [file, ...[...options.matchAll(/--file[= ](\S+)/g)].map(([, path]) => path)];
    await vm.check(`${giveToUser(pci)}\nchown ${DEVICE_USER} ${files.join(" ")}`, COMMAND_MS);
    command = `su ${DEVICE_USER} -c ${quote(`exec ${command}`)}`;
  }
  // What an earlier process said stays in the log, but is not taken for this one's word.
  const lines = Number(await vm.check(`touch ${log}; wc -l <${log}`, COMMAND_MS));
  await vm.check(`${command} 2>>${log} & echo $! >${pid}`, COMMAND_MS);
  const ready = `tail -n +${lines + 1} ${log} | grep -q '"msg":"the device is ready"'`;
  const ended = `{ cat ${log}; exit 1; }`;
  await vm.check(`until ${ready}; do kill -0 $(cat ${pid}) || ${ended}; sleep 0.1; done`, COMMAND_MS);
}

/** Ends the controller with a signal and waits until it is gone. */
export async function stopNvme(vm: Vm, signal: "TERM" | "KILL" = "TERM", which: Disk = FIRST): Promise<void> {
  const wait = "while kill -0 $pid 2>/dev/null && [ -d /proc/$pid ]; do sleep 0.1; done";
  await vm.check(`pid=$(cat ${which.pid}); kill -${signal} $pid; ${wait}`, COMMAND_MS);
}

/** Changes the size of the disk's file under the running controller. */
export async function resizeDisk(vm: Vm, diskMiB: number): Promise<void> {
  await vm.check(`truncate -s ${diskMiB}M ${FIRST.file}`, COMMAND_MS);
}

/** Blocks of 512 bytes that the disk's file takes. */
export async function diskBlocks(vm: Vm): Promise<number> {
  return Number(await vm.check(`stat -c %b ${FIRST.file}`, COMMAND_MS));
}

/** What the controller says of itself, now. */
export async function nvmeState(vm: Vm): Promise<string> {
  const states = `grep '"msg":"state"' ${FIRST.log}`;
  // A long line comes in pieces.
  const isWhole = `[ $(${states} | wc -l) -gt $before ] && [ -z "$(tail -c 1 ${FIRST.log})" ]`;
  const wait = `until ${isWhole}; do sleep 0.1; done; ${states} | tail -n 1`;
  return vm.check(`before=$(${states} | wc -l); kill -USR1 $(cat ${FIRST.pid}); ${wait}`, COMMAND_MS);
}

/** The controller's log so far. */
export async function nvmeLog(vm: Vm, { log }: Disk = FIRST): Promise<LogLine[]> {
  const text = await vm.check(`cat ${log}`, COMMAND_MS);
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map(parseLogLine);
}

export interface DriverVmChoices {
  /** For messages; and its files' name in the directory. */
  readonly name?: string;
  /** Another kernel than the environment's, with the base archive that has its modules. */
  readonly kernel?: GuestKernel;
  readonly base?: string;
  readonly memoryMiB?: number;
  readonly cpus?: number;
  /** More for the kernel's command line. */
  readonly append?: string;
  /** Whether the guest may reboot. */
  readonly reboots?: boolean;
  /** False for a VM that gets its disk later, by device_add. */
  readonly plugged?: boolean;
  /** Whether it boots from the disk: all that it runs is there. */
  readonly bootsFromIt?: boolean;
  /** As in DriverVmOptions. */
  readonly iommu?: Iommu;
  readonly memoryBackend?: string;
  readonly more?: readonly string[];
  readonly memoryOptions?: string;
  /** More files in it. */
  readonly entries?: readonly Entry[];
}

/** Starts the driver VM; `booted` waits for its shell. */
export async function startDriverVm(
  environment: VmEnvironment,
  directory: string,
  vfioUserSocket: string,
  choices: DriverVmChoices = {},
): Promise<Vm> {
  const { name = "driver VM", memoryMiB = 512, cpus = 1, append = "" } = choices;
  const { reboots = false, plugged = true, bootsFromIt = false, iommu, memoryBackend } = choices;
  const { more = [], memoryOptions = "", entries = [] } = choices;
  const own = { iommu, more, memoryOptions, ...(memoryBackend !== undefined && { memoryBackend }) };
  const machine = { memoryMiB, cpus, append, reboots, ...own };
  if (bootsFromIt) return new Vm(environment, name, driverVmArguments({ ...machine, vfioUserSocket, bootsFromIt }));
  const initrd = join(directory, `${name.replaceAll(" ", "-")}.cpio`);
  const base = choices.base ?? (await driverVmBase(environment));
  await writeInitrd(base, [...initScript({ afterwards: "commands" }), ...entries], initrd);
  const loaded = { ...machine, kernel: choices.kernel?.image ?? environment.kernel, initrd };
  return new Vm(environment, name, driverVmArguments(plugged ? { ...loaded, vfioUserSocket } : loaded));
}

/**
 * Waits until the VM takes commands; after a reboot, `from` is the number of the console's first line of the new boot.
 */
export async function booted(vm: Vm, from = 0): Promise<void> {
  await vm.waitForLine(/^@@ready$/, BOOT_MS, from);
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
interface Step {
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

/** How many DMA maps the device VM's controller has. */
export async function nvmeMaps(vm: Vm): Promise<number> {
  return ((await nvmeState(vm)).match(/"windowOffset":/g) ?? []).length;
}

/** How many bytes the maps of the device VM's controller are together. */
export async function nvmeMapped(vm: Vm): Promise<number> {
  const { state } = JSON.parse(await nvmeState(vm)) as { state: { dma: { maps: { size: number }[] } } };
  return state.dma.maps.reduce((sum, { size }) => sum + size, 0);
}

/** Interrupts of the nvme driver so far, summed over its vectors. */
export async function nvmeInterrupts(vm: Vm): Promise<number> {
  const lines = (await vm.check("grep nvme /proc/interrupts", COMMAND_MS)).split("\n");
  return lines.reduce((sum, line) => sum + Number(/^\s*\d+:\s+(\d+)/.exec(line)?.[1] ?? 0), 0);
}
