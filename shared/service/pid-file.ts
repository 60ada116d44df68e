/**
 * A pid file: the number of the process that serves, in a file that is locked for as long as it lives. The lock tells a
 * file that a killed process left behind from one that is in use, whatever process has that number by now.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { lockFile } from "../../native/index.js";
import { UserError } from "../errors.js";

const { O_RDWR, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants;
/** More than a number and a newline is no pid file. */
const MAX_LENGTH = 32;

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such directory",
  ENOTDIR: "what should be its directory is none",
  EACCES: "this user may not write there",
  EISDIR: "it is a directory",
  ELOOP: "it is a symbolic link",
  EROFS: "its file system is read-only",
  ENXIO: "it is a pipe or a socket",
};

export class PidFile {
  readonly #path: string;
  readonly #fd: number;

  private constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  /**
   * Takes the file, which is empty until `write`. It goes with the process.
   * @throws UserError when another process has it, when it is something else, or cannot be written
   */
  static take(path: string): PidFile {
    try {
      for (;;) {
        const file = new PidFile(path, openSync(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o644));
        if (file.#lock()) return file;
        closeSync(file.#fd);
      }
    } catch (error) {
      if (error instanceof UserError) throw error;
      const { code = "", message } = error as NodeJS.ErrnoException;
      throw new UserError(`cannot write the pid file ${path}: ${REASONS[code] ?? message}`);
    }
  }

  /** It serves from now on. @throws UserError when there is no room */
  write(pid: number): void {
    try {
      ftruncateSync(this.#fd, 0);
      writeSync(this.#fd, `${pid}\n`, 0);
    } catch (error) {
      throw new UserError(`cannot write the pid file ${this.#path}: ${(error as Error).message}`);
    }
  }

  /** Whether the locked file is still the one at the path: whoever had it may have removed it meanwhile. */
  #lock(): boolean {
    const path = this.#path;
    const status = fstatSync(this.#fd);
    const content = Buffer.alloc(MAX_LENGTH);
    const length = status.isFile() ? readSync(this.#fd, content, 0, MAX_LENGTH, 0) : MAX_LENGTH;
    const text = content.toString("latin1", 0, length);
    if (!/^\d{0,10}\s*$/.test(text) || length === MAX_LENGTH) {
      closeSync(this.#fd);
      throw new UserError(`${path} is there and is no pid file: remove it, or choose another path`);
    }
    if (!lockFile(this.#fd, false)) {
      closeSync(this.#fd);
      const whose = text.trim() === "" ? "another process" : `process ${text.trim()}`;
      throw new UserError(`the pid file ${path} is that of ${whose}, which runs: stop it, or choose another path`);
    }
    if (statSync(path, { throwIfNoEntry: false })?.ino !== status.ino) return false;
    // Also when the process ends by an error.
    process.on("exit", () => this.#remove(status.ino));
    return true;
  }

  #remove(inode: number): void {
    try {
      if (statSync(this.#path).ino === inode) unlinkSync(this.#path);
    } catch {
      // Somebody else has removed it, or its directory.
    }
  }
}
