/**
 * fio in the driver VM: random mixed I/O whose every block says what and where it is (crc32c), at queue depths from 1
 * to 64.
 */
import anyTest, { type TestFn } from "ava";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";
import { kernelLog } from "../vm/kernel-log.js";
import { driverVmOf, type LongSetUp, startLong } from "./driver-vms.js";

const JOBS = 4;
const JOB_MIB = 8;
const FIO_MS = 5 * 60_000;

const test = anyTest as TestFn<LongSetUp>;

test.before(async (t) => {
  t.context = await startLong(t, JOBS * JOB_MIB);
});

test.after.always(async (t) => {
  await t.context.product?.stop();
});

interface Workload {
  readonly engine: "io_uring" | "libaio" | "psync";
  readonly rw: "randrw" | "randwrite";
  readonly depth: number;
  /** More of fio's options. */
  readonly more?: string;
}

/** Each job has a part of the disk to itself, so that nobody overwrites what another is to verify. */
function fio({ engine, rw, depth, more = "" }: Workload): string {
  const all = `--filename=/dev/nvme0n1 --direct=1 --ioengine=${engine} --rw=${rw} --bsrange=512-64k --iodepth=${depth}`;
  const verify = "--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0";
  const parts = Array.from({ length: JOBS }, (_, n) => `--name=job${n} --offset=${n * JOB_MIB}m --size=${JOB_MIB}m`);
  return `fio --output-format=json ${all} ${verify} ${more} ${parts.join(" ")} >/tmp/fio.json 2>/tmp/fio.err`;
}

const RESULT = `cat /tmp/fio.err; grep -o '"\\(error\\|total_ios\\|short_ios\\|drop_ios\\)" : [0-9]*' /tmp/fio.json`;

for (const depth of [1, 4, 16, 64]) {
  for (const engine of ["io_uring", "libaio"] as const) {
    test.serial(`${JOBS} jobs, queue depth ${depth}, ${engine}`, async (t) => {
      const { vm } = await driverVmOf(t);
      await vm.check(fio({ engine, rw: "randrw", depth, more: "--fsync=64" }), FIO_MS);
      const lines = (await vm.check(RESULT, COMMAND_MS)).split("\n");
      const values = (name: string) =>
        lines.filter((line) => line.startsWith(`"${name}"`)).map((line) => Number(line.split(" : ")[1]));
      t.deepEqual(values("error"), Array(JOBS).fill(0), lines.join("\n"));
      t.true(Math.max(...values("total_ios")) > JOB_MIB * 16);
      t.true([...values("short_ios"), ...values("drop_ios")].every((count) => count === 0));
      t.notRegex(await kernelLog(vm), /nvme.*(error|timeout|abort)/i);
      t.context.product.assertHealthy(t);
    });
  }
}

test.serial("what one driver VM wrote, the next one verifies", async (t) => {
  const workload = { engine: "io_uring", rw: "randwrite", depth: 16 } as const;
  const first = (await driverVmOf(t)).vm;
  await first.check(fio({ ...workload, more: "--do_verify=0 --end_fsync=1" }), FIO_MS);
  await first.kill();
  const { vm } = await driverVmOf(t);
  await vm.check(fio({ ...workload, more: "--verify_only" }), FIO_MS);
  // And a verification that can fail does.
  await vm.check("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k seek=200 count=1 oflag=direct 2>/dev/null", COMMAND_MS);
  const { status } = await vm.run(fio({ ...workload, more: "--verify_only" }), FIO_MS);
  t.not(status, 0);
  t.regex(await vm.check("cat /tmp/fio.err /tmp/fio.json", COMMAND_MS), /verify|crc32c/);
  t.context.product.assertHealthy(t);
});
