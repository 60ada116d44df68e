/** Block devices that are real: loop devices over files of the test's own. Root can have them. */
import { execFileSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";

export interface LoopDevice {
  /** The device's path. */
  readonly path: string;
  /** Makes it larger or smaller, in bytes. */
  resize(size: number): void;
}

/** A directory that is gone when the test ends. */
export function directory(t: ExecutionContext): string {
  const name = fs.mkdtempSync(join(tmpdir(), "nvme-"));
  t.teardown(() => fs.rmSync(name, { recursive: true }));
  return name;
}

/** A device of `size` bytes in sectors of `sector` bytes, until the test ends. */
export function loopDevice(
  t: ExecutionContext,
  size: number,
  { sector = 512, readOnly = false }: { sector?: number; readOnly?: boolean } = {},
): LoopDevice {
  const file = join(directory(t), "backing");
  fs.writeFileSync(file, "");
  fs.truncateSync(file, size);
  const args = ["--find", "--show", "--sector-size", String(sector), ...(readOnly ? ["--read-only"] : []), file];
  const path = execFileSync("losetup", args, { encoding: "utf8" }).trim();
  t.teardown(() => execFileSync("losetup", ["--detach", path]));
  return {
    path,
    resize(bytes) {
      fs.truncateSync(file, bytes);
      execFileSync("losetup", ["--set-capacity", path]);
    },
  };
}
