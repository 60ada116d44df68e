/**
 * The configuration file: sessions as JSON, checked against the JSON Schema that is published in docs/. What is wrong
 * in it is said in one sentence, with the line and the key. Comments are not JSON, and are none of it.
 */
import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import type { ErrorObject, ValidateFunction } from "ajv";
import type { Node, ParseError } from "jsonc-parser";
import { didYouMean } from "../../shared/command-line/suggest.js";
import { UserError } from "../../shared/errors.js";
import { KiB } from "../../shared/limits.js";
import { checkSocketPath } from "../../shared/listener.js";
import type { SocketSource } from "../../shared/service/inherited-sockets.js";
import { parseSocketGroup, parseSocketMode } from "../../shared/service/socket-access.js";
import {
  defaultName,
  findTwice,
  givenTwice,
  parseWindowSize,
  type SessionDefaults,
  type SessionSettings,
} from "./session-settings.js";

/** More than a thousand sessions have. */
const MAX_SIZE = 256 * KiB;
const SCHEMA = new URL("../../../docs/vfio-user-bridge.schema.json", import.meta.url);

/** The file as the schema has it. */
interface Settings {
  readonly "window-size"?: string;
  readonly "trust-unsealed-memory"?: boolean;
  readonly "socket-mode"?: string;
  readonly "socket-group"?: string;
}
interface SessionEntry extends Settings {
  readonly name?: string;
  readonly "socket-path"?: string;
  readonly fd?: number;
  readonly "vhost-user-socket-path"?: string;
  readonly "vhost-user-fd"?: number;
}
interface Config extends Settings {
  readonly sessions: readonly SessionEntry[];
}

type Path = readonly (string | number)[];

/** Made once, for all times that the file is read. */
let validator: ValidateFunction<Config> | undefined;

/** Reads it. @throws UserError, with exit code 2 for what is wrong in it, and 1 for a file that cannot be read */
export async function readConfig(path: string, defaults: SessionDefaults): Promise<SessionSettings[]> {
  // Loaded only where there is such a file: they take as long as the rest of the start.
  const [{ Ajv2020 }, jsonc] = await Promise.all([import("ajv/dist/2020.js"), import("jsonc-parser")]);
  const file = new ConfigFile(path, readText(path), jsonc);
  validator ??= new Ajv2020({ allErrors: true, verbose: true }).compile<Config>(
    JSON.parse(readFileSync(SCHEMA, "utf8")),
  );
  return file.sessions(validator, defaults);
}

class ConfigFile {
  readonly #path: string;
  readonly #text: string;
  readonly #jsonc: typeof import("jsonc-parser");
  readonly #tree: Node;

  constructor(path: string, text: string, jsonc: typeof import("jsonc-parser")) {
    this.#path = path;
    this.#text = text;
    this.#jsonc = jsonc;
    this.#tree = this.#parse();
    this.#refuseDuplicates(this.#tree);
  }

  sessions(validate: ValidateFunction<Config>, defaults: SessionDefaults): SessionSettings[] {
    const config: unknown = JSON.parse(this.#text);
    if (!validate(config)) throw this.#mismatch(validate.errors ?? []);
    const common = this.#settings(config, [], defaults);
    const sessions = config.sessions.map((entry, i) => this.#session(entry, ["sessions", i], common));
    const twice = findTwice(sessions);
    if (twice !== undefined) {
      const entry = config.sessions[twice.index];
      const keys = twice.isVhostUser ? ["vhost-user-socket-path", "vhost-user-fd"] : ["socket-path", "fd"];
      const key = keys.find((each) => each in entry) ?? keys[0];
      throw this.#wrong(["sessions", twice.index, key], givenTwice(twice.source));
    }
    return sessions;
  }

  #session(entry: SessionEntry, at: Path, defaults: SessionDefaults): SessionSettings {
    const vfioUser = this.#source(entry, at, "socket-path", "fd");
    const vhostUser = this.#source(entry, at, "vhost-user-socket-path", "vhost-user-fd");
    const name = entry.name ?? defaultName(vfioUser);
    return { name, vfioUser, vhostUser, ...this.#settings(entry, at, defaults) };
  }

  #source(
    entry: SessionEntry,
    at: Path,
    pathKey: "socket-path" | "vhost-user-socket-path",
    fdKey: "fd" | "vhost-user-fd",
  ): SocketSource {
    const { [pathKey]: path, [fdKey]: fd } = entry;
    if (path !== undefined && fd !== undefined) {
      throw this.#wrong([...at, fdKey], `it cannot go with "${pathKey}": one of them is enough`);
    }
    if (fd !== undefined) return { fd };
    if (path === undefined) throw this.#wrong(at, `the session needs "${pathKey}" or "${fdKey}"`);
    return this.#at([...at, pathKey], () => {
      checkSocketPath(path);
      return { path };
    });
  }

  #settings(entry: Settings, at: Path, defaults: SessionDefaults): SessionDefaults {
    const parse = <T>(key: keyof Settings & string, fallback: T, read: (text: string, option: string) => T): T => {
      const text = entry[key];
      return typeof text === "string" ? this.#at([...at, key], () => read(text, `"${key}"`)) : fallback;
    };
    return {
      windowSize: parse("window-size", defaults.windowSize, parseWindowSize),
      trustUnsealedMemory: entry["trust-unsealed-memory"] ?? defaults.trustUnsealedMemory,
      access: {
        mode: parse<number | undefined>("socket-mode", defaults.access.mode, parseSocketMode),
        group: parse<number | undefined>("socket-group", defaults.access.group, parseSocketGroup),
      },
    };
  }

  /** What a check of the command line's says, with the place in the file. */
  #at<T>(at: Path, check: () => T): T {
    try {
      return check();
    } catch (error) {
      throw error instanceof UserError ? this.#wrong(at, error.message) : error;
    }
  }

  #parse(): Node {
    const errors: ParseError[] = [];
    let tree: Node | undefined;
    try {
      tree = this.#jsonc.parseTree(this.#text, errors, { disallowComments: true, allowTrailingComma: false });
    } catch (error) {
      if (error instanceof RangeError) throw new UserError(`${this.#path}: it is nested too deeply`, 2);
      throw error;
    }
    const [first] = errors;
    if (first !== undefined || tree === undefined) {
      const words = first === undefined ? "it is empty" : this.#jsonc.printParseErrorCode(first.error);
      const what = words.replaceAll(/(?<=[a-z])[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`).toLowerCase();
      throw this.#wrongAt(first?.offset ?? 0, `it is no JSON: ${what}`);
    }
    return tree;
  }

  /** JSON.parse takes the last one, and nobody sees the other. */
  #refuseDuplicates(node: Node): void {
    const seen = new Map<string, number>();
    for (const child of node.children ?? []) {
      const [key] = child.type === "property" ? (child.children ?? []) : [];
      if (key !== undefined) {
        const before = seen.get(key.value);
        if (before !== undefined) {
          throw this.#wrongAt(key.offset, `"${plain(key.value)}" is there twice, first in line ${this.#line(before)}`);
        }
        seen.set(key.value, key.offset);
      }
      this.#refuseDuplicates(child);
    }
  }

  /** The schema's complaint that comes first in the file. */
  #mismatch(errors: readonly ErrorObject[]): UserError {
    const found = errors.map((error) => {
      const at = error.instancePath
        .split("/")
        .slice(1)
        .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"))
        .map((part) => (/^\d+$/.test(part) ? Number(part) : part));
      const key = error.keyword === "additionalProperties" ? error.params.additionalProperty : undefined;
      const place = key === undefined ? at : [...at, key];
      return { offset: this.#offset(place), place, error };
    });
    // A key that is misspelt is missing, too: what is there says more.
    const isMissing = ({ error }: { error: ErrorObject }) => Number(error.keyword === "required");
    const [{ place, error }] = found.sort((a, b) => isMissing(a) - isMissing(b) || a.offset - b.offset);
    return this.#wrong(place, complaint(error));
  }

  #wrong(at: Path, what: string): UserError {
    const key = at.map((part) => (typeof part === "number" ? `[${part}]` : `.${plain(part)}`)).join("");
    return this.#wrongAt(this.#offset(at), `${key === "" ? "" : `${key.replace(/^\./, "")}: `}${what}`);
  }

  #wrongAt(offset: number, what: string): UserError {
    return new UserError(`${this.#path}, line ${this.#line(offset)}: ${what}`, 2);
  }

  /** Of a key, or of an element; of what surrounds it where it is not. */
  #offset(at: Path): number {
    const node = this.#jsonc.findNodeAtLocation(this.#tree, [...at]);
    if (node !== undefined) return node.parent?.type === "property" ? node.parent.offset : node.offset;
    return at.length === 0 ? 0 : this.#offset(at.slice(0, -1));
  }

  #line(offset: number): number {
    return this.#text.slice(0, offset).split("\n").length;
  }
}

/** A key as it can be in a sentence, whatever it is. */
function plain(key: string): string {
  return JSON.stringify(key.slice(0, 64)).slice(1, -1);
}

/** What the schema's keyword means to a reader; the description of a value says what it has to look like. */
function complaint({ keyword, params, message, parentSchema }: ErrorObject): string {
  if (keyword === "additionalProperties") {
    const names = Object.keys(parentSchema?.properties ?? {});
    const name = String(params.additionalProperty).slice(0, 64);
    return `there is no such key${didYouMean(name, names).replace(/\?$/, "")}`;
  }
  if (keyword === "required") return `"${params.missingProperty}" is missing`;
  const { description } = parentSchema ?? {};
  if (keyword === "type") return `it must be ${/^[aeiou]/.test(params.type) ? "an" : "a"} ${params.type}`;
  return `it ${message}${typeof description === "string" ? `: ${description}` : ""}`;
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "what should be its directory is none",
  EACCES: "this user may not read it",
  EISDIR: "it is a directory",
};

function readText(path: string): string {
  let fd = -1;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const status = fstatSync(fd);
    if (!status.isFile()) throw new UserError(`cannot read ${path}: it is no regular file`);
    const bytes = Buffer.alloc(MAX_SIZE + 1);
    let length = 0;
    for (let count = -1; count !== 0 && length < bytes.length; length += count) {
      count = readSync(fd, bytes, length, bytes.length - length, null);
    }
    if (length > MAX_SIZE) {
      throw new UserError(`${path} has ${status.size} bytes, and may have ${MAX_SIZE}: is it the right file?`, 2);
    }
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, length));
  } catch (error) {
    if (error instanceof UserError) throw error;
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (code === "ERR_ENCODING_INVALID_ENCODED_DATA") throw new UserError(`${path} is no text in UTF-8`, 2);
    throw new UserError(`cannot read ${path}: ${REASONS[code] ?? message}`);
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
