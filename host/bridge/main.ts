#!/usr/bin/env node
/** vfio-user-bridge: reads the command line, runs the bridge until a signal, cleans up. */
import "../../shared/no-debugger.js";
import { once } from "node:events";
import { execute, HOLDER } from "../../native/supervision.js";
import { helpText } from "../../shared/command-line/help.js";
import { versionText } from "../../shared/command-line/parse.js";
import { Control } from "../../shared/control/control.js";
import { bridgeMethods } from "../../shared/control/generic-methods.js";
import { isSystemError, UserError } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { Program } from "../../shared/program.js";
import { capabilitiesText } from "../../shared/service/capabilities.js";
import { InheritedSockets } from "../../shared/service/inherited-sockets.js";
import { Service } from "../../shared/service/service.js";
import { Bridge } from "./bridge.js";
import { readConfig } from "./config.js";
import { activatedSessions, type BridgeOptions, parseOptions, TABLE } from "./options.js";
import type { SessionSettings } from "./session-settings.js";

const TEXTS = { capabilities: capabilitiesText, help: helpText, version: () => versionText(TABLE.name) };

/** A bridge that lives so long does not die of the state that it took over. */
const SERVES_AFTER_MS = 30;

async function main(program: Program): Promise<number> {
  const args = process.argv.slice(2);
  const options = parseOptions(args);
  if (typeof options === "string") {
    process.stdout.write(TEXTS[options](TABLE));
    return 0;
  }
  if (options.supervised) becomeSupervisor(args);
  const inherited = new InheritedSockets();
  const log = await program.openLog(options.service.log);
  const service = new Service(options.service, log);
  const bridge = new Bridge(inherited, log);
  let changes = Promise.resolve();
  let isWanted = false;
  // One after the other, and behind the start; what is asked for once more before it begins is the same.
  const reload = () => {
    if (isWanted) return;
    isWanted = true;
    changes = changes.then(async () => {
      isWanted = false;
      if (!end.aborted) await reloadSessions(bridge, options, service, log);
    });
  };
  const end = program.endSignal(isReloadable(options) ? reload : undefined);
  program.showState(log, () => bridge.inspect());
  const start = open(bridge, options, inherited);
  changes = start.then(
    () => {},
    () => {},
  );
  await start;
  // Last of all: VMs do not wait for whoever looks at them.
  const shown = { name: TABLE.name, sessions: () => bridge.shown, log, recent: program.recent };
  const control = await Control.open(shown, options.control, bridgeMethods(shown)).catch(async (error) => {
    await bridge.close();
    throw error;
  });
  service.ready(statusOf(bridge));
  setTimeout(() => bridge.serves(), SERVES_AFTER_MS).unref();
  const served = options.service.once ? bridge.servedOnce(end) : new Promise<false>(() => {});
  const ended = end.aborted ? Promise.resolve() : once(end, "abort");
  const isServed = await Promise.race([served, ended.then(() => false)]);
  service.stopping();
  log.info(isServed ? { reason: "--once" } : { signal: end.reason }, "ending");
  await changes;
  control.close();
  await bridge.close();
  return 0;
}

async function open(bridge: Bridge, options: BridgeOptions, inherited: InheritedSockets): Promise<void> {
  const { sessions, defaults } = options;
  if (sessions !== "activation" && inherited.hasNamed() && !usesFds(sessions)) {
    const what = "sockets were handed down (LISTEN_FDS), and others are given";
    throw new UserError(`${what}: leave out the one or the other`, 2);
  }
  if (sessions === "activation") await bridge.open(activatedSessions(inherited, defaults));
  else await bridge.open("config" in sessions ? await readConfig(sessions.config, defaults) : sessions);
}

/** Of a file it is not known yet. */
function usesFds(sessions: readonly SessionSettings[] | { readonly config: string }): boolean {
  return "config" in sessions || sessions.some(({ vfioUser, vhostUser }) => "fd" in vfioUser || "fd" in vhostUser);
}

function isReloadable({ sessions }: BridgeOptions): boolean {
  return typeof sessions === "object" && "config" in sessions;
}

async function reloadSessions(bridge: Bridge, options: BridgeOptions, service: Service, log: Log): Promise<void> {
  const { sessions, defaults } = options;
  if (sessions === "activation" || !("config" in sessions)) return;
  const { config } = sessions;
  try {
    const { failed, ...change } = await bridge.change(await readConfig(config, defaults));
    for (const each of failed) log.error({ config, ...each }, "a session cannot be changed, and is not served");
    log.info({ config, ...change }, "the configuration was read again");
  } catch (error) {
    if (!(error instanceof UserError || isSystemError(error))) throw error;
    log.error({ config, reason: error.message, sessions: bridge.sessions }, "the configuration is not used");
  }
  service.status(statusOf(bridge));
}

function statusOf({ sessions }: Bridge): string {
  return sessions === 1 ? "serving one session" : `serving ${sessions} sessions`;
}

/** This very process becomes the bridge's parent, so that who started it keeps the process that it knows. */
function becomeSupervisor(args: readonly string[]): never {
  const others = args.filter((one) => one !== "--supervised");
  try {
    return execute(HOLDER, [process.execPath, ...process.execArgv, process.argv[1], ...others]);
  } catch (error) {
    if (!isSystemError(error)) throw error;
    throw new UserError(`--supervised: ${HOLDER} cannot be started (${error.code})`);
  }
}

Program.run(TABLE.name, main);
