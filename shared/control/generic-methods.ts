/** The methods that every program has, over what it shows of its sessions. */
import { packageVersion } from "../command-line/parse.js";
import { didYouMean } from "../command-line/suggest.js";
import { UserError } from "../errors.js";
import { LEVELS, type Level, type ProgramLog } from "../log.js";
import type { RecentLines } from "../recent-lines.js";
import { Command } from "../spec/vfio-user.js";
import type { Handlers } from "./dispatcher.js";
import type { Measuring, ShownSession } from "./sessions.js";
import type { Params } from "./table.js";

/** What a program gives for all of it. */
export interface ShownProgram {
  readonly name: string;
  sessions(): readonly ShownSession[];
  readonly log: ProgramLog;
  readonly recent: RecentLines;
}

const NS_PER_US = 1000;
const NAMES = new Map(Object.entries(Command).map(([name, number]) => [number as number, name]));

/** A command's name in the specification. */
export const commandName = (number: number): string => NAMES.get(number) ?? `command ${number}`;

/** What only a bridge has. */
export function bridgeMethods(program: ShownProgram): Handlers {
  const of = (params: Params) => chosen(program.sessions(), params);
  return {
    doorbells: (params) => of(params).map((each) => ({ session: each.name, state: each.doorbells?.() ?? null })),
    rings: (params) => of(params).map((each) => ({ session: each.name, state: each.rings?.() ?? null })),
  };
}

export function genericMethods(program: ShownProgram, measuring: Measuring): Handlers {
  const of = (params: Params) => chosen(program.sessions(), params);
  return {
    version: () => ({
      program: program.name,
      version: packageVersion(),
      node: process.version,
      pid: process.pid,
      uptimeSeconds: Math.round(process.uptime()),
    }),
    sessions: () => program.sessions().map((each) => ({ name: each.name, ...each.overview() })),
    maps: (params) =>
      of(params).map((each) => ({ session: each.name, maps: each.overview().maps, first: each.maps() })),
    counts: (params) =>
      of(params).map((each) => ({ session: each.name, counts: each.counts(), commands: commandsOf(each) })),
    latency: (params) => latenciesOf(of(params), measuring),
    inspect: (params) => inspectAll(of(params)),
    warnings: () => program.recent.lines,
    "log-level": () => ({ level: program.log.level }),
    "set-log-level": ({ level }) => {
      program.log.level = LEVELS.find((each) => each === level) ?? (program.log.level as Level);
      return { level: program.log.level };
    },
    disconnect: (params) => {
      const [session, ...others] = of(params);
      if (others.length > 0) throw new UserError(`several sessions are called ${session.name}: give them names`);
      if (session.disconnect === undefined) throw notItsClient(session);
      return { session: session.name, done: session.disconnect() };
    },
    drain: (params) =>
      of(params).map((each) => {
        if (each.drain === undefined) throw notItsClient(each);
        each.drain(params.off !== true);
        const { draining, client } = each.overview();
        return { session: each.name, draining, client };
      }),
  };
}

/** @throws UserError for a session that there is not */
function chosen(sessions: readonly ShownSession[], { session }: Params): readonly ShownSession[] {
  if (session === undefined) return sessions;
  const found = sessions.filter(({ name }) => name === session);
  if (found.length > 0) return found;
  const names = sessions.map(({ name }) => name);
  throw new UserError(`there is no session ${session}${didYouMean(`${session}`, names)}`);
}

function notItsClient({ name }: ShownSession): UserError {
  return new UserError(`${name} is behind a bridge, whose clients these are: ask the bridge`);
}

export function commandsOf(session: ShownSession): Readonly<Record<string, number>> {
  const counted = [...session.commands().entries()].filter(([, count]) => count > 0);
  return Object.fromEntries(counted.map(([command, count]) => [commandName(command), count]));
}

function latenciesOf(sessions: readonly ShownSession[], measuring: Measuring): object[] {
  const all = measuring.look();
  return sessions.flatMap((session) => {
    const latencies = all.get(session);
    return (latencies?.commands ?? []).map((command) => {
      const { count, ...times } = latencies?.summary(command) ?? { count: 0 };
      const inUs = Object.entries(times).map(([name, ns]) => [name, ns / NS_PER_US]);
      return { session: session.name, command: commandName(command), count, ...Object.fromEntries(inUs) };
    });
  });
}

/** One after the other, so that the answers to all of them are not in memory with all that they were made of. */
async function inspectAll(sessions: readonly ShownSession[]): Promise<object[]> {
  const states: object[] = [];
  for (const session of sessions) states.push({ session: session.name, state: await session.inspect() });
  return states;
}
