/**
 * The bridge and a device VM whose disks are ready, for a test file's tests to share, and driver VMs that end with
 * their test.
 *
 * Tests that need less have local-device (a device in the test's process and a driver VM), device-process (the same as
 * a process of its own), or qtest (QEMU without a guest). What several tests do: affinity, viommu, hanging-disk,
 * huge-pages.
 */
import { mkdtemp, readdir, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import { BridgeProcess } from "../../scripts/vm/bridge-process.js";
import { prepareVmEnvironment, type VmEnvironment } from "../../scripts/vm/environment.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import * as vms from "../../scripts/vm/two-vms.js";

const MiB = 2 ** 20;

export interface ProductOptions {
  readonly diskMiB: number;
  /** One when left out; each has a socket, and a process in the device VM. */
  readonly disks?: number;
  /** What is on the first disk. */
  readonly image?: Buffer;
  /** Who the disks' processes run as; "user" when left out. */
  readonly user?: vms.DeviceUser;
  /** A block device of the device VM's own, /dev/vda there: its size, and that of its sectors in bytes. */
  readonly drive?: { readonly sizeMiB: number; readonly sector: number };
  /** The bridge has its supervisor. */
  readonly supervised?: boolean;
}

export class Product {
  private constructor(
    readonly environment: VmEnvironment,
    readonly directory: string,
    readonly bridge: BridgeProcess,
    readonly deviceVm: Vm,
  ) {}

  /**
   * Starts it all and waits for the disks. Whatever comes of it, nothing is left behind after `stop` or a rejection.
   */
  static async start({
    diskMiB,
    disks = 1,
    image,
    drive,
    user = "user",
    supervised = false,
  }: ProductOptions): Promise<Product> {
    const environment = await prepareVmEnvironment();
    const directory = await mkdtemp(join(tmpdir(), "vfio-user-vm-"));
    const bridge = new BridgeProcess(directory, disks, supervised ? ["--supervised"] : []);
    let product: Product | undefined;
    try {
      await bridge.listening();
      const [first, ...more] = bridge.sockets.map(({ vhostUser }) => vhostUser);
      const entries = image === undefined ? [] : [{ path: "/disk.img", data: image }];
      const file = join(directory, "drive.img");
      if (drive !== undefined) {
        await writeFile(file, "");
        await truncate(file, drive.sizeMiB * MiB);
      }
      const own = drive && { file, sector: drive.sector };
      const deviceVm = await vms.startDeviceVm(environment, directory, first, more, entries, own, user);
      product = new Product(environment, directory, bridge, deviceVm);
      await vms.booted(deviceVm);
      if (image !== undefined) await deviceVm.check(`mv /disk.img ${vms.disk(0).file}`, vms.COMMAND_MS);
      for (let n = 0; n < disks; n++) await vms.startNvme(deviceVm, diskMiB, "", vms.disk(n), user);
      return product;
    } catch (error) {
      if (product !== undefined) await product.stop();
      else {
        await bridge.stop();
        await rm(directory, { recursive: true });
      }
      throw error;
    }
  }

  async stop(): Promise<void> {
    await this.deviceVm.stop();
    await this.bridge.stop();
    await rm(this.directory, { recursive: true });
  }

  /** A driver VM that has the n-th disk and begins to boot; it ends with the test. */
  async switchOn(t: ExecutionContext, choices: vms.DriverVmChoices = {}, n = 0): Promise<Vm> {
    const { environment, directory, bridge } = this;
    const vm = await vms.startDriverVm(environment, directory, bridge.sockets[n].vfioUser, choices);
    t.teardown(() => vm.stop());
    return vm;
  }

  /** As `switchOn`, when it takes commands. */
  async driverVm(t: ExecutionContext, choices: vms.DriverVmChoices = {}, n = 0): Promise<Vm> {
    const vm = await this.switchOn(t, choices, n);
    await vms.booted(vm);
    return vm;
  }

  /** How many file descriptors the bridge and the first disk's process have, and the latter's DMA maps. */
  async openFiles(): Promise<{ bridge: number; device: number; maps: number }> {
    const device = await this.deviceVm.check(`ls /proc/$(cat ${vms.disk(0).pid})/fd | wc -l`, vms.COMMAND_MS);
    const bridge = (await readdir(`/proc/${this.bridge.pid}/fd`)).length;
    return { bridge, device: Number(device), maps: await vms.nvmeMaps(this.deviceVm) };
  }

  /** No process of the product died, and nobody complained of anybody. */
  assertHealthy(t: ExecutionContext): void {
    t.true(this.bridge.alive);
    t.notRegex(this.deviceVm.log, /\[qemu\]/);
    t.deepEqual(
      this.bridge.lines.filter((line) => Number(line.level) >= 40),
      [],
    );
  }
}
