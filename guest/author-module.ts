/** A device of a user's own: the module that makes it, loaded by its path. */
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
  let module: { default?: unknown };
  try {
    module = await import(pathToFileURL(resolve(path)).href);
  } catch (error) {
    throw new UserError(`cannot load the device ${path}: ${placeOf(error)}`, 1, { cause: error });
  }
  const create = defaultOf(module);
  if (typeof create === "function") return create as DeviceFactory;
  const what =
    create === undefined ? "has no default export" : `has a default export that is no function (${typeof create})`;
  throw new UserError(
    `${path} ${what}: it must be a function that returns the device; see the README's "Write a device"`,
  );
}

/** What TypeScript compiled to CommonJS has its default export in the default that Node gives it. */
function defaultOf(module: { default?: unknown }): unknown {
  const { default: value } = module;
  const isCompiled = typeof value === "object" && value !== null && "__esModule" in value;
  return isCompiled ? (value as { default?: unknown }).default : value;
}
