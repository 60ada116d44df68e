/** What a program does to be looked at and steered: its control sockets, by its command line. */
import { Latencies } from "../histogram.js";
import { LimitedLog } from "../log.js";
import { Share } from "../turn.js";
import { ControlServer } from "./control-server.js";
import { Dispatcher, type Handlers } from "./dispatcher.js";
import { genericMethods, type ShownProgram } from "./generic-methods.js";
import { Metrics } from "./metrics/metrics.js";
import type { ControlOptions } from "./options.js";
import { Measuring } from "./sessions.js";

export class Control {
  readonly #servers: ControlServer[] = [];
  readonly #measuring: Measuring;

  #metrics: Metrics | undefined;

  /** Rejects with UserError when a socket or an address cannot be had; nothing is left open then. */
  static async open(program: ShownProgram, options: ControlOptions, own: Handlers = {}): Promise<Control> {
    const control = new Control(program, options, own);
    try {
      const { metrics } = options;
      if (metrics !== undefined) control.#metrics = await Metrics.open(program, control.#measuring, metrics);
      return control;
    } catch (error) {
      control.close();
      throw error;
    }
  }

  private constructor(program: ShownProgram, options: ControlOptions, own: Handlers) {
    this.#measuring = new Measuring(
      () => program.sessions(),
      () => new Latencies(),
    );
    // Whoever may connect can cause lines of it.
    const log = LimitedLog.of(program.log);
    const dispatcher = new Dispatcher({ ...genericMethods(program, this.#measuring), ...own }, log);
    const share = new Share();
    const { path, access, adminPath } = options;
    try {
      if (path !== undefined) this.#listen(dispatcher, { path, access, isAdmin: false, share, log });
      if (adminPath === undefined) return;
      // Its owner's alone, and root's.
      const own = { mode: undefined, group: undefined };
      this.#listen(dispatcher, { path: adminPath, access: own, isAdmin: true, share, log });
    } catch (error) {
      this.close();
      throw error;
    }
  }

  close(): void {
    for (const server of this.#servers.splice(0)) server.close();
    this.#metrics?.close();
    this.#measuring.end();
  }

  #listen(...[dispatcher, options]: ConstructorParameters<typeof ControlServer>): void {
    this.#servers.push(new ControlServer(dispatcher, options));
    options.log.info({ socket: options.path, admin: options.isAdmin }, "the control socket is there");
  }
}
