/**
 * The shared libraries that a program needs, as the dynamic loader itself finds them.
 */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";

/** Where an unpacked tree has its libraries. */
export function treeLibraryPath(root: string): string {
  const libraries = join(root, "usr/lib/x86_64-linux-gnu");
  return [libraries, join(libraries, "ceph")].join(":"); // fio was linked with Ceph
}

/** The dynamic loader of an unpacked tree. */
export function treeLoader(root: string): string {
  return join(root, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
}

const run = promisify(execFile);

/** A library under the name by which it is looked up, and the dynamic loader: absolute paths on this machine. */
export async function sharedLibraries(program: string): Promise<string[]> {
  return parse((await run("ldd", [program])).stdout, program);
}

/** As sharedLibraries, for a program of an unpacked tree with a loader and libraries of its own. */
export async function treeLibraries(root: string, program: string): Promise<string[]> {
  const { stdout } = await run(treeLoader(root), ["--library-path", treeLibraryPath(root), "--list", program]);
  return [...new Set([...parse(stdout, program).filter((path) => path.startsWith(root)), treeLoader(root)])];
}

/** Lines such as "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)" and "/lib64/ld-linux-x86-64.so.2 (0x...)". */
function parse(output: string, program: string): string[] {
  const missing = /^\s*(\S+) => not found/m.exec(output);
  if (missing !== null) throw new Error(`${program} needs ${missing[1]}, which is not installed`);
  return [...output.matchAll(/^\s*(?:\S+ => )?(\/\S+) \(0x/gm)].map((match) => match[1]);
}
