/** The bridge is killed again and again under real VMs, at moments that a seed chooses. */
import { setTimeout as delay } from "node:timers/promises";
import type { ExecutionContext } from "ava";
import { BOOT_MS } from "../../scripts/vm/two-vms.js";
import type { Random } from "../guest/devices/nvme/random.js";
import type { Product } from "./product.js";

/** What a kernel whose device was not there for too long would say. */
export const COMPLAINT =
  /I\/O error|(nvme|vfio|virtio).*(error|timeout|not ready|abort|reset|fail)|Disabling device|hung|Call Trace/i;

/** Kills the bridge `count` times, each at a moment `least` to `most` milliseconds after the last one served. */
export async function killAgainAndAgain(
  t: ExecutionContext,
  { bridge }: Product,
  random: Random,
  { count, least, most }: { count: number; least: number; most: number },
): Promise<void> {
  for (let n = 0; n < count; n++) {
    await delay(least + random.below(most - least));
    const { supervisedPid } = bridge;
    if (supervisedPid === undefined) throw new Error("there is no bridge to kill");
    const from = bridge.lines.length;
    process.kill(supervisedPid, "SIGKILL");
    await bridge.waitForLog(({ msg }) => msg === "serving", BOOT_MS, from);
    t.true(bridge.alive);
  }
}
