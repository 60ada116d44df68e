/**
 * Archives in cpio's "newc" format, as the Linux kernel unpacks them (Documentation/driver-api/early-userspace/
 * buffer-format.rst). Several may follow one another in one file: a later entry replaces an earlier one of the same
 * path. Left out: hard links, device nodes, owners (all is root's), times.
 */

export type Entry =
  | { readonly path: string; readonly data: Buffer | string; readonly mode?: number }
  | { readonly path: string; readonly link: string }
  | { readonly path: string; readonly directory: true };

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const HEADER_SIZE = 110;
const ALIGNMENT = 4;

/**
 * The pieces of an archive of these entries, parent directories included; written one after another they are the file.
 */
export function archive(entries: readonly Entry[]): Buffer[] {
  const pieces: Buffer[] = [];
  const directories = new Set<string>();
  for (const entry of entries) {
    const path = entry.path.replace(/^\/+/, "");
    for (let end = path.indexOf("/"); end >= 0; end = path.indexOf("/", end + 1))
      add(pieces, directories, path.slice(0, end));
    if ("directory" in entry) add(pieces, directories, path);
    else if ("link" in entry) pieces.push(...record(path, S_IFLNK | 0o777, Buffer.from(entry.link)));
    else pieces.push(...record(path, S_IFREG | (entry.mode ?? 0o644), Buffer.from(entry.data)));
  }
  pieces.push(...record("TRAILER!!!", 0, Buffer.alloc(0)));
  return pieces;
}

function add(pieces: Buffer[], directories: Set<string>, path: string): void {
  if (directories.has(path)) return;
  directories.add(path);
  pieces.push(...record(path, S_IFDIR | 0o755, Buffer.alloc(0)));
}

function record(path: string, mode: number, data: Buffer): Buffer[] {
  const name = Buffer.from(`${path}\0`);
  const [inode, uid, gid, links, time, major, minor, deviceMajor, deviceMinor, check] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
  const fields = [inode, mode, uid, gid, links, time, data.length, major, minor, deviceMajor, deviceMinor, name.length];
  const header = [...fields, check].map((field) => field.toString(16).padStart(8, "0")).join("");
  return [
    Buffer.concat([Buffer.from(`070701${header}`), name, padding(HEADER_SIZE + name.length)]),
    data,
    padding(data.length),
  ];
}

function padding(length: number): Buffer {
  return Buffer.alloc(-length & (ALIGNMENT - 1));
}
