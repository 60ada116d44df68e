/**
 * To be imported first by every program of ours: SIGUSR1 opens no debugger, which Node does in a process that does not
 * handle it. A program that handles it does so beside this. One that was opened before this ran (Node has started by
 * then) is closed, unless it was asked for on the command line.
 *
 * Left out: the tenth of a second before that. `node --disable-sigusr1` closes it, from Node 22.14 on; Node 20 refuses
 * to start with that option, so no shebang line can have it. Who may send the signal may do anything to the process.
 */
import { close, url } from "node:inspector";

// Never removed: without any handler the signal would end the process.
process.on("SIGUSR1", () => {});

const OPTION = /--inspect(-brk|-wait)?(=|\s|$)/;
const asked = [...process.execArgv, process.env.NODE_OPTIONS ?? ""].some((options) => OPTION.test(options));

function closeDebugger(): void {
  if (!asked && url() !== undefined) close();
}

closeDebugger();
// A signal that came just before the handler opens it only now.
setImmediate(closeDebugger);
