#!/usr/bin/env node
/**
 * vfio-user-check: tells whether a vfio-user server, ours or any other, does what the specification demands. See
 * docs/conformance.md. In the order in which to read it: check (what a check is, and how it is declared), topics/ (the
 * checks), context and session (what they work with), messages (the codec), expect (how answers are judged), device
 * (what the device says of itself), conduct (what is demanded of every reply); run and report, options.
 */
import "../../shared/no-debugger.js";
import { helpText } from "../../shared/command-line/help.js";
import { versionText } from "../../shared/command-line/parse.js";
import { UserError } from "../../shared/errors.js";
import { Program } from "../../shared/program.js";
import { type Options, PROGRAM, parseOptions, TABLE } from "./options.js";
import { formatCheck, formatJson, formatResult, formatSummary, tally } from "./report.js";
import { runChecks } from "./run.js";
import { ALL_CHECKS } from "./topics/index.js";

async function check(options: Options): Promise<number> {
  const selected = ALL_CHECKS.filter(({ id }) => options.only?.test(id) ?? true);
  if (selected.length === 0) throw new UserError("no check matches --only; see vfio-user-check --list", 2);
  const width = Math.max(...selected.map(({ id }) => id.length));
  if (options.list) {
    for (const each of selected) console.log(formatCheck(each, width));
    return 0;
  }
  const colour = process.stdout.isTTY && !process.env.NO_COLOR;
  const results = await runChecks(selected, {
    ...options,
    onResult: (result) => {
      if (!options.json) console.log(formatResult(result, width, colour));
    },
  });
  console.log(options.json ? formatJson(options.socketPath, results) : formatSummary(results));
  return tally(results).failed > 0 ? 1 : 0;
}

Program.run(PROGRAM, async () => {
  const options = parseOptions(process.argv.slice(2));
  if (!options.help && !options.version) return check(options);
  process.stdout.write(options.help ? helpText(TABLE) : versionText(PROGRAM));
  return 0;
});
