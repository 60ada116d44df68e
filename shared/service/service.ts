/**
 * A program as a service: what it tells whoever manages it, from its start to its end. In this folder: options.ts, the
 * command line that services have in common; inherited-sockets.ts and socket-access.ts, their sockets; pid-file.ts;
 * capabilities.ts, what they say that they can do.
 */
import type { Log } from "../log.js";
import { Notifier } from "../notify/notifier.js";
import type { ServiceOptions } from "./options.js";
import { PidFile } from "./pid-file.js";

export class Service {
  readonly #notifier = Notifier.ofProcess();
  readonly #pidFile: PidFile | undefined;
  readonly #log: Log;
  #watchdog: NodeJS.Timeout | undefined;

  /** @throws UserError when the pid file cannot be had */
  constructor({ pidFile }: ServiceOptions, log: Log) {
    this.#log = log;
    this.#pidFile = pidFile === undefined ? undefined : PidFile.take(pidFile);
    this.#startWatchdog();
  }

  /** It serves from now on. @throws UserError when the pid file cannot be written */
  ready(status: string): void {
    this.#pidFile?.write(process.pid);
    void this.#notifier?.status(status);
    void this.#notifier?.ready();
  }

  /** What it does now, in one line. */
  status(text: string): void {
    void this.#notifier?.status(text);
  }

  stopping(): void {
    clearInterval(this.#watchdog);
    void this.#notifier?.stopping();
  }

  /** As long as the event loop goes round, twice as often as is asked for. */
  #startWatchdog(): void {
    const notifier = this.#notifier;
    const period = Notifier.watchdogPeriod();
    if (notifier === undefined || period === undefined) return;
    let isPending = false;
    const tell = async () => {
      if (isPending) return;
      isPending = true;
      await notifier.watchdog();
      isPending = false;
    };
    this.#watchdog = setInterval(() => void tell(), Math.max(1, Math.min(period / 2, 2 ** 31 - 1)));
    this.#log.debug({ periodMs: period }, "a watchdog is told that the event loop goes round");
    void tell();
  }
}
