/** Verified I/O in a driver VM by a program of ours (programs/verified-io.c), and what it saw of pauses. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Entry } from "../../scripts/vm/cpio.js";
import { PROJECT_ROOT } from "../../scripts/vm/environment.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";

const END_MS = 5 * 60_000;

/** The program, for a driver VM's `entries`; it is compiled in `directory`. */
export async function verifiedIoEntry(directory: string): Promise<Entry> {
  const program = join(directory, "verified-io");
  const options = ["-static", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"];
  await promisify(execFile)("gcc", [...options, "-o", program, join(PROJECT_ROOT, "test/vm/programs/verified-io.c")]);
  return { path: "/bin/verified-io", data: await readFile(program), mode: 0o755 };
}

export interface VerifiedIo {
  /** Has it end; rejects when a block was wrong, or a request failed. Longest first, times in which none ended. */
  end(): Promise<{ readonly requests: number; readonly pausesMs: readonly number[] }>;
}

/** Begins on the first `sizeMiB` of the disk; it has begun when this resolves. */
export async function startVerifiedIo(vm: Vm, sizeMiB: number): Promise<VerifiedIo> {
  const run = `verified-io /dev/nvme0n1 ${sizeMiB} /tmp/stop >/tmp/verified 2>&1; echo $? >/tmp/status`;
  const begun = "[ $(awk '{ print $7 }' /sys/block/nvme0n1/stat) -gt $((written + 1024)) ] || [ -e /tmp/status ]";
  const written = "rm -f /tmp/stop /tmp/status; written=$(awk '{ print $7 }' /sys/block/nvme0n1/stat)";
  await vm.check(`${written}; { ${run}; } & until ${begun}; do sleep 0.1; done`, COMMAND_MS);
  return {
    async end() {
      const status = "touch /tmp/stop; until [ -e /tmp/status ]; do sleep 0.1; done; cat /tmp/verified";
      const text = await vm.check(`${status}; [ $(cat /tmp/status) = 0 ] || { dmesg | tail -n 20; false; }`, END_MS);
      const [, requests, pauses] = /^requests (\d+), pauses(.*)$/m.exec(text) ?? [];
      return { requests: Number(requests), pausesMs: pauses.split(" ").filter(Boolean).map(Number) };
    },
  };
}
