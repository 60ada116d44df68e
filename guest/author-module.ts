/** A device of a user's own: the module that makes it, loaded by its path. */
import { statSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { UserError } from "../shared/errors.js";
import { placeOf } from "./author-error.js";
import type { Device } from "./device.js";

/** What the module exports as its default; it is given every --name=value that is not the program's. */
type DeviceFactory = (values: Readonly<Record<string, string | undefined>>) => Device | Promise<Device>;

/** @throws UserError when the module is not there, or makes no device */
export async function createOwnDevice(
  path: string,
  values: Readonly<Record<string, string | undefined>>,
): Promise<Device> {
  const create = await importFactory(path);
  if (/^class\b/.test(Function.prototype.toString.call(create))) {
    throw new UserError(`${path} has a class as its default export: export a function that returns one (new ...)`);
  }
  let device: Device;
  try {
    device = await create(values);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`${path} does not make its device: ${placeOf(error)}`, 1, { cause: error });
  }
  if (typeof device === "object" && device !== null) return device;
  throw new UserError(
    `${path} makes no device: its default export returned ${device === null ? "null" : typeof device}`,
  );
}

async function importFactory(path: string): Promise<DeviceFactory> {
  const status = statSync(path, { throwIfNoEntry: false });
  if (status === undefined) throw new UserError(`cannot load the device ${path}: there is no such file`);
  if (status.isDirectory()) throw new UserError(`cannot load the device ${path}: it is a directory, not a module`);
  let module: { default?: unknown };
  try {
    module = await import(pathToFileURL(resolve(path)).href);
  } catch (error) {
    const isTypeScript =
      (error as NodeJS.ErrnoException).code === "ERR_UNKNOWN_FILE_EXTENSION" && /\.[cm]?ts$/.test(path);
    const help = `Node ${process.version} runs no TypeScript: compile it (tsc), and give the .js file`;
    throw new UserError(`cannot load the device ${path}: ${isTypeScript ? help : placeOf(error)}`, 1, { cause: error });
  }
  const create = defaultOf(module);
  if (typeof create === "function") return create as DeviceFactory;
  const what =
    create === undefined ? "has no default export" : `has a default export that is no function (${typeof create})`;
  throw new UserError(
    `${path} ${what}: it must be a function that returns the device; see the README's "Write a device"`,
  );
}

/** A CommonJS module, such as TypeScript may have made, has its `exports.default` in the default that Node gives it. */
function defaultOf(module: { default?: unknown }): unknown {
  const { default: value } = module;
  const isCommonJs = typeof value === "object" && value !== null && ("__esModule" in value || "default" in value);
  return isCommonJs ? (value as { default?: unknown }).default : value;
}
