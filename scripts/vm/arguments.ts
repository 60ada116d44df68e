/**
 * The QEMU command lines of the two VMs, q35 machines both, with memory that can be shared and each device behind a
 * root port of its own, so that it can be reset and unplugged.
 */
import { accelerator } from "./qemu.js";

interface MachineOptions {
  /** Without one, the firmware boots from the disk. */
  readonly kernel?: string;
  readonly initrd?: string;
  readonly memoryMiB: number;
  /** One when left out. */
  readonly cpus?: number;
  /** More for the kernel's command line. */
  readonly append?: string;
  /** Whether a reboot of the guest starts it again, where otherwise it ends QEMU. */
  readonly reboots?: boolean;
  /** QEMU's object for the VM's memory, but for its id and size; memory-backend-memfd,share=on when left out. */
  readonly memoryBackend?: string;
}

/** A block device of the device VM's own, /dev/vda there. */
export interface Drive {
  /** What it is made of. */
  readonly file: string;
  /** Bytes of its sectors. */
  readonly sector: number;
}

interface DeviceVmOptions extends MachineOptions {
  /** The bridge's vhost-user socket, which must be listening; without it the VM has no such device. */
  readonly vhostUserSocket?: string;
  /** Sockets of further devices, behind root ports of their own. */
  readonly moreVhostUserSockets?: readonly string[];
  /** Queues of the virtio-vfio-user device: three and one for each doorbell. */
  readonly queues?: number;
  /** A VIRTIO device id that QEMU has a name for; 39 has no Linux driver. */
  readonly virtioId?: number;
  /** Bytes of the device's config space, at most 256. */
  readonly configSize?: number;
  /**
   * Whether the devices' addresses are the IOMMU's, so that their processes need no privilege; true when left out.
   * Otherwise they are physical ones.
   */
  readonly iommuPlatform?: boolean;
  /** 2 MiB pages set aside at boot, for physical addresses; none when left out. */
  readonly hugePages?: number;
  readonly drive?: Drive | undefined;
}

interface DriverVmOptions extends MachineOptions {
  /** The vfio-user server's socket, which must be listening; without it the VM has no such device. */
  readonly vfioUserSocket?: string;
  /** Whether the firmware boots from it. */
  readonly bootsFromIt?: boolean;
  /** An IOMMU, in which Linux maps the data of each request, and unmaps it before the request is done. */
  readonly iommu?: Iommu | undefined;
  /** More of QEMU's arguments. */
  readonly more?: readonly string[];
  /** More for -m, behind the size: ",slots=2,maxmem=4G". */
  readonly memoryOptions?: string;
}

/**
 * Those with which Linux maps and unmaps at once ("strict"), and QEMU hears of both; virtio's has addresses right below
 * 2^64.
 */
export type Iommu = "intel" | "virtio";
const IOMMUS: Readonly<Record<Iommu, { readonly device: readonly string[]; readonly append: string }>> = {
  intel: { device: ["-device", "intel-iommu,caching-mode=on"], append: "intel_iommu=on iommu.strict=1" },
  virtio: { device: ["-device", "virtio-iommu-pci,aw-bits=64"], append: "iommu.forcedac=1 iommu.strict=1" },
};

/** The QMP id of each VM's device under test (for device_del), and of its root port (for device_add). */
export const DEVICE_ID = "device0";
const ROOT_PORT_ID = "port0";

export function deviceVmArguments(options: DeviceVmOptions): string[] {
  const { vhostUserSocket, moreVhostUserSockets = [], drive } = options;
  const { queues = 4, virtioId = 39, configSize = 256, hugePages = 0, iommuPlatform = true } = options;
  const reserved = hugePages > 0 ? ` hugepages=${hugePages}` : "";
  const append = `intel_iommu=on${reserved} ${options.append ?? ""}`;
  const args = machineArguments({ ...options, append }, ["-device", "intel-iommu"]);
  if (drive !== undefined) {
    const sizes = `logical_block_size=${drive.sector},physical_block_size=${drive.sector}`;
    args.push("-drive", `file=${escapeCommas(drive.file)},format=raw,if=none,id=drive,discard=unmap`);
    args.push("-device", `virtio-blk-pci,drive=drive,${sizes}`);
  }
  const sockets = vhostUserSocket === undefined ? [] : [vhostUserSocket, ...moreVhostUserSockets];
  sockets.forEach((socket, n) => {
    if (n > 0) args.push("-device", rootPort(n));
    args.push("-chardev", `socket,id=vhost${n},path=${escapeCommas(socket)}`);
    const device = vhostUserDevice(virtioId, queues, configSize, n);
    args.push("-device", JSON.stringify({ ...device, iommu_platform: iommuPlatform }));
  });
  return args;
}

/** The device VM's n-th device as QMP's device_add and -device take it. */
function vhostUserDevice(virtioId: number, queues: number, configSize: number, n = 0): Record<string, unknown> {
  return {
    driver: "vhost-user-test-device-pci",
    id: `device${n}`,
    bus: `port${n}`,
    chardev: `vhost${n}`,
    "virtio-id": virtioId,
    num_vqs: queues,
    config_size: configSize,
  };
}

/** The n-th root port; what is behind it has the PCI address 0000:(n + 1):00.0. */
function rootPort(n: number): string {
  return `pcie-root-port,id=port${n},bus=pcie.0,chassis=${n + 1},addr=${n + 5}`;
}

export function driverVmArguments(options: DriverVmOptions): string[] {
  const { vfioUserSocket, bootsFromIt = false, iommu, more = [], memoryOptions } = options;
  const { device: early, append } = iommu === undefined ? { device: [], append: "" } : IOMMUS[iommu];
  const machine = { ...options, append: `${options.append ?? ""} ${append}` };
  const args = [...machineArguments(machine, early, memoryOptions), ...more];
  if (vfioUserSocket !== undefined) {
    const device = vfioUserDevice(vfioUserSocket);
    args.push("-device", JSON.stringify(bootsFromIt ? { ...device, bootindex: 0 } : device));
  }
  return args;
}

/** The driver VM's device as QMP's device_add and -device take it. */
export function vfioUserDevice(path: string): Record<string, unknown> {
  return { driver: "vfio-user-pci", id: DEVICE_ID, bus: ROOT_PORT_ID, socket: { type: "unix", path } };
}

/** `early` goes in front of all other devices, where QEMU wants an IOMMU. */
function machineArguments(options: MachineOptions, early: readonly string[], memoryOptions = ""): string[] {
  const { kernel, initrd, memoryMiB, append = "", cpus = 1, reboots = false } = options;
  const { memoryBackend = "memory-backend-memfd,share=on" } = options;
  // When an emulated timer is late, on a busy machine, Linux takes it for broken and panics, unless it does not look.
  const commandLine = `console=ttyS0 quiet panic=-1 no_timer_check ${append}`.trim();
  const kvm = accelerator() === "kvm";
  return [
    ...["-accel", kvm ? "kvm" : "tcg", ...(kvm ? ["-cpu", "host"] : [])],
    ...["-object", `${memoryBackend},id=mem,size=${memoryMiB}M`],
    // Under KVM the IOMMU's interrupt remapping needs the split interrupt controller.
    ...[
      "-machine",
      `q35,memory-backend=mem${kvm ? ",kernel-irqchip=split" : ""}`,
      "-m",
      `${memoryMiB}M${memoryOptions}`,
      "-smp",
      `${cpus}`,
    ],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...(reboots ? [] : ["-no-reboot"]),
    ...["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
    ...(kernel === undefined ? [] : ["-kernel", kernel, "-append", commandLine]),
    ...(initrd === undefined ? [] : ["-initrd", initrd]),
    ...early,
    ...["-device", rootPort(0)],
  ];
}

/** In QEMU's key=value options a comma in a value is written twice. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}
