/**
 * `plug` and `unplug`: a device is added to a running VM and taken away again, by the VM's QMP socket
 * (docs/interop/qmp-spec.rst), in the order that stock QEMU survives.
 *
 * - A driver VM: device_add of vfio-user-pci. device_del of one that has MSI-X aborts QEMU 11, which takes the
 *   function's BARs apart before its MSI-X table; QMP does not say what has, so each is refused.
 * - A device VM: chardev-add, device_add of vhost-user-test-device-pci; then device_del, DEVICE_DELETED, which the
 *   guest allows when no process has the device open, and chardev-remove, with which QEMU closes the socket.
 *
 * Left out: VMs of libvirt, which has their QMP for itself (virsh qemu-monitor-command), and devices behind a bus that
 * has no hot-plug.
 */
import { createConnection } from "node:net";
import type { Given } from "../../shared/command-line/parse.js";
import type { CommandRow, OptionRow } from "../../shared/command-line/table.js";
import { startDeadline } from "../../shared/deadline.js";
import { UserError } from "../../shared/errors.js";
import { checkSocketPath } from "../../shared/listener.js";
import { QmpClient } from "../../shared/qmp.js";

const QMP: OptionRow = { name: "qmp", value: "PATH", summary: "the VM's QMP socket (-qmp unix:PATH,server=on)" };

export const PLUG: CommandRow = {
  name: "plug",
  summary: "add a device to a running VM, by QMP: to a driver VM or to a device VM, as the socket's option says",
  options: [
    { ...QMP, required: true },
    { name: "socket-path", value: "PATH", summary: "to a driver VM: the bridge's or the device's vfio-user socket" },
    { name: "vhost-user-socket-path", value: "PATH", summary: "to a device VM: the bridge's vhost-user socket" },
    { name: "id", value: "NAME", summary: "the device's name in QEMU (default: vfio-user)" },
    { name: "bus", value: "NAME", summary: "a PCI Express root port (default: the first that has nothing behind it)" },
    { name: "queues", value: "N", summary: "queues of a device VM's device: 6 more than the NVMe's (default: 22)" },
    { name: "physical", summary: "a device VM without an IOMMU: its process is root, and has huge pages" },
  ],
};

export const UNPLUG: CommandRow = {
  name: "unplug",
  summary: "take a device away from a running VM, by QMP; from a driver VM only with --force",
  options: [
    { ...QMP, required: true },
    { name: "id", value: "NAME", summary: "the device's name in QEMU (default: vfio-user)" },
    { name: "force", summary: "also from a driver VM: QEMU 11 aborts, and the VM with it, if the device has MSI-X" },
    { name: "timeout", value: "SECONDS", summary: "how long the guest may take to let it go (default: 30)" },
  ],
};

const DRIVER_VM_DEVICE = "vfio-user-pci";
const DEVICE_VM_DEVICE = "vhost-user-test-device-pci";
/** A VIRTIO device id that QEMU has a name for and no Linux driver claims, and the bytes of its configuration. */
const [VIRTIO_ID, CONFIG_SIZE] = [39, 80];
const BRIDGE_CLASS = 0x0604;
/** QEMU greets at once. A device_add takes as long as the server of the device does, 5 s a message. */
const GREETING_MS = 5_000;
const COMMANDS_MS = 60_000;
const MAX_TIMEOUT_S = 3600;

interface PciDevice {
  readonly qdev_id: string;
  readonly class_info: { readonly class: number };
  readonly pci_bridge?: { readonly devices?: readonly PciDevice[] };
}

/** Does either; gives what to say. @throws UserError */
export async function plugOrUnplug(command: CommandRow, given: Given): Promise<string> {
  const path = given.value("qmp") ?? "";
  const id = given.value("id") ?? "vfio-user";
  if (path === "") throw wrong(`${command.name} needs --qmp PATH`);
  if (!/^[a-z][\w.-]*$/i.test(id))
    throw wrong(`--id ${id}: it must begin with a letter, and be made of letters, digits, dots, dashes`);
  const timeout = Number(given.value("timeout") ?? 30);
  if (!(timeout > 0 && timeout <= MAX_TIMEOUT_S)) {
    throw wrong(`--timeout ${given.value("timeout")}: it must be a number from 1 to ${MAX_TIMEOUT_S}`);
  }
  const qmp = await connect(path);
  let isLate = false;
  const late = () => {
    isLate = true;
    qmp.close();
  };
  let stop = startDeadline(GREETING_MS, late);
  try {
    await qmp.execute("query-status");
    stop();
    stop = startDeadline(timeout * 1000 + COMMANDS_MS, late);
    return command.name === PLUG.name ? await plug(qmp, given, id) : await unplug(qmp, id, given.has("force"), timeout);
  } catch (error) {
    if (error instanceof UserError) throw error;
    if (isLate)
      throw new UserError(`${path} does not answer: it is no QMP socket, another client has it, or QEMU stands still`);
    throw new UserError(`${command.name}: ${(error as Error).message}`, 1, { cause: error });
  } finally {
    stop();
    qmp.close();
  }
}

async function connect(path: string): Promise<QmpClient> {
  checkSocketPath(path);
  const socket = createConnection(path);
  try {
    await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  } catch (error) {
    throw new UserError(
      `nobody answers at ${path} (${(error as NodeJS.ErrnoException).code}): is it the VM's QMP socket?`,
    );
  }
  return new QmpClient(socket, path);
}

async function plug(qmp: QmpClient, given: Given, id: string): Promise<string> {
  const vfioUser = given.value("socket-path");
  const vhostUser = given.value("vhost-user-socket-path");
  if ((vfioUser === undefined) === (vhostUser === undefined)) {
    throw wrong("plug needs --socket-path, for a driver VM, or --vhost-user-socket-path, for a device VM");
  }
  checkSocketPath(vfioUser ?? vhostUser ?? "");
  const queues = Number(given.value("queues") ?? 22);
  if (!Number.isInteger(queues) || queues < 4 || queues > 1024) {
    throw wrong(`--queues ${given.value("queues")}: it must be a number from 4 to 1024`);
  }
  const isShared = await hasSharedMemory(qmp);
  if (vhostUser !== undefined && !isShared) {
    throw new UserError("the VM's memory is not shared: start it with memory-backend-memfd,share=on");
  }
  const bus = given.value("bus") ?? (await freeRootPort(qmp));
  if (vfioUser !== undefined) {
    await qmp.execute("device_add", { driver: DRIVER_VM_DEVICE, id, bus, socket: { type: "unix", path: vfioUser } });
    const slow = isShared ? "" : "; its memory is not shared, so all data goes by messages, slowly";
    return `${id} is in the driver VM, behind ${bus}${slow}\n`;
  }
  const chardev = chardevOf(id);
  const data = { addr: { type: "unix", data: { path: vhostUser } }, server: false };
  await qmp.execute("chardev-add", { id: chardev, backend: { type: "socket", data } });
  try {
    const own = { "virtio-id": VIRTIO_ID, num_vqs: queues, config_size: CONFIG_SIZE };
    const iommu_platform = !given.has("physical");
    await qmp.execute("device_add", { driver: DEVICE_VM_DEVICE, id, bus, chardev, iommu_platform, ...own });
  } catch (error) {
    await qmp.execute("chardev-remove", { id: chardev }).catch(() => {});
    throw error;
  }
  return `${id} is in the device VM, behind ${bus}\n`;
}

async function unplug(qmp: QmpClient, id: string, isForced: boolean, seconds: number): Promise<string> {
  let type: unknown;
  try {
    type = await qmp.execute("qom-get", { path: `/machine/peripheral/${id}`, property: "type" });
  } catch {
    throw new UserError(`the VM has no device ${id}: give its name by --id`);
  }
  if (type !== DRIVER_VM_DEVICE && type !== DEVICE_VM_DEVICE) {
    throw new UserError(`${id} is a ${String(type)}, and neither ${DRIVER_VM_DEVICE} nor ${DEVICE_VM_DEVICE}`);
  }
  if (type === DRIVER_VM_DEVICE && !isForced) {
    throw new UserError(
      `QEMU 11 aborts, and the VM with it, when a ${DRIVER_VM_DEVICE} device with MSI-X is taken away: shut the VM ` +
        "down, or have it done all the same by --force",
    );
  }
  // Read before it is gone; another's name, if it was not plugged in by this program.
  const chardev = type === DEVICE_VM_DEVICE ? await chardevBehind(qmp, id) : undefined;
  const deleted = qmp.waitForEvent("DEVICE_DELETED", seconds * 1000, (data) => data.device === id);
  deleted.catch(() => {}); // awaited below
  try {
    await qmp.execute("device_del", { id });
  } catch (error) {
    // Asked for already, by somebody who did not wait.
    if (!/already in the process of unplug/.test((error as Error).message)) throw error;
  }
  try {
    await deleted;
  } catch (error) {
    if (!/no event/.test((error as Error).message)) throw error;
    const who = type === DEVICE_VM_DEVICE ? "vfio-user-device has to end there first" : "it runs, and has to allow it";
    throw new UserError(`the guest has not let ${id} go within ${seconds} s: ${who}; QEMU goes on asking for it`);
  }
  if (chardev !== undefined) await qmp.execute("chardev-remove", { id: chardev });
  return `${id} is gone\n`;
}

const chardevOf = (id: string) => `${id}-socket`;

/** The chardev of a device VM's device, below VIRTIO's own object. */
async function chardevBehind(qmp: QmpClient, id: string): Promise<string> {
  try {
    const path = `/machine/peripheral/${id}/virtio-backend`;
    const name = await qmp.execute("qom-get", { path, property: "chardev" });
    return typeof name === "string" && name !== "" ? name : chardevOf(id);
  } catch {
    return chardevOf(id);
  }
}

async function hasSharedMemory(qmp: QmpClient): Promise<boolean> {
  const memory = (await qmp.execute("query-memdev")) as readonly { readonly share?: boolean }[];
  return memory.length > 0 && memory.every(({ share }) => share === true);
}

/** The first root port without a device: a bridge that somebody gave a name. @throws UserError */
async function freeRootPort(qmp: QmpClient): Promise<string> {
  const buses = (await qmp.execute("query-pci")) as readonly { readonly devices: readonly PciDevice[] }[];
  const bridges = buses.flatMap(({ devices }) => devices).filter((each) => each.class_info.class === BRIDGE_CLASS);
  for (const { qdev_id, pci_bridge } of bridges) {
    if (qdev_id === "" || (pci_bridge?.devices ?? []).length > 0) continue;
    const type = await qmp
      .execute("qom-get", { path: `/machine/peripheral/${qdev_id}`, property: "type" })
      .catch(() => "");
    if (type === "pcie-root-port") return qdev_id;
  }
  throw new UserError(
    "the VM has no free root port: start it with -device pcie-root-port,id=NAME,bus=pcie.0,chassis=N for each device " +
      "that is to come",
  );
}

function wrong(message: string): UserError {
  return new UserError(`${message}; see vfio-user-ctl --help`, 2);
}
