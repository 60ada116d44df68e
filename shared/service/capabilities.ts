/**
 * What --print-capabilities prints: the form that QEMU's specification has for vhost-user back-end programs
 * (docs/interop/vhost-user.rst, "Back-end program conventions"; VHostUserBackendCapabilities). A feature is an option
 * beyond those that every back-end program has.
 */
import { optionsOf, type ProgramTable } from "../command-line/table.js";

const EVERY_PROGRAM = new Set(["socket-path", "fd", "print-capabilities", "help", "version"]);

export function capabilitiesText(table: ProgramTable, more: object = {}): string {
  const names = optionsOf(table).map(({ name }) => name);
  const features = [...names.filter((name) => !EVERY_PROGRAM.has(name)), "socket-activation"].sort();
  return `${JSON.stringify({ type: "pci", features, ...more }, null, 2)}\n`;
}
