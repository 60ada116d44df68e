/**
 * VERSION: the body of the request and of the reply, and what the two sides agree on (vfio-user, "VFIO_USER_VERSION").
 *
 * Capabilities that we do not know are ignored, as the specification wants; known ones of a wrong type are refused.
 */
import { Errno, ProtocolError } from "../errors.js";
import {
  MAX_DATA_XFER_SIZE,
  MAX_DIRTY_BITMAP_SIZE,
  MAX_DMA_MAPS,
  MAX_MESSAGE_FDS,
  MAX_VERSION_JSON_SIZE,
  MiB,
  PAGE_SIZE,
} from "../limits.js";
import { Command, VERSION_MAJOR, VERSION_MINOR, Version } from "../spec/vfio-user.js";

/** Capabilities with the specification's defaults in place of what was left out, and no more than we have use for. */
export interface Capabilities {
  readonly maxMsgFds: number;
  readonly maxDataXferSize: number;
  readonly maxDmaMaps: number;
  /** Page sizes or'ed together. */
  readonly pgsizes: number;
  readonly writeMultiple: boolean;
  readonly twinSocket: boolean;
  /** In a reply: which of the message's fds is the client's end of the twin socket; -1 when that is not said. */
  readonly twinSocketFd: number;
  /**
   * The page size and the largest bitmap, in bytes, of dirty logs. Undefined when the sender does not speak of
   * migration.
   */
  readonly migration: { readonly pgsize: number; readonly maxBitmapSize: number } | undefined;
}

export interface VersionMessage {
  readonly major: number;
  readonly minor: number;
  readonly capabilities: Capabilities;
}

export const DEFAULT_CAPABILITIES: Capabilities = {
  maxMsgFds: 1,
  maxDataXferSize: 1048576,
  maxDmaMaps: 65535,
  pgsizes: PAGE_SIZE,
  writeMultiple: false,
  twinSocket: false,
  twinSocketFd: -1,
  migration: undefined,
};

/** Stock QEMU gives up when a server wants more fds on a message than this. We take what a message can carry. */
const ANNOUNCED_MSG_FDS = 16;
const DEFAULT_MIGRATION = { pgsize: PAGE_SIZE, maxBitmapSize: 256 * MiB };
/** The largest that is understood; larger than what either side will ever get. */
const MAX_BITMAP_SIZE = 2 ** 32 - 1;

function refuse(what: string): never {
  throw new ProtocolError(`VERSION: ${what}`, Errno.EINVAL, Command.VERSION);
}

type Json = Readonly<Record<string, unknown>>;

function objectOf(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) refuse(`${name} is not an object`);
  return value as Json;
}

/** Own properties only: "constructor" and the like are no capabilities. */
function property(json: Json, name: string): unknown {
  return Object.hasOwn(json, name) ? json[name] : undefined;
}

/** Peers may announce more than anybody needs: what is above `most` is taken for it. */
function count(json: Json, name: string, least: number, most: number, otherwise: number): number {
  const value = property(json, name);
  if (value === undefined) return otherwise;
  if (!Number.isInteger(value) || (value as number) < least) refuse(`${name} is not an integer from ${least} on`);
  return Math.min(value as number, most);
}

function flag(json: Json, name: string): boolean {
  const value = property(json, name);
  if (value !== undefined && typeof value !== "boolean") refuse(`${name} is not a boolean`);
  return value === true;
}

function parseCapabilities(json: Json): Capabilities {
  const all = property(json, "capabilities");
  if (all === undefined) return DEFAULT_CAPABILITIES;
  const caps = objectOf(all, "capabilities");
  const twin = property(caps, "twin_socket");
  const twinCaps = twin === undefined ? {} : objectOf(twin, "twin_socket");
  const migration = property(caps, "migration");
  const migrationCaps = migration === undefined ? undefined : objectOf(migration, "migration");
  const defaults = DEFAULT_CAPABILITIES;
  return {
    maxMsgFds: count(caps, "max_msg_fds", 0, MAX_MESSAGE_FDS, defaults.maxMsgFds),
    maxDataXferSize: count(caps, "max_data_xfer_size", 1, MAX_DATA_XFER_SIZE, defaults.maxDataXferSize),
    maxDmaMaps: count(caps, "max_dma_maps", 0, MAX_DMA_MAPS, defaults.maxDmaMaps),
    pgsizes: count(caps, "pgsizes", 1, Number.MAX_SAFE_INTEGER, defaults.pgsizes),
    writeMultiple: flag(caps, "write_multiple"),
    twinSocket: flag(twinCaps, "supported"),
    twinSocketFd: count(twinCaps, "fd_index", 0, MAX_MESSAGE_FDS, -1),
    migration: migrationCaps && {
      pgsize: count(migrationCaps, "pgsize", 1, Number.MAX_SAFE_INTEGER, DEFAULT_MIGRATION.pgsize),
      maxBitmapSize: count(migrationCaps, "max_bitmap_size", 0, MAX_BITMAP_SIZE, DEFAULT_MIGRATION.maxBitmapSize),
    },
  };
}

/** Reads the body of a VERSION message, request or reply. @throws ProtocolError EINVAL */
export function parseVersion(bytes: Uint8Array, offset: number, length: number): VersionMessage {
  if (length < Version.size) refuse(`a body of ${length} bytes`);
  const { major, minor } = Version.view(new DataView(bytes.buffer, bytes.byteOffset + offset, length));
  if (major !== VERSION_MAJOR) refuse(`major version ${major}, spoken here is ${VERSION_MAJOR}`);
  const text = bytes.subarray(offset + Version.size, offset + length);
  if (text.length === 0) return { major, minor, capabilities: DEFAULT_CAPABILITIES };
  if (text.length > MAX_VERSION_JSON_SIZE) refuse(`version data of ${text.length} bytes`);
  if (text.at(-1) !== 0) refuse("version data does not end with a NUL");
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text.subarray(0, text.indexOf(0))));
  } catch {
    refuse("version data is not JSON");
  }
  return { major, minor, capabilities: parseCapabilities(objectOf(json, "version data")) };
}

/** The JSON that announces `capabilities`. */
function versionData(capabilities: Capabilities): string {
  const { migration, twinSocketFd } = capabilities;
  return JSON.stringify({
    capabilities: {
      max_msg_fds: capabilities.maxMsgFds,
      max_data_xfer_size: capabilities.maxDataXferSize,
      max_dma_maps: capabilities.maxDmaMaps,
      pgsizes: capabilities.pgsizes,
      write_multiple: capabilities.writeMultiple,
      ...(capabilities.twinSocket && {
        twin_socket: { supported: true, ...(twinSocketFd >= 0 && { fd_index: twinSocketFd }) },
      }),
      ...(migration && { migration: { pgsize: migration.pgsize, max_bitmap_size: migration.maxBitmapSize } }),
    },
  });
}

/** The body of a VERSION message. */
export function encodeVersion(minor: number, capabilities: Capabilities): Uint8Array {
  const fixed = Version.encode({ major: VERSION_MAJOR, minor });
  return Buffer.concat([fixed, Buffer.from(versionData(capabilities)), Buffer.alloc(1)]);
}

/** The server's answer to a client's VERSION, with what the client has as well; `twinSocketFd` as in Capabilities. */
export function encodeVersionReply(client: VersionMessage, twinSocketFd = -1): Uint8Array {
  const { migration, writeMultiple } = client.capabilities;
  return encodeVersion(Math.min(client.minor, VERSION_MINOR), {
    ...DEFAULT_CAPABILITIES,
    maxMsgFds: ANNOUNCED_MSG_FDS,
    maxDataXferSize: MAX_DATA_XFER_SIZE,
    maxDmaMaps: MAX_DMA_MAPS,
    writeMultiple,
    twinSocket: twinSocketFd >= 0,
    twinSocketFd,
    migration: migration && {
      pgsize: PAGE_SIZE,
      maxBitmapSize: Math.min(migration.maxBitmapSize, MAX_DIRTY_BITMAP_SIZE),
    },
  });
}
