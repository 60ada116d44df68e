/**
 * What the files look like from outside: which rooms import which (docs/architecture.md), how long files and lines are,
 * and that a folder says what is in it. Over everything that git tracks, comments aside where the code is meant.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const MAX_LINES = 400;
const MAX_COLUMNS = 120;
const MAX_UNEXPLAINED_FILES = 5;

const tracked = execFileSync("git", ["ls-files", "*.ts", "*.cc", "*.h", "*.sh", "*/README.md"], {
  cwd: ROOT,
  encoding: "utf8",
});
const texts = new Map(
  tracked
    .trim()
    .split("\n")
    .map((path) => [path, readFileSync(join(ROOT, path), "utf8")]),
);
const sources = [...texts.keys()].filter((path) => !path.startsWith("test/") && !path.endsWith(".md"));
const code = (path: string) => (texts.get(path) ?? "").replace(/\/\*.*?\*\/|^\s*\/\/.*?$/gms, "");

/** The files of ours that a file imports, types and dynamic imports included. */
const imports = new Map(
  [...texts.keys()]
    .filter((path) => path.endsWith(".ts"))
    .map((path) => {
      const found = code(path).matchAll(/\b(?:from|import)\s*\(?\s*"(\.[^"]+)"/g);
      return [path, [...found].map(([, name]) => join(dirname(path), name).replace(/\.js$/, ".ts"))];
    }),
);

/** What all programs have: system calls, tables, and what is above them. */
const COMMON = ["native", "shared", "shared/bits.ts", "shared/command-line", "shared/spec", "shared/struct"];
/** What programs have that serve. */
const SERVICE = ["shared/service", "shared/notify"];

/**
 * Rooms from the lowest to the highest, each with those that it may import; a file is in the room with the longest
 * name.
 */
const ROOMS: Readonly<Record<string, readonly string[]>> = {
  native: [],
  "shared/bits.ts": [],
  "shared/struct": ["shared/bits.ts"],
  "shared/spec": ["shared/struct", "shared/bits.ts"],
  shared: COMMON,
  "shared/command-line": ["shared"],
  "shared/capture": COMMON,
  "shared/notify": COMMON,
  "shared/service": [...COMMON, "shared/notify"],
  "shared/control": [...COMMON, "shared/service"],
  "shared/control/page": [],
  "shared/vfio-user": COMMON,
  "shared/vfio-user/client": [...COMMON, "shared/vfio-user"],
  "host/bridge/state": [...COMMON, "shared/notify", "shared/vfio-user"],
  "host/bridge/vhost-user": [...COMMON, "shared/vfio-user", "host/bridge/state"],
  "host/bridge/link": [...COMMON, "shared/vfio-user", "host/bridge/vhost-user", "host/bridge/state"],
  "host/bridge": [
    ...[...COMMON, ...SERVICE, "shared/control", "shared/vfio-user"],
    ...["host/bridge/vhost-user", "host/bridge/link", "host/bridge/state"],
  ],
  "host/check": COMMON,
  "host/ctl": [...COMMON, "shared/control"],
  "guest/vfio": COMMON,
  "guest/virtio-pci": [...COMMON, "guest/vfio"],
  "guest/pci": [...COMMON, "shared/vfio-user"],
  "guest/link": [...COMMON, "shared/vfio-user", "guest/virtio-pci", "guest/vfio", "guest/pci"],
  "guest/scatter-list.ts": [],
  "guest/device.ts": ["shared", "guest/pci", "guest/scatter-list.ts"],
  "guest/function": [
    ...COMMON,
    "shared/vfio-user",
    "guest/device.ts",
    "guest/link",
    "guest/pci",
    "guest/scatter-list.ts",
  ],
  "guest/virtio": [...COMMON, "shared/virtqueue", "guest/device.ts", "guest/pci", "guest/scatter-list.ts"],
  "guest/devices": [
    ...COMMON,
    "guest/device.ts",
    "guest/function",
    "guest/pci",
    "guest/scatter-list.ts",
    "guest/virtio",
  ],
  guest: [
    ...[...COMMON, ...SERVICE, "shared/control"],
    ...["guest/devices", "guest/function", "guest/device.ts", "guest/scatter-list.ts"],
    ...["guest/link", "guest/pci", "guest/vfio", "guest/virtio"],
  ],
  "guest/testing.ts": ["shared", "shared/vfio-user/client", "guest/device.ts", "guest/function", "guest/link"],
  scripts: [...COMMON, "shared/vfio-user/client", "guest/devices"],
  "scripts/man.ts": [...COMMON, "shared/control", "host/bridge", "host/check", "host/ctl", "guest", "guest/devices"],
};

function roomOf(path: string): string {
  const rooms = Object.keys(ROOMS).filter((room) => path === room || path.startsWith(`${room}/`));
  return rooms.sort((a, b) => b.length - a.length)[0] ?? "no room";
}

test("imports go down only", (t) => {
  const wrong = sources.flatMap((path) => {
    const room = roomOf(path);
    const allowed = [room, ...(ROOMS[room] ?? [])];
    const below = (each: string) => allowed.includes(roomOf(each));
    return (imports.get(path) ?? []).filter((each) => !below(each)).map((each) => `${path} imports ${each}`);
  });
  t.deepEqual(wrong, []);
});

/** Tarjan's strongly connected components, of more than one file. */
function circles(): string[] {
  const found: string[] = [];
  const low = new Map<string, number>();
  const stack: string[] = [];
  const visit = (path: string): number => {
    const index = low.size;
    low.set(path, index);
    stack.push(path);
    let lowest = index;
    for (const next of imports.get(path) ?? []) {
      if (!low.has(next)) lowest = Math.min(lowest, visit(next));
      else if (stack.includes(next)) lowest = Math.min(lowest, low.get(next) ?? 0);
    }
    low.set(path, lowest);
    if (lowest !== index) return lowest;
    const circle = stack.splice(stack.indexOf(path));
    if (circle.length > 1) found.push(`a circle: ${circle.sort().join(", ")}`);
    return lowest;
  };
  for (const path of imports.keys()) if (!low.has(path)) visit(path);
  return found;
}

test("no circle of files, types included", (t) => {
  t.deepEqual(circles(), []);
});

test(`no source has more than ${MAX_LINES} lines`, (t) => {
  const lines = (path: string) => (texts.get(path) ?? "").split("\n").length - 1;
  t.deepEqual(
    sources.filter((path) => lines(path) > MAX_LINES).map((path) => `${path} is long`),
    [],
  );
});

test(`no line has more than ${MAX_COLUMNS} columns`, (t) => {
  const isWide = (line: string) => line.length > MAX_COLUMNS && [...line].length > MAX_COLUMNS;
  const isData = (path: string) => path.includes("/vectors/") || path.endsWith(".md");
  const wrong = [...texts].filter(([path, text]) => !isData(path) && text.split("\n").some(isWide));
  t.deepEqual(
    wrong.map(([path]) => `${path} is wide`),
    [],
  );
});

test("what is private is #private, but for constructors, which cannot be", (t) => {
  const wrong = [...imports.keys()].filter((path) => /(?:^|[(,])\s*private\s+(?!constructor\b)\w/m.test(code(path)));
  t.deepEqual(
    wrong.map((path) => `${path} has the keyword private`),
    [],
  );
});

/**
 * A file's opening comment, or all of a README.md, names two thirds of the folder's others, without their ending: that
 * is the folder's index.
 */
function isIndex(path: string, folder: readonly string[]): boolean {
  const opening = path.endsWith(".md") ? /.*/s : /^(?:#!.*\n|\/\/\/.*\n)*(?:\/\*.*?\*\/|(?:(?:#|\/\/).*\n)+)/s;
  const [comment = ""] = opening.exec(texts.get(path) ?? "") ?? [];
  const words = new Set(comment.match(/[\w-]+/g));
  const others = new Set(folder.filter((other) => other !== path).map((other) => basename(other).replace(/\..*$/, "")));
  return [...others].filter((name) => words.has(name)).length * 3 >= others.size * 2;
}

test(`a folder of more than ${MAX_UNEXPLAINED_FILES} files has an index: an opening comment or a README`, (t) => {
  const folders = new Map<string, string[]>();
  for (const path of texts.keys()) {
    if (!path.endsWith(".test.ts")) folders.set(dirname(path), [...(folders.get(dirname(path)) ?? []), path]);
  }
  const large = [...folders].filter(([, files]) => files.length > MAX_UNEXPLAINED_FILES);
  const unexplained = large.filter(([folder, files]) => {
    const above = folders.get(dirname(folder)) ?? [];
    return ![...files, ...above].some((path) => isIndex(path, files));
  });
  t.deepEqual(
    unexplained.map(([folder]) => `${folder} has no index`),
    [],
  );
});
