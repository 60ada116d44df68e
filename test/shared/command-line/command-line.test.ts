/** What is made from a program's table: the parser, --help, the manual page; and what is meant by what is misspelt. */
import { execFileSync, spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { manPages, schemaText } from "../../../scripts/man.js";
import { helpText } from "../../../shared/command-line/help.js";
import { manPage } from "../../../shared/command-line/man-page.js";
import { parseByTable } from "../../../shared/command-line/parse.js";
import { nearest } from "../../../shared/command-line/suggest.js";
import type { ProgramTable } from "../../../shared/command-line/table.js";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));
const table: ProgramTable = {
  name: "a-program",
  title: "do \\ something",
  synopsis: ["--file PATH [OPTION]..."],
  description: [`Does .it, 'so' ~much^ and \`quoted\` -- ${"words ".repeat(40)}`, ".starts with a dot"],
  groups: [
    {
      title: "Options",
      options: [
        { name: "file", value: "PATH", summary: "a file", repeatable: true },
        { name: "quiet", summary: "no noise", short: "q" },
        { name: "a-name-that-is-longer-than-others", value: "VALUE", summary: "word ".repeat(60).trim() },
      ],
    },
  ],
  exitCodes: [["0", "it is done"]],
  signals: [["SIGHUP", "nothing"]],
  environment: [],
  files: [],
  examples: [["Like this:", "a-program --file='x y' \\\n  --quiet"]],
  seeAlso: ["true(1)", "false(1)"],
};

/** man-db, which brings groff along: a small machine has neither. */
test.before(() => {
  if (["man", "groff"].every((tool) => spawnSync(tool, ["--version"]).status === 0)) return;
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  execFileSync("apt-get", ["update", "-qq"], { env });
  execFileSync("apt-get", ["install", "-y", "-qq", "--no-install-recommends", "man-db"], { env });
});

test("values in order, switches, letters, and what is repeated", (t) => {
  const given = parseByTable(table, ["--file", "a", "-q", "--file=b=c", "--a-name-that-is-longer-than-others="]);
  t.deepEqual(given.values("file"), ["a", "b=c"]);
  t.deepEqual(
    given.inOrder.map(({ name }) => name.length),
    [4, 4, 33],
  );
  t.true(given.has("quiet") && given.has("a-name-that-is-longer-than-others"));
  t.is(given.value("a-name-that-is-longer-than-others"), "");
  t.false(parseByTable(table, []).has("quiet"));
  t.throws(() => parseByTable(table, ["--quite"]), {
    message: /^there is no option --quite; did you mean --quiet; see/,
  });
  t.throws(() => parseByTable(table, ["-x"]), { message: /^there is no option -x; see a-program --help$/ });
});

test("the nearest name, if any is near", (t) => {
  const names = ["socket-path", "vhost-user-socket-path", "fd", "once", "log-file", "log-format"];
  for (const [name, meant] of [
    ["sokcet-path", "socket-path"],
    ["socketpath", "socket-path"],
    ["socket_path", "socket-path"],
    ["vhost-user", "vhost-user-socket-path"],
    ["log-fil", "log-file"],
    ["logfromat", "log-format"],
    ["ones", "once"],
    ["f", "fd"],
    ["pid", undefined],
    ["", undefined],
    ["x".repeat(100_000), undefined],
  ] as const) {
    t.is(nearest(name, names), meant, name.slice(0, 80));
  }
});

test("--help fits a terminal, and has every option", (t) => {
  const lines = helpText(table).split("\n");
  for (const line of lines) t.true(line.length <= 120, line);
  t.true(lines.includes("  --file PATH                    a file"));
  t.true(lines.includes("  -q, --quiet                    no noise"));
  t.true(lines.includes("  --a-name-that-is-longer-than-others VALUE"));
});

test("a manual page has every word as it is", (t) => {
  const page = manPage(table, "1.2.3");
  const text = execFileSync("groff", ["-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=100n"], {
    encoding: "utf8",
    input: page,
  });
  const words = text.replaceAll(/‐\s+/g, "").replaceAll(/\s+/g, " ");
  for (const part of ["a-program - do \\ something", "Does .it, 'so' ~much^ and `quoted` -- words", ".starts with"]) {
    t.true(words.includes(part), words);
  }
  t.true(words.includes("a-program --file='x y' \\ --quiet"));
  t.regex(words, /-q, --quiet No noise\. /);
});

test("the control socket's JSON Schema is the one of its table: `npm run man` makes it", (t) => {
  t.is(readFileSync(new URL("../../../../docs/vfio-user-control.schema.json", import.meta.url), "utf8"), schemaText());
});

test("the manual pages are current (npm run man)", (t) => {
  const pages = manPages();
  t.deepEqual(readdirSync(join(ROOT, "docs/man")).sort(), Object.keys(pages).sort());
  for (const [name, text] of Object.entries(pages))
    t.is(readFileSync(join(ROOT, "docs/man", name), "utf8"), text, name);
  const { man } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  t.deepEqual(
    man,
    Object.keys(pages)
      .map((name) => `docs/man/${name}`)
      .sort(),
  );
});

test("man renders them without a warning, and groff by its strictest", (t) => {
  for (const name of readdirSync(join(ROOT, "docs/man"))) {
    const path = join(ROOT, "docs/man", name);
    const env = { ...process.env, MANWIDTH: "100", LC_ALL: "C.UTF-8", MANPAGER: "cat" };
    const man = spawnSync("man", ["--warnings", "-l", path], { encoding: "utf8", env });
    t.deepEqual([man.status, man.stderr], [0, ""], name);
    t.regex(man.stdout, /EXIT STATUS[\s\S]*EXAMPLES[\s\S]*SEE ALSO/);
    const groff = spawnSync("groff", ["-man", "-ww", "-z", path], { encoding: "utf8" });
    t.deepEqual([groff.status, groff.stderr], [0, ""], name);
  }
});
