/**
 * The two VMs' file systems: an archive for each kind, made once and kept, and a small one for each run behind it.
 *
 * The device VM's holds busybox, this machine's node with its libraries, dmsetup with its own, and the modules for VFIO
 * and disks of its own; the driver VM's busybox, e2fsprogs, pciutils and nvme-cli (its kernel has NVMe and ext4 built
 * in), more in the long tests. Both live in memory only.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { copyFile, mkdir, open, readdir, readFile, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { archive, type Entry } from "./cpio.js";
import { type Extras, type GuestKernel, PROJECT_ROOT, type VmEnvironment } from "./environment.js";
import { sharedLibraries, treeLibraries, treeLoader } from "./libraries.js";

/** One more whenever the archives' recipe changes. */
const RECIPE = 3;
/** Where dmsetup is in the device VM: with the libraries of its own system, which node's may be older than. */
const DMSETUP = "/opt/dmsetup";
/** Where the project is in the device VM. */
export const GUEST_PROJECT = "/project";
/** A user of the device VM's who has no privileges, for the device process. */
export const DEVICE_USER = "device";
const DRIVER_VM_TOOLS = ["sbin/mkfs.ext4", "sbin/e2fsck", "bin/lspci", "bin/setpci", "sbin/nvme"];
const EXTRA_TOOLS = ["bin/fio", "sbin/mkfs.xfs", "sbin/xfs_repair"];

/** A file of this machine and its place in the guest. */
interface Source {
  readonly from: string;
  readonly to: string;
}

/** Path of the device VM's base archive, which is made now if it is not there. */
export async function deviceVmBase(environment: VmEnvironment): Promise<string> {
  const node = await realpath(process.execPath);
  const libraries = await sharedLibraries(node);
  const sources = [
    { from: node, to: "/usr/bin/node" },
    ...[...libraries, "/etc/ld.so.cache"].filter(existsSync).map((path) => ({ from: path, to: path })),
    ...environment.modules.map((path) => ({ from: path, to: `/modules/${basename(path)}` })),
    ...(await dmsetupSources(environment.root)),
  ];
  return await base("device", environment, sources);
}

async function dmsetupSources(root: string): Promise<Source[]> {
  const program = join(root, "usr/sbin/dmsetup");
  const libraries = await treeLibraries(root, program);
  return [program, ...libraries].map((from) => ({ from, to: `${DMSETUP}/${basename(from)}` }));
}

/** Path of the driver VM's base archive, which is made now if it is not there. */
export async function driverVmBase(environment: VmEnvironment): Promise<string> {
  return await base("driver", environment, await toolSources(environment.root, DRIVER_VM_TOOLS));
}

/** As driverVmBase, for one of the long tests' kernels with its modules, and with their tools. */
export async function extraDriverVmBase(
  environment: VmEnvironment,
  extras: Extras,
  kernel: GuestKernel,
): Promise<string> {
  const sources = await toolSources(extras.root, [...DRIVER_VM_TOOLS, ...EXTRA_TOOLS]);
  sources.push(...kernel.modules.map((path) => ({ from: path, to: `/modules/${basename(path)}` })));
  return await base(`extra-${kernel.suite}`, environment, sources);
}

/** Programs of an unpacked tree, with the libraries and files that they need. */
async function toolSources(root: string, tools: readonly string[]): Promise<Source[]> {
  const sources: Source[] = [
    { from: treeLoader(root), to: "/lib64/ld-linux-x86-64.so.2" },
    { from: join(root, "etc/mke2fs.conf"), to: "/etc/mke2fs.conf" },
  ];
  for (const tool of tools) {
    const program = join(root, "usr", tool);
    const libraries = await treeLibraries(root, program);
    sources.push(...[program, ...libraries].map((from) => ({ from, to: `/${relative(root, from)}` })));
  }
  return sources;
}

/** Writes the base and the entries of one run to `destination`, which QEMU takes as its initrd. */
export async function writeInitrd(basePath: string, entries: readonly Entry[], destination: string): Promise<void> {
  await copyFile(basePath, destination);
  await append(destination, "a", entries);
}

/**
 * The built project for the device VM, below GUEST_PROJECT: what `npm install` would bring, so no tests and no
 * development packages. The libraries of the addon come along where node itself does not need them.
 */
export async function projectEntries(): Promise<Entry[]> {
  const entries: Entry[] = [];
  const build = join(PROJECT_ROOT, "build");
  for (const part of ["native", "shared", "host", "guest"])
    entries.push(...(await directoryEntries(join(build, part), `${GUEST_PROJECT}/build/${part}`)));
  // As `npm install -g` puts it into PATH.
  const command = `#!/bin/sh\nexec node ${GUEST_PROJECT}/build/guest/main.js "$@"\n`;
  entries.push({ path: "/usr/bin/vfio-user-device", data: command, mode: 0o755 });
  const dmsetup = `#!/bin/sh\nexec ${DMSETUP}/ld-linux-x86-64.so.2 --library-path ${DMSETUP} ${DMSETUP}/dmsetup "$@"\n`;
  entries.push({ path: "/usr/sbin/dmsetup", data: dmsetup, mode: 0o755 });
  entries.push(await file({ from: join(PROJECT_ROOT, "package.json"), to: `${GUEST_PROJECT}/package.json` }));
  for (const name of await installedDependencies())
    entries.push(
      ...(await directoryEntries(join(PROJECT_ROOT, "node_modules", name), `${GUEST_PROJECT}/node_modules/${name}`)),
    );
  const addon = join(build, "native/linux-x64/addon.node");
  if (existsSync(addon)) {
    const present = new Set(await sharedLibraries(await realpath(process.execPath)));
    const extra = (await sharedLibraries(addon)).filter((path) => !present.has(path));
    entries.push(...(await Promise.all(extra.map((path) => file({ from: path, to: path })))));
  }
  return entries;
}

/** Who is who in the device VM. */
export function userEntries(): Entry[] {
  const users = `root:x:0:0:root:/root:/bin/sh\n${DEVICE_USER}:x:1000:1000:${DEVICE_USER}:/tmp:/bin/sh\n`;
  return [
    { path: "/etc/passwd", data: users },
    { path: "/etc/group", data: `root:x:0:\n${DEVICE_USER}:x:1000:\n` },
  ];
}

/** The packages that the project needs to run, and theirs. */
async function installedDependencies(): Promise<string[]> {
  const found = new Set<string>();
  const visit = async (packageFile: string): Promise<void> => {
    const { dependencies = {} } = JSON.parse(await readFile(packageFile, "utf8")) as { dependencies?: object };
    for (const name of Object.keys(dependencies)) {
      if (found.has(name)) continue;
      found.add(name);
      await visit(join(PROJECT_ROOT, "node_modules", name, "package.json"));
    }
  };
  await visit(join(PROJECT_ROOT, "package.json"));
  return [...found];
}

/** All files below a directory, source maps and declarations left out; nothing when it does not exist. */
async function directoryEntries(from: string, to: string): Promise<Entry[]> {
  if (!existsSync(from)) return [];
  const entries: Entry[] = [];
  for (const item of await readdir(from, { withFileTypes: true, recursive: true })) {
    if (!item.isFile() || /\.(map|d\.[cm]?ts|tsbuildinfo|md)$/.test(item.name)) continue;
    const path = join(item.parentPath ?? item.path, item.name);
    entries.push(await file({ from: path, to: join(to, relative(from, path)) }));
  }
  return entries;
}

async function file({ from, to }: Source): Promise<Entry> {
  return { path: to, data: await readFile(from), mode: ((await stat(from)).mode & 0o111) === 0 ? 0o644 : 0o755 };
}

/** The kept archive of this kind that was made of exactly these files; older ones of the kind go. */
async function base(kind: string, environment: VmEnvironment, sources: readonly Source[]): Promise<string> {
  const all = [{ from: join(environment.root, "usr/bin/busybox"), to: "/bin/busybox" }, ...sources];
  const name = `${kind}-${await fingerprint(environment, all)}.cpio`;
  const path = join(environment.cache, name);
  if (existsSync(path)) return path;
  await mkdir(environment.cache, { recursive: true });
  const entries: Entry[] = ["/proc", "/sys", "/dev", "/tmp", "/root"].map((path) => ({ path, directory: true }));
  const modules = all.flatMap(({ to }) => (dirname(to) === "/modules" ? [`${basename(to)}\n`] : []));
  entries.push({ path: "/modules/order", data: modules.join("") });
  for (const source of all) entries.push(await file(source));
  const unfinished = `${path}.${process.pid}`;
  try {
    await append(unfinished, "w", entries);
    await rename(unfinished, path);
  } finally {
    await rm(unfinished, { force: true });
  }
  for (const other of await readdir(environment.cache))
    if (other.length === name.length && other.startsWith(`${kind}-`) && other.endsWith(".cpio") && other !== name)
      await rm(join(environment.cache, other), { force: true });
  return path;
}

/** Changes when any of the files does: it covers their paths, sizes and times, and the versions. */
async function fingerprint(environment: VmEnvironment, sources: readonly Source[]): Promise<string> {
  const hash = createHash("sha256").update(`${RECIPE} ${process.version} ${environment.kernelVersion}\n`);
  for (const { from, to } of sources) {
    const { size, mtimeMs } = await stat(from);
    hash.update(`${from} ${to} ${size} ${mtimeMs}\n`);
  }
  return hash.digest("hex").slice(0, 16);
}

async function append(path: string, flags: "a" | "w", entries: readonly Entry[]): Promise<void> {
  const handle = await open(path, flags);
  try {
    for (const piece of archive(entries)) if (piece.length > 0) await handle.writeFile(piece);
  } finally {
    await handle.close();
  }
}
