import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { bindToVfio, type Roots } from "../../../guest/vfio/bind.js";

const ADDRESS = "0000:01:00.0";

/** A sysfs with one device, as Linux shows it, and what is asked of it. */
function setUp(t: ExecutionContext, { driver = "virtio-pci", group = true, vendor = "0x1af4\n", vfio = true } = {}) {
  const root = mkdtempSync(join(tmpdir(), "sysfs-"));
  t.teardown(() => rmSync(root, { recursive: true }));
  const sysfs = join(root, "sys");
  const device = join(sysfs, "devices", ADDRESS);
  const loaded: string[] = [];
  const roots: Roots = { sysfs, devices: join(root, "vfio"), loadModule: (name) => void loaded.push(name) };
  mkdirSync(device, { recursive: true });
  mkdirSync(roots.devices);
  writeFileSync(join(device, "vendor"), vendor);
  for (const name of ["virtio-pci", ...(vfio ? ["vfio-pci"] : [])])
    mkdirSync(join(sysfs, "drivers", name), { recursive: true });
  if (vfio) writeFileSync(join(roots.devices, "vfio"), "");
  mkdirSync(join(root, "groups", "7"), { recursive: true });
  if (group) symlinkSync(join(root, "groups", "7"), join(device, "iommu_group"));
  if (driver !== "") symlinkSync(join(sysfs, "drivers", driver), join(device, "driver"));
  const written = (...path: string[]) => readFileSync(join(sysfs, ...path), "utf8");
  return { roots, loaded, written };
}

test("a device that vfio-pci has already: its group, and nothing is written", (t) => {
  const { roots, written } = setUp(t, { driver: "vfio-pci" });
  t.is(bindToVfio(ADDRESS, roots), "7");
  t.throws(() => written("drivers_probe"), { code: "ENOENT" });
});

test("another driver's device is unbound and offered to vfio-pci", (t) => {
  const { roots, written } = setUp(t);
  // This sysfs does nothing about it, as a kernel does when the driver refuses.
  t.throws(() => bindToVfio(ADDRESS, roots), { name: "UserError", message: /vfio-pci does not take/ });
  t.is(written("devices", ADDRESS, "driver_override"), "vfio-pci");
  t.is(written("drivers", "virtio-pci", "unbind"), ADDRESS);
  t.is(written("drivers_probe"), ADDRESS);
});

test("what is missing is said, and nothing is changed before", (t) => {
  const refused = (message: RegExp, machine: ReturnType<typeof setUp>, address = ADDRESS) => {
    t.throws(() => bindToVfio(address, machine.roots), { name: "UserError", message });
    t.throws(() => machine.written("devices", ADDRESS, "driver_override"), { code: "ENOENT" });
  };
  refused(/there is no PCI device 0000:02:00.0/, setUp(t), "0000:02:00.0");
  refused(/no virtio-vfio-user device/, setUp(t, { vendor: "0x8086\n" }));
  refused(/in no IOMMU group.*intel_iommu=on/, setUp(t, { group: false }));
  const without = setUp(t, { vfio: false });
  refused(/modprobe vfio-pci/, without);
  t.deepEqual(without.loaded, ["vfio-pci", "vfio_iommu_type1"]);
});
