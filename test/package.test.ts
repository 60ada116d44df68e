/**
 * The package as its users have it: packed, unpacked beside nothing but what it depends on, and used by modules that
 * are compiled against its types alone. All code of the README, of docs/writing-a-device.md and of docs/client.md is
 * among them.
 */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const directory = mkdtempSync(join(tmpdir(), "package-"));
const installed = join(directory, "node_modules");
let tarball = "";
test.after.always(() => rmSync(directory, { recursive: true }));

interface Manifest {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly bin: Readonly<Record<string, string>>;
}

/** Puts a module of ours, and all that it depends on, where node finds it; there is no other in there. */
function link(name: string): void {
  const target = join(installed, name);
  mkdirSync(dirname(target), { recursive: true });
  try {
    symlinkSync(join(ROOT, "node_modules", name), target);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return;
    throw error;
  }
  const { dependencies = {} }: Manifest = JSON.parse(read(join("node_modules", name, "package.json")));
  for (const each of Object.keys(dependencies)) link(each);
}

test.before(() => {
  const packed = execFileSync("npm", ["pack", "--silent", "--pack-destination", directory], {
    cwd: ROOT,
    encoding: "utf8",
  });
  tarball = join(directory, packed.trim());
  execFileSync("tar", ["-xzf", tarball], { cwd: directory });
  mkdirSync(installed);
  cpSync(join(directory, "package"), join(installed, "virtio-vfio-user"), { recursive: true });
  const { dependencies = {} }: Manifest = JSON.parse(read("package.json"));
  for (const name of Object.keys(dependencies)) link(name);
  writeFileSync(join(directory, "package.json"), JSON.stringify({ type: "module" }));
});

/** Compiles files beside the installed package; `types` are the ambient ones. */
function compile(name: string, files: Readonly<Record<string, string>>, types: readonly string[] = []): string {
  const project = join(directory, name);
  mkdirSync(project);
  for (const [file, source] of Object.entries(files)) writeFileSync(join(project, file), source);
  const compilerOptions = {
    target: "es2023",
    lib: ["es2023"],
    module: "nodenext",
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: false,
    types,
    outDir: "out",
  };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["*.ts"] }));
  try {
    execFileSync(join(ROOT, "node_modules/.bin/tsc"), ["-p", project], { encoding: "utf8" });
  } catch (error) {
    throw new Error((error as { stdout: string }).stdout);
  }
  return join(project, "out");
}

/** The code of a page, by language. */
function blocks(page: string, language: string): string[] {
  return [...read(page).matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "gms"))].map(([, code]) => code);
}

const [readme, ...others] = blocks("README.md", "ts");
const guide = blocks("docs/writing-a-device.md", "ts");
const EDU = "guest/devices/edu/index.ts";

test("the README's device compiles against the package's types, with nothing else there, and runs", async (t) => {
  t.deepEqual(others, []);
  const out = compile("readme", { "byte-sum.ts": readme });
  const socket = join(directory, "sum.sock");
  const program = join(installed, "virtio-vfio-user/build/guest/main.js");
  const child = spawn(process.execPath, [program, "run", join(out, "byte-sum.js"), "--socket-path", socket], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.teardown(() => child.kill("SIGKILL"));
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    log += text;
  });
  while (!log.includes("the device is ready") && child.exitCode === null) await once(child.stderr, "data");
  t.regex(log, /the device is ready/);
});

test("the guide's code is edu's, and compiles, or uses the client, and runs; so does docs/client.md's", async (t) => {
  const source = read(EDU);
  const rest = guide.filter((code) => !source.includes(code));
  t.is(rest.length, 2, rest.join("\n"));
  const edu = source.replace(/^import .* from "(\.\.\/)+.*;\n/gm, "");
  const imports = 'import { type Device, type DeviceContext, inBounds, pair, RegisterFile } from "virtio-vfio-user";\n';
  const made = "export default () => createEdu();\n";
  const socket = join(directory, "edu.sock");
  t.true(rest[0].includes("/run/edu.sock"));
  link("@types/node");
  const test = rest[0].replace("/run/edu.sock", socket);
  const served = `import create from "./edu.js";\n${rest[1]}console.log(await test(create()));\n`;
  const files = { "edu.ts": imports + edu + made, "test.ts": test, "served.ts": served };
  const out = compile("guide", files, ["node"]);
  t.regex(execFileSync(process.execPath, [join(out, "served.js")], { encoding: "utf8" }), /\[ 52, 18, 232, 17 \]/);
  const program = join(installed, "virtio-vfio-user/build/guest/main.js");
  const child = spawn(process.execPath, [program, "run", join(out, "edu.js"), "--socket-path", socket], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.teardown(() => child.kill("SIGKILL"));
  await once(child.stderr, "data");
  t.regex(execFileSync(process.execPath, [join(out, "test.js")], { encoding: "utf8" }), /254, 253, 252, 251/);
  const [client, ...others] = blocks("docs/client.md", "ts");
  t.deepEqual(others, []);
  const driver = compile("client", { "client.ts": client.replace("/run/edu.sock", socket) }, ["node"]);
  t.is(execFileSync(process.execPath, [join(driver, "client.js")], { encoding: "utf8" }), "there and back 1\n");
});

test("the guide to virtio devices has virtio-rng as it is, and it compiles", (t) => {
  const [code, ...others] = blocks("docs/writing-a-virtio-device.md", "ts");
  t.deepEqual(others, []);
  const source = read("guest/devices/rng/index.ts").replace("DeviceId.ENTROPY", "4");
  const strip = (text: string) => text.replace(/^import .*;$\n/gm, "").replace(/^\/\*\*\n( \*.*\n)+ \*\/\n/, "");
  t.is(strip(code).trim(), strip(source).trim());
  t.notThrows(() => compile("virtio", { "rng.ts": code }, ["node"]));
});

test("the guide's declarations compile, and what else the package exports", (t) => {
  const parts = blocks("docs/writing-a-device.md", "js");
  t.is(parts.length, 2);
  const [bars, regions] = parts;
  const source = `
    import { type Device, type DeviceRegion, FIRST_DEVICE_REGION, type Log } from "virtio-vfio-user";
    import { type PciIdentity, RegisterFile } from "virtio-vfio-user";
    import { Client, type ClientOptions, createMemory, Errno } from "virtio-vfio-user/client";
    import { eventfd, Irq, ProtocolError } from "virtio-vfio-user/client";
    export const identity: Pick<PciIdentity, "bars"> = {\n${bars}};
    export const own: Pick<Device, "regions" | "registers"> = {
      registers: { [FIRST_DEVICE_REGION]: new RegisterFile(4, {}) },\n${regions}};
    export const region: DeviceRegion | undefined = own.regions?.[0];
    export function log(to: Log): void {
      to.warn({ region: 9 }, "a line");
      to.info("another");
    }
    export async function interrupts(options: ClientOptions): Promise<number> {
      const client = await Client.connect("/nowhere", options);
      await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [eventfd(0)] });
      await client.mapMemory({ address: 0, size: 4096, fd: createMemory("test", 4096, false) });
      return new ProtocolError("", Errno.EINVAL).errno;
    }`;
  t.notThrows(() => compile("rest", { "rest.ts": source }));
});

test("publint and attw find nothing wrong with it", (t) => {
  const bin = (name: string, ...args: string[]) =>
    execFileSync(join(ROOT, "node_modules/.bin", name), [tarball, ...args], { encoding: "utf8" });
  t.regex(bin("publint", "--strict"), /All good!/);
  // Only require() of a CommonJS module and TypeScript's oldest resolution cannot: they cannot with any ES module.
  t.notThrows(() => bin("attw", "--profile", "esm-only"));
});

test("on a platform for which nothing was compiled it says so, in one sentence", (t) => {
  const script = `
    Object.defineProperty(process, "arch", { value: "riscv64" });
    await import("virtio-vfio-user/client").catch((error) => console.log(error.message));`;
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
    cwd: directory,
    encoding: "utf8",
  });
  const where = "virtio-vfio-user's addon cannot be loaded on linux-riscv64";
  t.regex(said, new RegExp(`^${where}: it was built for (linux-arm64 and )?linux-x64\\. Build`));
});

test("each program of the package says what it is for, from where it is installed", (t) => {
  const { bin }: Manifest = JSON.parse(read("package.json"));
  for (const [name, path] of Object.entries(bin)) {
    const program = join(installed, "virtio-vfio-user", path);
    t.regex(
      execFileSync(process.execPath, [program, "--help"], { encoding: "utf8" }),
      new RegExp(`^usage: ${name}`, "i"),
    );
  }
});
