/** Metrics and the status page, as a program has them: their thread, which is given a snapshot whenever it asks. */
import { Worker } from "node:worker_threads";
import { UserError } from "../../errors.js";
import type { Log } from "../../log.js";
import type { ShownProgram } from "../generic-methods.js";
import type { MetricsOptions } from "../options.js";
import type { Measuring } from "../sessions.js";
import { takeSnapshot } from "./snapshot.js";
import type { FromWorker, WorkerData } from "./worker.js";

const WORKER = new URL("worker.js", import.meta.url);
const REASONS: Readonly<Record<string, string>> = {
  EADDRINUSE: "another process has this port",
  EACCES: "this user may not have that port: take one above 1023",
  EADDRNOTAVAIL: "this machine has no such address",
};

export class Metrics {
  readonly #worker: Worker;

  private constructor(worker: Worker) {
    this.#worker = worker;
  }

  /** Rejects with UserError when the address cannot be had. */
  static async open(program: ShownProgram, measuring: Measuring, options: MetricsOptions): Promise<Metrics> {
    const { address, port, hosts } = options;
    const workerData: WorkerData = { address, port, hosts };
    const worker = new Worker(WORKER, { workerData, name: "metrics", execArgv: [] });
    const where = address.includes(":") ? `[${address}]` : address;
    await new Promise<void>((resolve, reject) => {
      worker.on("message", (message: FromWorker) => {
        if (message === undefined) worker.postMessage(takeSnapshot(program, measuring));
        else if ("failed" in message) {
          const { failed } = message;
          reject(new UserError(`--metrics ${where}:${port}: ${REASONS[failed] ?? failed}`));
        } else {
          program.log.info({ address: `http://${where}:${message.port}/` }, "metrics are there");
          resolve();
        }
      });
      worker.on("error", (error) => {
        reject(error);
        report(program.log, error);
      });
    }).catch(async (error) => {
      await worker.terminate();
      throw error;
    });
    // Nothing waits for it at the end.
    worker.unref();
    return new Metrics(worker);
  }

  close(): void {
    void this.#worker.terminate();
  }
}

function report(log: Log, error: Error): void {
  log.error({ err: error }, "metrics are not there any more");
}
