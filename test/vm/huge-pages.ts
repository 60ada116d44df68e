/** Huge pages of this machine for a test's VMs: reserved when it needs them, and given back when it ends. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";

export type HugePageSize = "2M" | "1G";

const KIB: Readonly<Record<HugePageSize, number>> = { "2M": 2048, "1G": 1024 * 1024 };

const folderOf = (size: HugePageSize) => `/sys/kernel/mm/hugepages/hugepages-${KIB[size]}kB`;
const read = (size: HugePageSize, name: string) => Number(readFileSync(join(folderOf(size), name), "utf8"));
const setPages = (size: HugePageSize, count: number) =>
  writeFileSync(join(folderOf(size), "nr_hugepages"), String(count));

/** Whether `count` more pages are there from now to the test's end: memory may be too scattered for large ones. */
export function reserveHugePages(t: ExecutionContext, size: HugePageSize, count: number): boolean {
  const before = read(size, "nr_hugepages");
  const free = read(size, "free_hugepages");
  setPages(size, before + count);
  t.teardown(() => setPages(size, before));
  return read(size, "free_hugepages") >= free + count;
}

/** Gives back to the machine what is free, and to huge pages again by the result. */
export function withoutFreePages(size: HugePageSize): () => void {
  const before = read(size, "nr_hugepages");
  setPages(size, before - read(size, "free_hugepages"));
  return () => setPages(size, before);
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
