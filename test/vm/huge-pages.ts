/** Huge pages of this machine for a test's VMs: reserved when it needs them, and given back when it ends. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";

export type HugePageSize = "2M" | "1G";

const KIB: Readonly<Record<HugePageSize, number>> = { "2M": 2048, "1G": 1024 * 1024 };

/** Whether `count` more pages are there from now to the test's end: memory may be too scattered for large ones. */
export function reserveHugePages(t: ExecutionContext, size: HugePageSize, count: number): boolean {
  const folder = `/sys/kernel/mm/hugepages/hugepages-${KIB[size]}kB`;
  const read = (name: string) => Number(readFileSync(join(folder, name), "utf8"));
  const before = read("nr_hugepages");
  const free = read("free_hugepages");
  writeFileSync(join(folder, "nr_hugepages"), String(before + count));
  t.teardown(() => writeFileSync(join(folder, "nr_hugepages"), String(before)));
  return read("free_hugepages") >= free + count;
}

/** A folder whose files are of huge pages. */
export function hugeFolder(t: ExecutionContext, size: HugePageSize): string {
  const folder = mkdtempSync(join(tmpdir(), "huge-pages-"));
  execFileSync("mount", ["-t", "hugetlbfs", "-o", `pagesize=${size}`, "none", folder]);
  t.teardown(() => {
    execFileSync("umount", [folder]);
    rmSync(folder, { recursive: true });
  });
  return folder;
}
