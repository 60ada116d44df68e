/**
 * What the VM tests run: QEMU 11.1, guest kernels and guest programs, and Debian systems, as setup.sh, setup-extra.sh
 * and setup-debian.sh provide them.
 */
import { execFile, spawn } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { UserError } from "../../shared/errors.js";
import { treeLibraryPath, treeLoader } from "./libraries.js";

const MINIMUM_QEMU = [11, 1] as const;

/** The project's own directory: the compiled file is three levels below it. */
export const PROJECT_ROOT = fileURLToPath(new URL("../../../", import.meta.url));

/** A program and what goes in front of its arguments. */
export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  /** Set in addition to this process's own environment. */
  readonly environment: Readonly<Record<string, string>>;
}

export interface VmEnvironment {
  readonly qemu: Command;
  /** For example "11.1.3". */
  readonly qemuVersion: string;
  /** Path of the guest kernel's image. */
  readonly kernel: string;
  readonly kernelVersion: string;
  /** Paths of the kernel modules, uncompressed, in the order in which they load. */
  readonly modules: readonly string[];
  /** The unpacked tree of guest programs (busybox, e2fsprogs, pciutils and their libraries). */
  readonly root: string;
  /** Where archives that are made from all this may be kept. */
  readonly cache: string;
}

/** A kernel for a driver VM. */
export interface GuestKernel {
  /** The Debian suite it is from. */
  readonly suite: string;
  /** For example "6.1.0-50-cloud-amd64". */
  readonly version: string;
  /** Path of the image. */
  readonly image: string;
  /** Paths of the modules, uncompressed, in the order in which they load. */
  readonly modules: readonly string[];
}

/** What only the long tests run. */
export interface Extras {
  /** The unpacked tree of further guest programs. */
  readonly root: string;
  readonly kernels: readonly GuestKernel[];
}

const run = promisify(execFile);

/** Sets up whatever is missing, which takes some seconds and shows its progress on stderr. Throws a UserError. */
export async function prepareVmEnvironment(): Promise<VmEnvironment> {
  const result = await runSetup("setup.sh");
  const { tree, kernel: kernelVersion, qemu: qemuPath } = result;
  if (tree === undefined || kernelVersion === undefined || qemuPath === undefined)
    throw new UserError("scripts/vm/setup.sh did not say where it put QEMU and the guest kernel.");
  const root = join(tree, "root");
  const qemu = qemuPath.startsWith(`${root}/`) ? treeQemu(root, qemuPath) : plainQemu(qemuPath);
  return {
    qemu,
    qemuVersion: await qemuVersion(qemu),
    kernel: join(tree, "kernel/vmlinuz"),
    kernelVersion,
    modules: await modulesIn(join(tree, "kernel")),
    root,
    cache: join(dirname(tree), `initramfs-${basename(tree)}`),
  };
}

/**
 * As prepareVmEnvironment, for the long tests' kernels and programs: a minute or two the first time. Throws a
 * UserError.
 */
export async function prepareExtras(): Promise<Extras> {
  const { tree } = await runSetup("setup-extra.sh");
  if (tree === undefined) throw new UserError("scripts/vm/setup-extra.sh did not say where it put the guest programs.");
  const kernels = join(tree, "kernels");
  const suites = await readdir(kernels);
  return { root: join(tree, "root"), kernels: await Promise.all(suites.map((suite) => kernelIn(kernels, suite))) };
}

/** What looks at the status page and at metrics. */
export interface BrowserTools {
  readonly chromium: Command;
  readonly promtool: string;
}

/** As prepareVmEnvironment, for tests of the status page. Throws a UserError. */
export async function prepareBrowser(): Promise<BrowserTools> {
  const { tree } = await runSetup("setup-browser.sh");
  if (tree === undefined) throw new UserError("scripts/vm/setup-browser.sh did not say where it put the programs.");
  const root = join(tree, "root");
  // It starts itself, so it needs the machine's own loader.
  const libraries = [treeLibraryPath(root), join(root, "usr/lib/x86_64-linux-gnu/pulseaudio")];
  const environment = { LD_LIBRARY_PATH: libraries.join(":"), FONTCONFIG_FILE: join(tree, "fonts.conf") };
  const program = join(root, "usr/lib/chromium/chromium-headless-shell");
  return { chromium: { program, args: ["--no-sandbox"], environment }, promtool: join(root, "usr/bin/promtool") };
}

/** What the tests of docs/protocol/ run. */
export interface ProtocolTools {
  readonly tshark: Command;
  /** With Kaitai Struct's library. */
  readonly python: Command;
}

/** As prepareVmEnvironment, for the tests of docs/protocol/. Throws a UserError. */
export async function prepareProtocolTools(): Promise<ProtocolTools> {
  const { tree } = await runSetup("setup-protocol.sh");
  if (tree === undefined) throw new UserError("scripts/vm/setup-protocol.sh did not say where it put the programs.");
  const root = join(tree, "root");
  const command = (program: string, environment: Record<string, string>): Command => ({
    program: treeLoader(root),
    args: ["--library-path", treeLibraryPath(root), join(root, "usr/bin", program)],
    environment,
  });
  const PYTHONPATH = join(root, "usr/lib/python3/dist-packages");
  return {
    tshark: command("tshark", {}),
    python: command("python3", { PYTHONHOME: join(root, "usr"), PYTHONPATH }),
  };
}

/** Debian 12 as tar files, for tests of what is installed there; minutes the first time. Throws a UserError. */
export async function prepareDebian(): Promise<{ readonly fresh: string; readonly system: string }> {
  const { tree } = await runSetup("setup-debian.sh");
  if (tree === undefined) throw new UserError("scripts/vm/setup-debian.sh did not say where it put the systems.");
  return { fresh: join(tree, "fresh.tar"), system: join(tree, "system.tar") };
}

async function kernelIn(kernels: string, suite: string): Promise<GuestKernel> {
  const directory = join(kernels, suite);
  const version = (await readFile(join(directory, "version"), "utf8")).trim();
  return { suite, version, image: join(directory, "vmlinuz"), modules: await modulesIn(directory) };
}

/** The modules beside a kernel, as they load. */
async function modulesIn(directory: string): Promise<string[]> {
  const order = await readFile(join(directory, "modules/order"), "utf8");
  return order
    .trim()
    .split("\n")
    .map((name) => join(directory, "modules", name));
}

/** Runs a set-up script; its "name=value" lines as an object. */
async function runSetup(script: string): Promise<Record<string, string | undefined>> {
  const child = spawn("bash", [join(PROJECT_ROOT, "scripts/vm", script)], { stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
  });
  const code = await new Promise<number | null>((resolve, reject) => child.on("error", reject).on("close", resolve));
  if (code !== 0)
    throw new UserError(`The set-up for VM tests failed: see the messages of scripts/vm/${script} above.`);
  return Object.fromEntries(output.split("\n").map((line) => line.split(/=(.*)/s, 2)));
}

function plainQemu(path: string): Command {
  return { program: path, args: [], environment: {} };
}

/** QEMU inside the tree runs by the tree's own dynamic loader, since the machine's C library may be older. */
function treeQemu(root: string, path: string): Command {
  const libraries = join(root, "usr/lib/x86_64-linux-gnu");
  return {
    program: treeLoader(root),
    args: [
      "--library-path",
      treeLibraryPath(root),
      path,
      "-L",
      join(root, "usr/share/qemu"),
      "-L",
      join(root, "usr/share/seabios"),
    ],
    environment: { QEMU_MODULE_DIR: join(libraries, "qemu") },
  };
}

/** The version that this QEMU says it is. Throws a UserError when it does not start or is older than 11.1. */
export async function qemuVersion(qemu: Command): Promise<string> {
  let output: string;
  try {
    output = (await run(qemu.program, [...qemu.args, "--version"], { env: { ...process.env, ...qemu.environment } }))
      .stdout;
  } catch (error) {
    throw new UserError(`QEMU does not start: ${error instanceof Error ? error.message.trim() : String(error)}`);
  }
  const match = /QEMU emulator version (\d+)\.(\d+)(?:\.\d+)*/.exec(output);
  if (match === null) throw new UserError("QEMU's --version says nothing of its version: is this really QEMU?");
  const [major, minor] = [Number(match[1]), Number(match[2])];
  if (major < MINIMUM_QEMU[0] || (major === MINIMUM_QEMU[0] && minor < MINIMUM_QEMU[1]))
    throw new UserError(
      `QEMU ${major}.${minor} is too old: vfio-user-pci needs QEMU ${MINIMUM_QEMU.join(".")} or newer.`,
    );
  return match[0].replace(/^.* /, "");
}
