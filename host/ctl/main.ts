#!/usr/bin/env node
/**
 * vfio-user-ctl: asks a running program by its control socket. In this folder: commands.ts, what it can be told;
 * options.ts, the command line; format.ts, answers for people; top.ts, the live table, over screen.ts; qmp.ts, what is
 * asked of a VM's QEMU.
 */
import "../../shared/no-debugger.js";
import { helpText } from "../../shared/command-line/help.js";
import { versionText } from "../../shared/command-line/parse.js";
import { ControlClient } from "../../shared/control/control-client.js";
import { RpcError } from "../../shared/control/json-rpc.js";
import { UserError } from "../../shared/errors.js";
import { Program } from "../../shared/program.js";
import { isForQemu } from "./commands.js";
import { formatAnswer } from "./format.js";
import { type Options, paramsOf, parseOptions, TABLE, tableOf, usage } from "./options.js";
import { plugOrUnplug } from "./qmp.js";
import { top } from "./top.js";

async function main(): Promise<number> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "version") process.stdout.write(versionText(TABLE.name));
  else if (options === "help") process.stdout.write(helpText(TABLE));
  else if ("summary" in options) process.stdout.write(helpText(tableOf(options)));
  else await run(options);
  return 0;
}

async function run(options: Options): Promise<void> {
  const { socket, command, given, json } = options;
  if (isForQemu(command)) {
    process.stdout.write(await plugOrUnplug(command, given));
    return;
  }
  const params = paramsOf(options);
  const interval = number(given.value("interval"), "--interval", 1, 0.2, 3600);
  const count = given.value("count") === undefined ? undefined : number(given.value("count"), "--count", 1, 1, 1e9);
  const client = await ControlClient.connect(socket);
  try {
    if (command.name === "top") return await top(client, { intervalMs: interval * 1000, count });
    const answer = await client.request(command.name, params);
    process.stdout.write(json ? `${JSON.stringify(answer, null, 2)}\n` : formatAnswer(forPeople(answer)));
  } catch (error) {
    if (error instanceof RpcError) throw new UserError(`${command.name}: ${error.message}`);
    throw error;
  } finally {
    client.close();
  }
}

/** Parameters as JSON Schema are for programs. */
function forPeople(answer: unknown): unknown {
  if (!Array.isArray(answer)) return answer;
  return answer.map((each) => {
    const { parameters: _, ...rest } = each;
    return rest;
  });
}

function number(text: string | undefined, option: string, otherwise: number, least: number, most: number): number {
  const value = text === undefined ? otherwise : Number(text);
  if (value >= least && value <= most) return value;
  throw usage(`${option} ${text}: it must be a number from ${least} to ${most}`);
}

Program.run(TABLE.name, main);
