/** I/O in the background of a driver VM by fio, which verifies every block that it wrote. */
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";

/** How long it may take to an end, whatever stood still meanwhile. */
const END_MS = 10 * 60_000;
const SECTORS_WRITTEN = "awk '{ print $7 }' /sys/block/nvme0n1/stat";

export interface VerifiedIo {
  /** Throws if it has ended before its time, with what fio and the kernel said. */
  stillRuns(): Promise<void>;
  /** Waits for its end; throws if it failed. */
  end(): Promise<void>;
}

/**
 * For `seconds`, on the disk's MiB from `offsetMiB` on; it has begun when this returns. `more` are more of fio's
 * options.
 */
export async function startVerifiedIo(
  vm: Vm,
  {
    seconds,
    offsetMiB = 0,
    sizeMiB,
    more = "",
  }: { seconds: number; offsetMiB?: number; sizeMiB: number; more?: string },
): Promise<VerifiedIo> {
  const job = "--name=job --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw";
  const verify = "--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --time_based";
  const where = `--bsrange=512-64k --offset=${offsetMiB}m --size=${sizeMiB}m --runtime=${seconds}`;
  const run = `fio ${job} ${verify} ${where} ${more} >/tmp/fio.out 2>&1; echo $? >/tmp/status`;
  const fio = `rm -f /tmp/status; { ${run}; } &`;
  const begun = `[ $(${SECTORS_WRITTEN}) -gt $((written + 4096)) ] || [ -e /tmp/status ]`;
  await vm.check(`written=$(${SECTORS_WRITTEN}); ${fio} until ${begun}; do sleep 0.1; done`, COMMAND_MS);
  const said = "tail -n 20 /tmp/fio.out; dmesg | tail -n 20";
  return {
    async stillRuns() {
      await vm.check(`[ ! -e /tmp/status ] || { cat /tmp/status; ${said}; false; }`, COMMAND_MS);
    },
    async end() {
      const status = "until [ -e /tmp/status ]; do sleep 0.5; done; [ $(cat /tmp/status) = 0 ]";
      await vm.check(`${status} || { cat /tmp/status; ${said}; false; }`, END_MS);
    },
  };
}
