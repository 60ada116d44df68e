/** The product with a driver VM of any of the long tests' kernels, in which their tools are. */
import type { ExecutionContext } from "ava";
import { type Extras, prepareExtras } from "../../scripts/vm/environment.js";
import { extraDriverVmBase } from "../../scripts/vm/initramfs.js";
import type { Vm } from "../../scripts/vm/qemu.js";
import { type DriverVmChoices, waitForDisk } from "../../scripts/vm/two-vms.js";
import { Product } from "../vm/product.js";

/** The Debian suites whose kernels there are; "trixie" has the one of all other tests. */
export type Suite = "bookworm" | "trixie" | "trixie-backports";

export interface LongSetUp {
  readonly product: Product;
  readonly extras: Extras;
}

export async function startLong(t: ExecutionContext, diskMiB: number): Promise<LongSetUp> {
  t.timeout(30 * 60_000);
  const extras = await prepareExtras();
  return { extras, product: await Product.start({ diskMiB }) };
}

/** A driver VM with two CPUs, and so with two queue pairs, whose kernel has found the disk; it ends with the test. */
export async function driverVmOf(
  t: ExecutionContext<LongSetUp>,
  suite: Suite = "trixie",
  choices: DriverVmChoices = {},
): Promise<{ vm: Vm; kernelVersion: string; diskBytes: number }> {
  t.timeout(15 * 60_000);
  const { product, extras } = t.context;
  const kernel = extras.kernels.find((known) => known.suite === suite);
  if (kernel === undefined) throw new Error(`no kernel of ${suite} was set up`);
  const base = await extraDriverVmBase(product.environment, extras, kernel);
  const vm = await product.driverVm(t, { kernel, base, memoryMiB: 768, cpus: 2, ...choices });
  return { vm, kernelVersion: kernel.version, diskBytes: await waitForDisk(vm) };
}
