/**
 * The guests' first process: a shell script that mounts what every program expects, loads the modules, runs the lines
 * it was given, and then powers off, takes commands from the console, or has a shell there for a person. For programs
 * it reports by lines that begin with "@@":
 *
 *     @@booted           all is mounted and loaded
 *     @@failed WHAT      a module did not load
 *     @@done STATUS      the last of the lines has ended with that status
 *     @@ready            commands are taken
 *     @@end N STATUS     command number N has ended with that status (Vm.run waits for it)
 */
import type { Entry } from "./cpio.js";

interface InitOptions {
  /** Shell lines; the first that fails ends them. Not in front of a shell. */
  readonly lines?: readonly string[];
  /**
   * What follows: the power goes off, Vm.run's commands are taken from the console, or a shell until somebody leaves
   * it.
   */
  readonly afterwards: "poweroff" | "commands" | "shell";
  /** The shell's prompt says it. */
  readonly hostname?: string;
}

const PROLOGUE = `#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
ip link set lo up
`;

const LOAD_AND_REPORT = `stty -echo
while read -r module; do
  insmod "/modules/$module" || echo "@@failed $module"
done </modules/order
echo "@@booted"
sh -e /lines </dev/null
echo "@@done $?"
`;

/** With a terminal of its own, so that Ctrl-C ends what runs in it. */
const SHELL = `while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir -p /mnt
cd /root
export PS1='\\h# '
setsid cttyhack sh
`;

const COMMANDS = `echo "@@ready"
while read -r number command; do
  echo "$command" | base64 -d >"/tmp/command-$number"
  sh "/tmp/command-$number" </dev/null
  echo "@@end $number $?"
  rm -f "/tmp/command-$number"
done
`;

const POWEROFF = `sync
poweroff -f
`;

/** The files of the guest's first process, to go into the run's part of the initramfs. */
export function initScript(options: InitOptions): Entry[] {
  const { lines = [], afterwards, hostname = "vm" } = options;
  const work = {
    poweroff: LOAD_AND_REPORT,
    commands: LOAD_AND_REPORT + COMMANDS,
    shell: `hostname ${hostname}\n${SHELL}`,
  }[afterwards];
  return [
    { path: "/init", data: PROLOGUE + work + POWEROFF, mode: 0o755 },
    { path: "/lines", data: `${lines.join("\n")}\n` },
  ];
}
