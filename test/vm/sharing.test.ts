/**
 * BAR memory that a driver VM maps from the device: stock QEMU puts it into the VM, and accesses to it cost no message.
 * The device runs in this process, whose link counts the messages.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import anyTest, { type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { CommandBits } from "../../shared/spec/pci.js";
import { EVENTS, Events, FIRST, PREPARED, Registers, SECOND, SharingDevice, WHOLE } from "../fakes/sharing-device.js";
import { type LocalDevice, startLocalDevice } from "./local-device.js";

const FUNCTION = "01:00.0";
const SYSFS = `/sys/bus/pci/devices/0000:${FUNCTION}`;

interface Context {
  directory: string;
  device: SharingDevice;
  local: LocalDevice;
  /** Where the VM has BAR 0 and BAR 2. */
  bars: number[];
}
const test = anyTest as TestFn<Context>;

test.before(async (t) => {
  t.timeout(20 * 60_000);
  t.context.directory = await mkdtemp(join(tmpdir(), "vfio-user-sharing-"));
  t.context.device = new SharingDevice();
  t.context.local = await startLocalDevice(t.context.device, t.context.directory);
  const { vm } = t.context.local;
  await vm.check(`setpci -s ${FUNCTION} COMMAND=${CommandBits.MEMORY}:${CommandBits.MEMORY}`, COMMAND_MS);
  const resources = (await vm.check(`cat ${SYSFS}/resource`, COMMAND_MS)).split("\n");
  t.context.bars = [0, 2].map((bar) => Number(resources[bar].split(" ")[0]));
});

test.after.always(async (t) => {
  const { local, directory } = t.context;
  await local?.stop();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

/** One access of the VM's CPU to physical memory, 8 to 64 bits wide. */
async function devmem(vm: Vm, address: number, width: number, value?: number): Promise<number> {
  const written = value === undefined ? "" : ` 0x${value.toString(16)}`;
  return Number(await vm.check(`devmem 0x${address.toString(16)} ${width}${written}`, COMMAND_MS));
}

test.serial("the VM's accesses to shared parts reach the memory, and cost no message", async (t) => {
  t.timeout(20 * COMMAND_MS);
  const { device, local, bars } = t.context;
  const { vm, link } = local;
  const [bar0, bar2] = bars;
  t.true(bar0 > 0 && bar2 > 0);
  const before = link.accesses;
  const first = bar0 + FIRST.offset;
  await devmem(vm, first, 32, 0xcafe1234);
  t.is(Buffer.from(device.shared(0)).readUInt32LE(0), 0xcafe1234);
  t.is(await devmem(vm, first, 32), 0xcafe1234);
  t.is(await devmem(vm, bar0 + SECOND.offset, 8), PREPARED);
  device.shared(0)[FIRST.size - 1] = 0x77;
  t.is(await devmem(vm, first + FIRST.size - 1, 8), 0x77);
  await devmem(vm, bar2 + WHOLE - 2, 16, 0xbeef);
  t.is(Buffer.from(device.shared(2)).readUInt16LE(WHOLE - 2), 0xbeef);
  t.is(link.accesses, before);
  // The rest of the BAR is registers, as ever.
  t.is(await devmem(vm, bar0 + Registers.READ_SHARED, 32), 0xcafe1234);
  await devmem(vm, bar0 + Registers.WRITE_SHARED, 32, 0x55);
  t.is(link.accesses, before + 2);
  t.is(await devmem(vm, first, 32), 0x55);
  t.is(link.accesses, before + 2);
});

test.serial("a write that an ioeventfd stands for reaches the device as such, though QEMU asks for none", async (t) => {
  t.timeout(10 * COMMAND_MS);
  const { device, local, bars } = t.context;
  const { vm } = local;
  const { offset, datamatch } = EVENTS[Events.NINE];
  await devmem(vm, bars[0] + offset, 32, datamatch);
  await device.heard(1);
  t.deepEqual(device.events, [`0:${Events.NINE}=${datamatch}`]);
});

test.serial("the memory outlives a reset, and the BARs' being switched off and on", async (t) => {
  t.timeout(20 * COMMAND_MS);
  const { device, local, bars } = t.context;
  const { vm, link } = local;
  const first = bars[0] + FIRST.offset;
  await devmem(vm, first + 8, 32, 0x1234);
  device.shared(0, 1)[0] = 0;
  await vm.check(`echo flr >${SYSFS}/reset_method && echo 1 >${SYSFS}/reset`, COMMAND_MS);
  for (const value of [0, CommandBits.MEMORY]) {
    await vm.check(`setpci -s ${FUNCTION} COMMAND=${value}:${CommandBits.MEMORY}`, COMMAND_MS);
  }
  const before = link.accesses;
  t.is(await devmem(vm, first + 8, 32), 0x1234);
  t.is(await devmem(vm, bars[0] + SECOND.offset, 8), PREPARED, "by the device's reset");
  t.is(link.accesses, before);
});
