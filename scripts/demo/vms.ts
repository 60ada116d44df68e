/** The demonstration with two VMs and the bridge between them. */

import { BridgeProcess } from "../vm/bridge-process.js";
import { prepareVmEnvironment } from "../vm/environment.js";
import { accelerator, type Vm } from "../vm/qemu.js";
import * as vms from "../vm/two-vms.js";
import { type Cleanup, temporaryDirectory } from "./cleanup.js";
import { say, table } from "./report.js";

const DISK_MIB = 256;
const MiB = 1024 * 1024;

export async function runVms(cleanup: Cleanup, dataMiB: number): Promise<void> {
  const environment = await prepareVmEnvironment();
  const directory = await temporaryDirectory(cleanup);
  say(`QEMU ${environment.qemuVersion} (${accelerator()}), guest kernel ${environment.kernelVersion}`);

  say("starting the bridge");
  const bridge = new BridgeProcess(directory);
  cleanup.add(() => bridge.stop());
  await bridge.listening();

  say("booting the device VM");
  const deviceVm = await boot(cleanup, vms.startDeviceVm(environment, directory, bridge.vhostUserSocket));
  const deviceId = await vms.pciId(deviceVm);
  say("starting the NVMe controller in it");
  await vms.startNvme(deviceVm, DISK_MIB);

  say("booting the driver VM");
  const driverVm = await boot(cleanup, vms.startDriverVm(environment, directory, bridge.vfioUserSocket));
  const bytes = await vms.waitForDisk(driverVm);
  const driverId = await vms.pciId(driverVm);
  say(`its kernel found /dev/nvme0n1, ${bytes / MiB} MiB`);

  const checksum = await vms.exerciseDisk(driverVm, dataMiB, ({ name, ms }) => say(`  ${name}: ${seconds(ms)}`));
  const interrupts = await vms.nvmeInterrupts(driverVm);

  say("ending everything");
  await driverVm.stop();
  await vms.stopNvme(deviceVm);
  const device = (await vms.nvmeLog(deviceVm)).findLast((line) => line.msg === "served so far");
  const exitCode = await bridge.stop();
  const session = bridge.lines.findLast((line) => line.msg === "statistics");
  await deviceVm.stop();
  if (exitCode !== 0 || device === undefined || session === undefined)
    throw new Error(
      `the bridge ended with ${exitCode}, its log:\n${bridge.lines.map((l) => JSON.stringify(l)).join("\n")}`,
    );

  table([
    ["device VM", `saw ${deviceId} (virtio-vfio-user)`],
    ["driver VM", `saw ${driverId}, /dev/nvme0n1 of ${bytes / MiB} MiB`],
    ["checksum", `${checksum} both times`],
    ["interrupts in the driver VM", String(interrupts)],
    ["doorbells relayed", String(session.doorbells)],
    ["DMA through the window", `${device.readThroughWindow} bytes read, ${device.writtenThroughWindow} bytes written`],
  ]);
}

async function boot(cleanup: Cleanup, starting: Promise<Vm>): Promise<Vm> {
  const start = performance.now();
  // Also of one that is still being made: its files are being written.
  cleanup.add(() =>
    starting.then(
      (vm) => vm.stop(),
      () => {},
    ),
  );
  const vm = await starting;
  await vms.booted(vm);
  say(`  up in ${seconds(performance.now() - start)}`);
  return vm;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}
