/**
 * `npm run man`: the manual pages, from the programs' tables of options; and the control socket's JSON Schema, from the
 * table of its methods.
 */
import "../shared/no-debugger.js";
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { DEVICES } from "../guest/devices/index.js";
import { tableOf } from "../guest/options.js";
import { TABLE as BRIDGE } from "../host/bridge/options.js";
import { TABLE as CHECK } from "../host/check/options.js";
import { TABLE as CTL } from "../host/ctl/options.js";
import { manPage } from "../shared/command-line/man-page.js";
import { packageVersion } from "../shared/command-line/parse.js";
import { controlSchema } from "../shared/control/methods.js";

/** Pages by the name of their file in docs/man/. */
export function manPages(): Readonly<Record<string, string>> {
  const tables = [BRIDGE, tableOf(DEVICES), CHECK, CTL];
  return Object.fromEntries(tables.map((table) => [`${table.name}.1`, manPage(table, packageVersion())]));
}

/** docs/vfio-user-control.schema.json. */
export function schemaText(): string {
  return `${JSON.stringify(controlSchema(), null, 2)}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const directory = new URL("../../docs/man/", import.meta.url);
  mkdirSync(directory, { recursive: true });
  for (const [name, text] of Object.entries(manPages())) writeFileSync(new URL(name, directory), text);
  writeFileSync(new URL("../vfio-user-control.schema.json", directory), schemaText());
}
