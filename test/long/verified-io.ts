/** I/O in the background of a driver VM by fio, which verifies every block that it wrote. */
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";

/** How long it may take to an end, whatever stood still meanwhile. */
const END_MS = 10 * 60_000;
const SECTORS_WRITTEN = "awk '{ print $7 }' /sys/block/nvme0n1/stat";
const SAID = "tail -n 20 /tmp/fio.out; dmesg | tail -n 20";
const FAILED = `{ cat /tmp/status; ${SAID}; false; }`;

export interface VerifiedIo {
  /** Throws if it has ended before its time, with what fio and the kernel said. */
  stillRuns(): Promise<void>;
  /** Waits until so many passes over the whole range have been written and verified. */
  passes(count: number): Promise<void>;
  /** Lets the pass that is in flight come to its end, and throws if one failed. */
  end(): Promise<void>;
}

/**
 * Passes over the disk's MiB from `offsetMiB` on, each with other data, until `end`: nothing depends on how fast they
 * are. The first has begun when this returns. `more` are more of fio's options.
 */
export async function startVerifiedIo(
  vm: Vm,
  { offsetMiB = 0, sizeMiB, more = "" }: { offsetMiB?: number; sizeMiB: number; more?: string },
): Promise<VerifiedIo> {
  const job = "--name=job --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw";
  const verify = "--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0";
  const where = `--bsrange=512-64k --offset=${offsetMiB}m --size=${sizeMiB}m`;
  // Without a seed of its own each pass would write the very same bytes, and verify those of the one before.
  const pass = `fio ${job} ${verify} ${where} ${more} --randseed=$n >/tmp/fio.out 2>&1`;
  const loop = `n=1; while ${pass}; do echo $n >/tmp/passes; n=$((n+1)); [ ! -e /tmp/enough ] || exit 0; done; exit 1`;
  const fio = `rm -f /tmp/status /tmp/enough /tmp/passes; { (${loop}); echo $? >/tmp/status; } &`;
  const begun = `[ $(${SECTORS_WRITTEN}) -gt $((written + 4096)) ] || [ -e /tmp/status ]`;
  await vm.check(`written=$(${SECTORS_WRITTEN}); ${fio} until ${begun}; do sleep 0.1; done`, COMMAND_MS);
  return {
    async stillRuns() {
      await vm.check(`[ ! -e /tmp/status ] || ${FAILED}`, COMMAND_MS);
    },
    async passes(count) {
      const enough = `[ -e /tmp/passes ] && [ $(cat /tmp/passes) -ge ${count} ]`;
      await vm.check(`until ${enough}; do [ ! -e /tmp/status ] || ${FAILED} || exit 1; sleep 0.5; done`, END_MS);
    },
    async end() {
      const status = "touch /tmp/enough; until [ -e /tmp/status ]; do sleep 0.5; done; [ $(cat /tmp/status) = 0 ]";
      await vm.check(`${status} || ${FAILED}`, END_MS);
    },
  };
}
