/**
 * The product with a driver VM of any of the long tests' kernels, in which their tools are.
 *
 * Other helpers here: verified-io (fio in the background of a driver VM), boot-image (a disk that boots), chroot
 * (Debian in a folder), terminal and page-blocks (what a person types).
 */
import type { ExecutionContext } from "ava";
import { type Extras, type GuestKernel, prepareExtras } from "../../scripts/vm/environment.js";
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

/**
 * What makes a driver VM one with two CPUs, and so with two queue pairs, and with this suite's kernel and the tools.
 */
export async function driverVmChoices(
  { context: { product, extras } }: ExecutionContext<LongSetUp>,
  suite: Suite = "trixie",
): Promise<DriverVmChoices & { readonly kernel: GuestKernel }> {
  const kernel = extras.kernels.find((known) => known.suite === suite);
  if (kernel === undefined) throw new Error(`no kernel of ${suite} was set up`);
  return { kernel, base: await extraDriverVmBase(product.environment, extras, kernel), memoryMiB: 768, cpus: 2 };
}

/** Such a driver VM, whose kernel has found the disk; it ends with the test. */
export async function driverVmOf(
  t: ExecutionContext<LongSetUp>,
  suite: Suite = "trixie",
  choices: DriverVmChoices = {},
): Promise<{ vm: Vm; kernelVersion: string; diskBytes: number }> {
  t.timeout(15 * 60_000);
  const own = await driverVmChoices(t, suite);
  const vm = await t.context.product.driverVm(t, { ...own, ...choices });
  return { vm, kernelVersion: own.kernel.version, diskBytes: await waitForDisk(vm) };
}
