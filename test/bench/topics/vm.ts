/**
 * The product, whole: a stock QEMU VM whose kernel drives our NVMe controller, against QEMU's own NVMe controller in
 * the same VM. Ours twice: in a device VM behind the bridge, and as a process on the host. All disks are files in
 * memory. VMs are emulated unless VVU_ACCEL=kvm, so the ratios say less than they would on bare metal: each exit is
 * cheap, each instruction is not.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { driverVmArguments } from "../../../scripts/vm/arguments.js";
import { BridgeProcess } from "../../../scripts/vm/bridge-process.js";
import { prepareVmEnvironment } from "../../../scripts/vm/environment.js";
import { initScript } from "../../../scripts/vm/init.js";
import { driverVmBase, writeInitrd } from "../../../scripts/vm/initramfs.js";
import { Vm } from "../../../scripts/vm/qemu.js";
import { booted, COMMAND_MS, startDeviceVm, startNvme } from "../../../scripts/vm/two-vms.js";
import { MiB } from "../../../shared/limits.js";
import type { Machine, ProgramResult, Sample } from "../machine.js";
import { NodeProcess } from "../node-process.js";
import { type Row, single, type Topic } from "../row.js";

type Disk = "bridge" | "host" | "qemu";

interface State {
  readonly directory: string;
  readonly bridge: BridgeProcess;
  readonly deviceVm: Vm;
  readonly hostDevice: NodeProcess;
  readonly vm: Vm;
  /** Block devices in the driver VM. */
  readonly disks: Readonly<Record<Disk, string>>;
}

const DISK = 64 * MiB;
const MILLISECONDS = 1000;
const SERIALS: Readonly<Record<Disk, string>> = { bridge: "", host: "HOST", qemu: "QEMU" };
const PROGRAM = "/bin/block-bench";

async function iops({ vm, disks }: State, disk: Disk, operation: string, depth: number): Promise<Sample> {
  const output = await vm.check(`${PROGRAM} ${MILLISECONDS} ${operation} ${depth} ${disks[disk]}`, COMMAND_MS);
  const { perSecond } = JSON.parse(output) as ProgramResult;
  return single(perSecond / 1000);
}

function row(disk: Disk, where: string, operation: string, depth: number): Row<State> {
  return {
    name: `4 KiB random ${operation} in the driver VM, QD${depth}, ${where}`,
    unit: "k/s",
    target: {},
    floorName: "QEMU's nvme",
    floor: (state) => iops(state, "qemu", operation, depth),
    measure: (state) => iops(state, disk, operation, depth),
  };
}

/** The driver VM's disks by their serial numbers; ours behind the bridge has one that it made itself. */
async function findDisks(vm: Vm): Promise<Record<Disk, string>> {
  const wait = "for i in $(seq 300); do [ $(ls -d /sys/block/nvme* | wc -l) = 3 ] && break; sleep 0.1; done";
  const list = 'for d in /sys/block/nvme*; do echo "/dev/$(basename $d) $(cat $d/device/serial)"; done';
  const lines = (await vm.check(`${wait}; ${list}`, COMMAND_MS)).split("\n").map((line) => line.trim().split(/\s+/));
  const found = (serial: string): string => {
    const disk = lines.find(([, name]) => name === serial)?.[0];
    if (disk === undefined) throw new Error(`no disk with serial number ${serial} among ${JSON.stringify(lines)}`);
    return disk;
  };
  const [host, qemu] = [found(SERIALS.host), found(SERIALS.qemu)];
  const bridge = lines.map(([disk]) => disk).find((disk) => disk !== host && disk !== qemu);
  if (bridge === undefined) throw new Error("the disk behind the bridge did not come up");
  return { bridge, host, qemu };
}

export const vm: Topic<State> = {
  name: "vm",
  rows: (["read", "write"] as const).flatMap((operation) =>
    [1, 32].flatMap((depth) => [
      row("host", "device on the host", operation, depth),
      row("bridge", "device VM", operation, depth),
    ]),
  ),
  async open(machine: Machine) {
    const environment = await prepareVmEnvironment();
    const directory = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "vvu-bench-"));
    const file = (name: string): string => {
      const path = join(directory, name);
      writeFileSync(path, Buffer.alloc(DISK, 1));
      return path;
    };
    const bridge = new BridgeProcess(directory);
    await bridge.listening();
    const deviceVm = await startDeviceVm(environment, directory, bridge.vhostUserSocket);
    await booted(deviceVm);
    await startNvme(deviceVm, DISK / MiB);

    const socket = join(directory, "host.sock");
    const hostDevice = await NodeProcess.start({
      script: "guest/main.js",
      args: ["run", "nvme", "--file", file("host.img"), "--serial", SERIALS.host, "--socket-path", socket],
      ready: { text: '"msg":"the device is ready"', count: 1 },
    });

    const initrd = join(directory, "driver.cpio");
    const program = { path: PROGRAM, data: readFileSync(machine.program("client-block")), mode: 0o755 };
    const entries = [program, ...initScript({ afterwards: "commands" })];
    await writeInitrd(await driverVmBase(environment), entries, initrd);
    const vmm = { kernel: environment.kernel, initrd, memoryMiB: 512, vfioUserSocket: bridge.vfioUserSocket };
    const vm = new Vm(environment, "driver VM", [
      ...driverVmArguments(vmm),
      ...["-device", JSON.stringify({ driver: "vfio-user-pci", socket: { type: "unix", path: socket } })],
      ...["-drive", `if=none,id=qemu,format=raw,file=${file("qemu.img")}`],
      ...["-device", `nvme,drive=qemu,serial=${SERIALS.qemu}`],
    ]);
    await booted(vm);
    return { directory, bridge, deviceVm, hostDevice, vm, disks: await findDisks(vm) };
  },
  async close({ directory, bridge, deviceVm, hostDevice, vm: driverVm }) {
    await driverVm.stop();
    await hostDevice.stop();
    await deviceVm.stop();
    await bridge.stop();
    rmSync(directory, { recursive: true, force: true });
  },
};
