/** What a demonstration leaves behind, and that it does not. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UserError } from "../../shared/errors.js";

/** Ends what was started, last first, once; each end is tried even when another failed. */
export class Cleanup {
  readonly #ends: Array<() => unknown> = [];
  #running: Promise<void> | undefined;

  /** Registers an end. When the clean-up has begun already, it is run at once. */
  add(end: () => unknown): void {
    if (this.#running === undefined) this.#ends.push(end);
    else void Promise.resolve(end()).catch(report);
  }

  get started(): boolean {
    return this.#running !== undefined;
  }

  run(): Promise<void> {
    this.#running ??= this.#runAll();
    return this.#running;
  }

  async #runAll(): Promise<void> {
    for (const end of this.#ends.reverse())
      try {
        await end();
      } catch (error) {
        report(error);
      }
  }
}

/** A directory for disks and sockets, which goes at the end. @throws UserError */
export async function temporaryDirectory(cleanup: Cleanup): Promise<string> {
  let directory: string;
  try {
    directory = await mkdtemp(join(tmpdir(), "vfio-user-"));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new UserError(`no directory can be made in ${tmpdir()} (${code}): say by TMPDIR where there is room`);
  }
  cleanup.add(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function report(error: unknown): void {
  console.error("clean-up:", error);
}
