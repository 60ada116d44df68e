/**
 * Gives a PCI function to the driver vfio-pci, by sysfs (Linux, Documentation/ABI/testing/sysfs-bus-pci). It stays
 * there when the process ends.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { UserError } from "../../shared/errors.js";
import { PCI_VENDOR_ID } from "../../shared/spec/virtio.js";

const DRIVER = "vfio-pci";
const MODULES = ["vfio-pci", "vfio_iommu_type1"];

/** Where Linux shows these things; something else in tests. */
export interface Roots {
  readonly sysfs: string;
  readonly devices: string;
  /** Loads a module; whether that worked is seen by what it makes. */
  loadModule(name: string): void;
}

const LINUX: Roots = {
  sysfs: "/sys/bus/pci",
  devices: "/dev/vfio",
  loadModule: (name) => void spawnSync("modprobe", ["-q", name], { stdio: "ignore" }),
};

/**
 * Binds the function at `address` to vfio-pci. Returns the number of its IOMMU group.
 * @throws UserError that says what is missing; nothing was changed then, but where the last step failed
 */
export function bindToVfio(address: string, roots: Roots = LINUX): string {
  const bus = roots.sysfs;
  const device = join(bus, "devices", address);
  if (!existsSync(device)) {
    throw new UserError(`there is no PCI device ${address}: see "ls ${join(bus, "devices")}" for those that are there`);
  }
  // Another's device is left alone: opening it by VFIO would take it from its driver.
  if (Number(readFileSync(join(device, "vendor"), "utf8")) !== PCI_VENDOR_ID) {
    throw new UserError(`${address} is no virtio-vfio-user device: its vendor is not 0x${PCI_VENDOR_ID.toString(16)}`);
  }
  const driver = driverOf(device);
  for (const name of MODULES) {
    if (!existsSync(join(roots.devices, "vfio")) || !existsSync(join(bus, "drivers", DRIVER))) roots.loadModule(name);
  }
  if (!existsSync(join(bus, "drivers", DRIVER))) {
    throw new UserError('the driver vfio-pci is not there: load the module with "modprobe vfio-pci"');
  }
  if (!existsSync(join(roots.devices, "vfio"))) {
    throw new UserError(
      `${join(roots.devices, "vfio")} is not there: load the module with "modprobe vfio_iommu_type1"`,
    );
  }
  const group = iommuGroup(device, address);
  if (driver === DRIVER) return group;
  try {
    writeFileSync(join(device, "driver_override"), DRIVER);
    if (driver !== undefined) writeFileSync(join(device, "driver", "unbind"), address);
    writeFileSync(join(bus, "drivers_probe"), address);
  } catch (error) {
    throw new UserError(
      `cannot give ${address} to vfio-pci: ${error instanceof Error ? error.message : error}; run as root`,
    );
  }
  if (driverOf(device) !== DRIVER) {
    throw new UserError(`vfio-pci does not take ${address}: the kernel's log ("dmesg") says why`);
  }
  return group;
}

function driverOf(device: string): string | undefined {
  const link = join(device, "driver");
  return existsSync(link) ? basename(readlinkSync(link)) : undefined;
}

function iommuGroup(device: string, address: string): string {
  const link = join(device, "iommu_group");
  if (!existsSync(link)) {
    throw new UserError(
      `${address} is in no IOMMU group: start the VM with "-device intel-iommu" and its kernel with "intel_iommu=on"`,
    );
  }
  return basename(readlinkSync(link));
}
