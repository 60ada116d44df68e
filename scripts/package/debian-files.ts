/** What the Debian packages have that is no file of the project: control data, maintainer scripts, copyright. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { hostname, userInfo } from "node:os";
import { join } from "node:path";

export interface Control {
  readonly name: string;
  readonly version: string;
  readonly arch: string;
  readonly section: string;
  readonly depends: string;
  /** More fields, a line each. */
  readonly more: readonly string[];
  readonly synopsis: string;
  /** Paragraphs. */
  readonly description: readonly string[];
}

type Fixed = Omit<Control, "version" | "arch">;

export const PROGRAMS: Fixed = {
  name: "virtio-vfio-user",
  section: "admin",
  // The addon is built against the C library of Debian 12.
  depends: "libc6 (>= 2.34), passwd, nodejs (>= 20.19) | virtio-vfio-user-node",
  more: ["Suggests: qemu-system-x86 (>= 1:11.1)"],
  synopsis: "PCI devices in VMs of their own, with stock QEMU on both sides",
  description: [
    "A PCI device (a disk, a NIC, an accelerator model) in a VM of its own, apart from the VM that uses it: the " +
      "bridge speaks vfio-user to the QEMU of the one and vhost-user to the QEMU of the other, and a library runs " +
      "the device's logic as an ordinary process. An NVMe controller comes with it.",
    "This has the bridge (vfio-user-bridge), the devices (vfio-user-device), a checker for vfio-user servers " +
      "(vfio-user-check), units for systemd, and descriptions for management software.",
  ],
};

export const NODE: Fixed = {
  name: "virtio-vfio-user-node",
  section: "javascript",
  depends: "libc6 (>= 2.28), libgcc-s1, libstdc++6",
  more: ["Enhances: virtio-vfio-user"],
  synopsis: "Node.js for virtio-vfio-user where the system's own is too old",
  description: [
    "virtio-vfio-user needs Node.js 20.19 or newer, which Debian has from version 13 on. This is one for its " +
      "programs alone, on systems without: nothing else uses it, and it is not in PATH.",
  ],
};

/** Who makes the package, as Debian's own tools have it said. */
function maintainer(): string {
  const { DEBFULLNAME = "virtio-vfio-user", DEBEMAIL = `${userInfo().username}@${hostname()}` } = process.env;
  return `${DEBFULLNAME} <${DEBEMAIL}>`;
}

/** Lines of at most 79 columns, as control files have them. */
function wrapped(text: string): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines[lines.length - 1].length + word.length > 76) lines.push("");
    lines[lines.length - 1] += ` ${word}`;
  }
  return lines.join("\n");
}

export function control(of: Control, installedKib: number): string {
  return [
    `Package: ${of.name}`,
    `Version: ${of.version}`,
    `Architecture: ${of.arch}`,
    `Maintainer: ${maintainer()}`,
    `Installed-Size: ${installedKib}`,
    `Depends: ${of.depends}`,
    ...of.more,
    `Section: ${of.section}`,
    "Priority: optional",
    `Description: ${of.synopsis}`,
    of.description.map(wrapped).join("\n .\n"),
    "",
  ].join("\n");
}

/** In place of a link: the programs look for node in PATH, where the one of the other package is not. */
export function launcher(lib: string, main: string): string {
  return `#!/bin/sh
node=${lib}/node
[ -x "$node" ] || node=/usr/bin/node
exec "$node" ${lib}/${main} "$@"
`;
}

/** systemd finds new units by itself, but not that one has changed or is gone. Services go on: VMs hang by them. */
export const POSTRM = `#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
  systemctl --system daemon-reload >/dev/null || :
fi
`;

/** The bridge's user stays when the package goes, as its files may. */
export const POSTINST = `#!/bin/sh
set -e
if ! getent passwd vfio-user >/dev/null; then
  useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vfio-user
fi
${POSTRM.slice(POSTRM.indexOf("if"))}`;

export const PRERM = `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl stop 'vfio-user-*' >/dev/null 2>&1 || :
fi
`;

export const OVERRIDES = `# All of a template's instances, by a pattern, which deb-systemd-invoke does not know.
virtio-vfio-user: maintainer-script-calls-systemctl *
# The node that is the program's own where there is one.
virtio-vfio-user: unusual-interpreter *
`;

export const NODE_OVERRIDES = `# Node.js's own build has them inside, and is what its authors test.
virtio-vfio-user-node: embedded-library *
virtio-vfio-user-node: hardening-no-pie *
`;

/** Seconds since the epoch: of the last commit, or as SOURCE_DATE_EPOCH says. */
export function releaseTime(root: string): number {
  const given = process.env.SOURCE_DATE_EPOCH;
  if (given !== undefined) return Number(given);
  try {
    return Number(execFileSync("git", ["log", "-1", "--format=%ct"], { cwd: root, encoding: "utf8" }));
  } catch {
    return Math.floor(Date.now() / 1000); // no clone
  }
}

export function changelog(root: string, name: string, version: string): string {
  const date = new Date(releaseTime(root) * 1000).toUTCString().replace("GMT", "+0000");
  return `${name} (${version}) unstable; urgency=medium\n\n  * Version ${version}.\n\n -- ${maintainer()}  ${date}\n`;
}

const FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/";

const APACHE = [" On Debian systems the text is in /usr/share/common-licenses/Apache-2.0."];

/** Ours, and that of each package that comes along, with the text of its licence as it has it. */
export function copyright(dependencies: ReadonlyMap<string, string>): string {
  const ours = [
    FORMAT,
    "Upstream-Name: virtio-vfio-user",
    "",
    "Files: *",
    "Copyright: the authors of virtio-vfio-user",
    "License: Apache-2.0",
    "",
    "License: Apache-2.0",
    ...APACHE,
  ];
  const theirs = [...dependencies].flatMap(([name, path]) => {
    const { license } = JSON.parse(readFileSync(join(path, "package.json"), "utf8")) as { license: string };
    const text = licenceText(path);
    const holders = text.split("\n").filter((line) => /^\s*(?:Copyright )?(?:\(c\)|©)|^\s*Copyright /i.test(line));
    const holder = holders[0]?.trim().replace(/^copyright\s*/i, "") ?? "its authors";
    const short = `${license}-${name.replaceAll(/[^a-z0-9.]+/gi, "-").replace(/^-/, "")}`;
    return [
      "",
      `Files: usr/lib/virtio-vfio-user/node_modules/${name}/*`,
      `Copyright: ${holder}`,
      `License: ${short}`,
      ...(license === "Apache-2.0" ? APACHE : paragraph(text === "" ? `As its package.json says: ${license}.` : text)),
    ];
  });
  return `${[...ours, ...theirs].join("\n")}\n`;
}

function licenceText(path: string): string {
  const file = readdirSync(path).find((name) => /^licen[cs]e(\.|$)/i.test(name));
  return file === undefined ? "" : readFileSync(join(path, file), "utf8").trim();
}

/** A text as a field's continuation. */
function paragraph(text: string): string[] {
  return text.split(/\r?\n/).map((line) => (line.trim() === "" ? " ." : ` ${line.trimEnd()}`));
}

/** Node.js's own text, as this machine was given it; undefined where it was not. */
export function nodeLicence(): string | undefined {
  const places = ["/usr/share/doc/nodejs/LICENSE", join(process.execPath, "../../LICENSE")];
  const place = places.find((path) => existsSync(path));
  return place === undefined ? undefined : readFileSync(place, "utf8");
}

export const NODE_COPYRIGHT = [
  FORMAT,
  "Upstream-Name: Node.js",
  "Source: https://nodejs.org",
  "",
  "Files: *",
  "Copyright: 2009-2026 Node.js contributors, and the authors of what is inside",
  "License: Node",
  " MIT, and those of what is inside: LICENSE.gz beside this file where the machine that made the package had it, and",
  " in any case https://github.com/nodejs/node/blob/main/LICENSE.",
  "",
].join("\n");
