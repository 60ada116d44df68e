/** Memory that comes and goes by virtio-mem, hundreds of maps at a time, under I/O whose every block is verified. */
import anyTest, { type TestFn } from "ava";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS, nvmeMapped } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

const DISK_MIB = 64;
const MAX_MIB = 512;
/** MiB that the VM is to have: grown, shrunk, and grown again, which wants what was unmapped to be gone. */
const SIZES = [MAX_MIB, 64, MAX_MIB, 0] as const;
const RESIZE_MS = 3 * 60_000;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, DISK_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

/** Asks for a size, and waits until the guest has it. */
async function resize(vm: Vm, mebibytes: number): Promise<void> {
  const size = mebibytes * 2 ** 20;
  await vm.qmp("qom-set", { path: "/machine/peripheral/vmem", property: "requested-size", value: size });
  const deadline = performance.now() + RESIZE_MS;
  for (;;) {
    const now = await vm.qmp("qom-get", { path: "/machine/peripheral/vmem", property: "size" });
    if (now === size) return;
    if (performance.now() > deadline) throw new Error(`the memory is ${now} bytes, not ${size}`);
    await vm.check("sleep 0.2", COMMAND_MS);
  }
}

test.serial("0 to 512, 64 and 512 MiB under fio with verification", async (t) => {
  t.timeout(20 * 60_000);
  const { product } = t.context;
  const { vm } = await driverVmOf(t, "trixie", {
    append: "memhp_default_state=online_movable",
    memoryOptions: ",slots=2,maxmem=4G",
    more: [
      ...["-object", `memory-backend-memfd,id=vmem0,size=${MAX_MIB}M,share=on`],
      ...["-device", "virtio-mem-pci,id=vmem,memdev=vmem0,requested-size=0"],
    ],
  });
  const before = await nvmeMapped(product.deviceVm);
  // Its buffers are in what is plugged: as much as fits in there, taken and given back again and again.
  const job =
    "--filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --rw=randrw --bsrange=4k-64k --iodepth=16 --size=48m";
  const verify = "--verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1";
  const fio = `fio --name=job ${job} ${verify} --randseed=$((n=n+1)) >>/tmp/fio.log 2>&1`;
  const loop = `n=0; while [ ! -e /tmp/enough ]; do ${fio} || { echo $? >/tmp/failed; break; }; done`;
  await vm.check(`{ ${loop}; echo >/tmp/ended; } &`, COMMAND_MS);
  for (const size of SIZES) {
    await resize(vm, size);
    t.is(await nvmeMapped(product.deviceVm), before + size * 2 ** 20, `${size} MiB`);
    await vm.check("[ ! -e /tmp/failed ] || { cat /tmp/fio.log; exit 1; }", COMMAND_MS);
  }
  await vm.check("touch /tmp/enough; until [ -e /tmp/ended ]; do sleep 0.2; done", RESIZE_MS);
  await vm.check("[ ! -e /tmp/failed ] || { cat /tmp/fio.log; exit 1; }", COMMAND_MS);
  t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)|I\/O error/i);
  t.notRegex(vm.log, /\[qemu\]/, "QEMU complains of nothing");
  t.true(product.bridge.alive);
});
