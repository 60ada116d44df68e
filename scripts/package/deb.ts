/**
 * `npm run deb`: the Debian package, build/package/virtio-vfio-user_VERSION_ARCH.deb, and beside it
 * virtio-vfio-user-node, the Node.js that runs this, for systems whose own is too old (Debian 12). Made by dpkg-deb
 * alone; `--arch arm64` makes the former for another platform that prebuild.sh has compiled for.
 *
 * debian-files.ts has what is written rather than copied, bundle.ts makes the bridge one file.
 * Left out: a source package, which Debian itself would want.
 */
import "../../shared/no-debugger.js";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { BRIDGE_MAIN, bundle } from "./bundle.js";
import * as files from "./debian-files.js";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const OUTPUT = join(ROOT, "build/package");
const LIB = "usr/lib/virtio-vfio-user";
const DEBIAN_ARCH: Readonly<Record<string, string>> = { x64: "amd64", arm64: "arm64" };

/** A tree of which dpkg-deb makes a package. */
class Stage {
  readonly root = mkdtempSync(join(tmpdir(), "vfio-user-deb-"));

  write(path: string, content: string | Uint8Array, mode = 0o644): void {
    const to = join(this.root, path);
    mkdirSync(dirname(to), { recursive: true });
    writeFileSync(to, content);
    chmodSync(to, mode);
  }

  /** Compressed as Debian wants documents: with the best, and without a time. */
  writeGzip(path: string, content: string | Uint8Array): void {
    this.write(`${path}.gz`, gzipSync(content, { level: 9 }));
  }

  copy(from: string, to: string, mode?: number): void {
    this.write(to, readFileSync(from), mode);
  }

  /** Below a folder of ours or of a dependency, what `wanted` says. */
  copyTree(from: string, to: string, wanted: (path: string) => boolean): void {
    for (const path of readdirSync(from, { recursive: true, encoding: "utf8" }).sort()) {
      if (!statSync(join(from, path)).isFile() || !wanted(path)) continue;
      this.copy(join(from, path), join(to, path));
    }
  }

  /** Makes the package and removes the tree; returns the package's path. */
  build(control: files.Control): string {
    const paths = readdirSync(this.root, { recursive: true, encoding: "utf8" }).sort();
    const isFile = (path: string) => statSync(join(this.root, path)).isFile() && !path.startsWith("DEBIAN/");
    const md5 = (path: string) =>
      createHash("md5")
        .update(readFileSync(join(this.root, path)))
        .digest("hex");
    const plain = paths.filter(isFile);
    const kib = paths.reduce(
      (sum, path) => sum + (isFile(path) ? Math.ceil(statSync(join(this.root, path)).size / 1024) : 1),
      0,
    );
    this.write("DEBIAN/md5sums", plain.map((path) => `${md5(path)}  ${path}\n`).join(""));
    this.write("DEBIAN/control", files.control(control, kib));
    for (const path of paths)
      if (statSync(join(this.root, path)).isDirectory()) chmodSync(join(this.root, path), 0o755);
    chmodSync(join(this.root, "DEBIAN"), 0o755);
    chmodSync(this.root, 0o755);
    mkdirSync(OUTPUT, { recursive: true });
    const output = join(OUTPUT, `${control.name}_${control.version}_${control.arch}.deb`);
    const environment = { ...process.env, SOURCE_DATE_EPOCH: String(files.releaseTime(ROOT)) };
    execFileSync("dpkg-deb", ["--root-owner-group", "-Zxz", "--build", this.root, output], {
      env: environment,
      stdio: ["ignore", "ignore", "inherit"],
    });
    rmSync(this.root, { recursive: true });
    return output;
  }
}

interface Manifest {
  readonly version: string;
  readonly bin: Readonly<Record<string, string>>;
  readonly man: readonly string[];
}

const manifest: Manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));

/** The folders of the packages that it needs to run, and not those that are only types, by their name. */
function dependencies(): Map<string, string> {
  const listed = execFileSync("npm", ["ls", "--omit=dev", "--all", "--parseable"], { cwd: ROOT, encoding: "utf8" });
  const modules = join(ROOT, "node_modules/");
  const paths = listed
    .trim()
    .split("\n")
    .filter((path) => path.startsWith(modules) && !/\/(@types|undici-types)(\/|$)/.test(path));
  return new Map(paths.map((path) => [path.slice(modules.length), path]));
}

/** What node needs of a dependency: not what people read, nor its tests. */
const isCode = (path: string) =>
  /(^|\/)(package\.json|[^/]+\.([cm]?js|json))$/.test(path) &&
  !/(^|\/)(test|tests|spec|bench|benchmarks?|examples?|docs|types|\.[^/]+|node_modules)\//.test(path) &&
  !/\.(test|min)\.js$|(^|\/)(bin|bench[^/]*)\.[cm]?js$|(^|\/)(tsconfig|\.[^/]*)/.test(path);

/** The one package. */
async function programs(arch: string): Promise<string> {
  const stage = new Stage();
  stage.copy(join(ROOT, "package.json"), join(LIB, "package.json"));
  for (const part of ["guest", "host", "native", "shared"]) {
    stage.copyTree(join(ROOT, "build", part), join(LIB, "build", part), (path) => path.endsWith(".js"));
  }
  const bundled = join(dirname(BRIDGE_MAIN), "bundled.js");
  await bundle(BRIDGE_MAIN, bundled);
  stage.copy(bundled, join(LIB, "build/host/bridge/main.js"));
  rmSync(bundled);
  const compiled = `build/native/linux-${arch}`;
  if (!existsSync(join(ROOT, compiled)))
    throw new Error(`nothing is compiled for ${arch}: run scripts/package/prebuild.sh`);
  for (const name of ["addon.node", "vfio-user-holder"]) {
    const path = join(LIB, compiled, name);
    stage.copy(join(ROOT, compiled, name), path, name === "addon.node" ? 0o644 : 0o755);
    if (arch === process.arch)
      execFileSync("strip", ["--strip-unneeded", "--remove-section=.comment", join(stage.root, path)]);
  }
  const modules = dependencies();
  for (const [name, path] of modules) stage.copyTree(path, join(LIB, "node_modules", name), isCode);
  for (const [name, path] of Object.entries(manifest.bin)) {
    stage.write(join("usr/bin", name), files.launcher(`/${LIB}`, path), 0o755);
    // The launcher runs it.
    stage.write(join(LIB, path), readFileSync(join(ROOT, path), "utf8").replace(/^#!.*/, "//"));
  }
  for (const path of manifest.man)
    stage.writeGzip(join("usr/share/man/man1", path.slice(path.lastIndexOf("/") + 1)), readFileSync(join(ROOT, path)));
  stage.copyTree(join(ROOT, "docs/vfio-user"), "usr/share/vfio-user", () => true);
  stage.copyTree(join(ROOT, "scripts/package/systemd"), "lib/systemd/system", () => true);
  // The bridge reads the schema of its configuration.
  stage.copyTree(join(ROOT, "docs"), join(LIB, "docs"), (path) => path.endsWith(".schema.json"));
  document(stage, "virtio-vfio-user", files.copyright(modules));
  const docs = "usr/share/doc/virtio-vfio-user";
  stage.copyTree(join(ROOT, "docs"), docs, (path) => path.endsWith(".md"));
  stage.copy(join(ROOT, "README.md"), join(docs, "README.md"));
  stage.copyTree(join(ROOT, "scripts/package"), join(docs, "examples"), (path) =>
    /^[^/]+\.(conf|xml|yaml)$/.test(path),
  );
  stage.write("usr/share/lintian/overrides/virtio-vfio-user", files.OVERRIDES);
  stage.write("DEBIAN/postinst", files.POSTINST, 0o755);
  stage.write("DEBIAN/prerm", files.PRERM, 0o755);
  stage.write("DEBIAN/postrm", files.POSTRM, 0o755);
  const { version } = manifest;
  return stage.build({ ...files.PROGRAMS, version, arch: DEBIAN_ARCH[arch] });
}

/** The other one, of this machine's own; undefined where that is not one file, as a distribution's own is not. */
function node(): string | undefined {
  const program = realpathSync(process.execPath);
  const needed = execFileSync("ldd", [program], { encoding: "utf8" });
  if (/lib(node|uv|v8|ssl|crypto|icu)/.test(needed)) return undefined;
  const stage = new Stage();
  stage.copy(program, join(LIB, "node"), 0o755);
  execFileSync("strip", ["--strip-unneeded", "--remove-section=.comment", join(stage.root, LIB, "node")]);
  document(stage, "virtio-vfio-user-node", files.NODE_COPYRIGHT);
  const licence = files.nodeLicence();
  if (licence !== undefined) stage.writeGzip("usr/share/doc/virtio-vfio-user-node/LICENSE", licence);
  stage.write("usr/share/lintian/overrides/virtio-vfio-user-node", files.NODE_OVERRIDES);
  const version = process.version.slice(1);
  return stage.build({ ...files.NODE, version, arch: DEBIAN_ARCH[process.arch] });
}

function document(stage: Stage, name: string, copyright: string): void {
  const folder = join("usr/share/doc", name);
  const version = name.endsWith("-node") ? process.version.slice(1) : manifest.version;
  stage.write(join(folder, "copyright"), copyright);
  stage.writeGzip(join(folder, "changelog"), files.changelog(ROOT, name, version));
  if (!name.endsWith("-node")) stage.copy(join(ROOT, "CHANGELOG.md"), join(folder, "CHANGELOG.md"));
}

const at = process.argv.indexOf("--arch");
const arch = at < 0 ? process.arch : process.argv[at + 1];
if (!(arch in DEBIAN_ARCH)) throw new Error(`--arch is one of ${Object.keys(DEBIAN_ARCH).join(", ")}`);
for (const made of [await programs(arch), arch === process.arch ? node() : undefined])
  if (made !== undefined) console.log(made);
