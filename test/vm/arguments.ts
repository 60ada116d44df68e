/**
 * The QEMU command lines of the two VMs, q35 machines both, with memory that can be shared and each device behind a
 * root port of its own, so that it can be reset and unplugged.
 */
import { accelerator } from "./qemu.js";

export interface MachineOptions {
  readonly kernel: string;
  readonly initrd: string;
  readonly memoryMiB: number;
  /** More for the kernel's command line. */
  readonly append?: string;
}

export interface DeviceVmOptions extends MachineOptions {
  /** The bridge's vhost-user socket, which must be listening; without it the VM has no such device. */
  readonly vhostUserSocket?: string;
  /** Queues of the virtio-vfio-user device: three and one for each doorbell. */
  readonly queues?: number;
  /** A VIRTIO device id that QEMU has a name for; 39 has no Linux driver. */
  readonly virtioId?: number;
  /** Bytes of the device's config space, at most 256. */
  readonly configSize?: number;
  /** 2 MiB pages set aside at boot. */
  readonly hugePages?: number;
}

export interface DriverVmOptions extends MachineOptions {
  /** The vfio-user server's socket, which must be listening; without it the VM has no such device. */
  readonly vfioUserSocket?: string;
}

/** The QMP id of each VM's device under test (for device_del), and of its root port (for device_add). */
export const DEVICE_ID = "device0";
export const ROOT_PORT_ID = "port0";

export function deviceVmArguments(options: DeviceVmOptions): string[] {
  const { vhostUserSocket, queues = 4, virtioId = 39, configSize = 256, hugePages = 16 } = options;
  const append = `intel_iommu=on hugepages=${hugePages} ${options.append ?? ""}`;
  const args = machineArguments({ ...options, append }, ["-device", "intel-iommu"]);
  if (vhostUserSocket !== undefined) {
    args.push("-chardev", `socket,id=vhost0,path=${escapeCommas(vhostUserSocket)}`);
    args.push("-device", JSON.stringify(vhostUserDevice(virtioId, queues, configSize)));
  }
  return args;
}

/** The device VM's device as QMP's device_add and -device take it. */
export function vhostUserDevice(virtioId: number, queues: number, configSize: number): Record<string, unknown> {
  return {
    driver: "vhost-user-test-device-pci",
    id: DEVICE_ID,
    bus: ROOT_PORT_ID,
    chardev: "vhost0",
    "virtio-id": virtioId,
    num_vqs: queues,
    config_size: configSize,
  };
}

export function driverVmArguments(options: DriverVmOptions): string[] {
  const args = machineArguments(options, []);
  if (options.vfioUserSocket !== undefined)
    args.push("-device", JSON.stringify(vfioUserDevice(options.vfioUserSocket)));
  return args;
}

/** The driver VM's device as QMP's device_add and -device take it. */
export function vfioUserDevice(path: string): Record<string, unknown> {
  return { driver: "vfio-user-pci", id: DEVICE_ID, bus: ROOT_PORT_ID, socket: { type: "unix", path } };
}

/** `early` goes in front of all other devices, where QEMU wants an IOMMU. */
function machineArguments(options: MachineOptions, early: readonly string[]): string[] {
  const { kernel, initrd, memoryMiB, append = "" } = options;
  const kvm = accelerator() === "kvm";
  return [
    ...["-accel", kvm ? "kvm" : "tcg", ...(kvm ? ["-cpu", "host"] : [])],
    ...["-object", `memory-backend-memfd,id=mem,size=${memoryMiB}M,share=on`],
    // Under KVM the IOMMU's interrupt remapping needs the split interrupt controller.
    ...["-machine", `q35,memory-backend=mem${kvm ? ",kernel-irqchip=split" : ""}`, "-m", `${memoryMiB}M`, "-smp", "1"],
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
    ...["-kernel", kernel, "-initrd", initrd, "-append", `console=ttyS0 quiet panic=-1 ${append}`.trim()],
    ...early,
    ...["-device", `pcie-root-port,id=${ROOT_PORT_ID},bus=pcie.0,chassis=1,addr=5`],
  ];
}

/** In QEMU's key=value options a comma in a value is written twice. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}
