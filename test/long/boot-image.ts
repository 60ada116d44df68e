/**
 * A disk that boots: GRUB in its boot sector and behind it, and one ext4 partition with a kernel, busybox and our first
 * process. Made without mounting anything, so that no privileges are needed.
 */
import { execFile } from "node:child_process";
import { copyFile, mkdir, open, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import type { Extras, VmEnvironment } from "../../scripts/vm/environment.js";
import { initScript } from "../../scripts/vm/init.js";
import { treeLibraryPath, treeLoader } from "../../scripts/vm/libraries.js";

const MiB = 2 ** 20;
const SECTOR = 512;
/** Where the partition begins; GRUB's own image is in front of it. */
const PARTITION_SECTOR = 2048;
const PARTITION_TABLE = 446;
const LINUX_PARTITION = 0x83;
/** What is not in GRUB's rescue shell. */
const GRUB_MODULES = ["biosdisk", "part_msdos", "ext2", "linux", "serial", "terminal", "echo"];
/** Features that GRUB does not read. */
const NEW_FEATURES = "^metadata_csum_seed,^orphan_file";

const run = promisify(execFile);

/** Runs a program of an unpacked tree. */
export async function runTool(root: string, program: string, ...args: string[]): Promise<void> {
  await run(treeLoader(root), ["--library-path", treeLibraryPath(root), join(root, program), ...args], {
    env: { ...process.env, MKE2FS_CONFIG: join(root, "etc/mke2fs.conf") },
  });
}

/** The disk's bytes. `directory` is for files of ours, which stay there. */
export async function bootImage(
  environment: VmEnvironment,
  extras: Extras,
  directory: string,
  sizeMiB: number,
): Promise<Buffer> {
  const image = join(directory, "boot.img");
  const handle = await open(image, "w");
  await handle.truncate(sizeMiB * MiB);
  await handle.close();
  const content = await rootDirectory(environment, join(directory, "root"));
  const filesystem = ["-q", "-F", "-O", NEW_FEATURES, "-E", `offset=${PARTITION_SECTOR * SECTOR}`, "-d", content];
  await runTool(extras.root, "usr/sbin/mkfs.ext4", ...filesystem, image, `${sizeMiB - 2}M`);

  const modules = join(extras.root, "usr/lib/grub/i386-pc");
  const core = join(directory, "core.img");
  const script = join(directory, "grub.cfg");
  await writeFile(script, grubScript());
  const grub = ["-O", "i386-pc", "-d", modules, "-p", "(hd0,msdos1)/boot/grub", "-c", script, "-o", core];
  await runTool(extras.root, "usr/bin/grub-mkimage", ...grub, ...GRUB_MODULES);

  const bytes = await readFile(image);
  const coreBytes = await readFile(core);
  if (coreBytes.length > (PARTITION_SECTOR - 1) * SECTOR)
    throw new Error("GRUB does not fit in front of the partition");
  bytes.set(bootSector(await readFile(join(modules, "boot.img")), sizeMiB), 0);
  bytes.set(coreBytes, SECTOR);
  return bytes;
}

/** The boot sector loads the sector behind it, where grub-mkimage's image begins, as both take for granted. */
function bootSector(code: Buffer, sizeMiB: number): Buffer {
  const sector = Buffer.from(code.subarray(0, SECTOR));
  sector.fill(0, PARTITION_TABLE, SECTOR - 2);
  sector[PARTITION_TABLE] = 0x80; // active
  sector[PARTITION_TABLE + 4] = LINUX_PARTITION;
  sector.writeUInt32LE(PARTITION_SECTOR, PARTITION_TABLE + 8);
  sector.writeUInt32LE((sizeMiB * MiB) / SECTOR - PARTITION_SECTOR, PARTITION_TABLE + 12);
  sector.writeUInt16LE(0xaa55, SECTOR - 2);
  return sector;
}

function grubScript(): string {
  return [
    "serial --unit=0 --speed=115200",
    "terminal_output serial",
    "echo @@grub",
    "set root=(hd0,msdos1)",
    "linux /boot/vmlinuz root=/dev/nvme0n1p1 rw rootwait init=/init console=ttyS0 quiet panic=-1",
    "boot",
    "",
  ].join("\n");
}

/** What is in the partition: the same as in a driver VM's archive, as far as this needs it. */
async function rootDirectory(environment: VmEnvironment, root: string): Promise<string> {
  for (const name of ["boot", "bin", "sbin", "dev", "proc", "sys", "tmp", "root", "modules"])
    await mkdir(join(root, name), { recursive: true });
  await copyFile(environment.kernel, join(root, "boot/vmlinuz"));
  await copyFile(join(environment.root, "usr/bin/busybox"), join(root, "bin/busybox"));
  await writeFile(join(root, "modules/order"), "");
  for (const entry of initScript({ afterwards: "commands" })) {
    if (!("data" in entry)) continue;
    await mkdir(dirname(join(root, entry.path)), { recursive: true });
    await writeFile(join(root, entry.path), entry.data, { mode: entry.mode ?? 0o644 });
  }
  return root;
}
