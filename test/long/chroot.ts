/** A system of Debian 12 in a folder of its own, and commands in it. Wants root. */
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

const ENTER = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" sh -ec "$1"';

export class Chroot {
  readonly root = mkdtempSync(join(tmpdir(), "vfio-user-debian-"));

  /** Of one of prepareDebian's. */
  constructor(tar: string) {
    execFileSync("tar", ["-xf", tar, "-C", this.root, "--exclude=./dev/*"]);
  }

  /** Files into its /root; gives their names there. */
  put(...paths: readonly string[]): string[] {
    return paths.map((path) => {
      const name = `/root/${basename(path)}`;
      cpSync(path, join(this.root, name), { recursive: true });
      return name;
    });
  }

  /** A shell's commands, the first of which that fails ends them; the mounts that they need are gone afterwards. */
  run(commands: string): { readonly status: number | null; readonly output: string } {
    const { status, stdout, stderr } = spawnSync("unshare", ["--mount", "sh", "-ec", ENTER, this.root, commands], {
      encoding: "utf8",
      env: {
        PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
        HOME: "/root",
        LC_ALL: "C.UTF-8",
        DEBIAN_FRONTEND: "noninteractive",
      },
    });
    return { status, output: stdout + stderr };
  }

  remove(): void {
    rmSync(this.root, { recursive: true });
  }
}
