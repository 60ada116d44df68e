/** docs/architecture.md: what it names is there. */
import { existsSync, readFileSync } from "node:fs";
import { join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const PAGE = readFileSync(join(ROOT, "docs/architecture.md"), "utf8");

/** Links to files, each with the functions or classes that are named right behind it; a file by itself has "". */
const NAMED = [...PAGE.matchAll(/\[[^\]]+\]\(([^)]+)\)((?: (?:and )?`\w+`)*)/g)].flatMap(([, path, names]) => {
  const named = [...names.matchAll(/`(\w+)`/g)].map(([, name]) => name);
  return (named.length > 0 ? named : [""]).map((name) => `${normalize(join("docs", path))} ${name}`);
});

test("the walks name enough of the code to be worth checking", (t) => {
  t.true(NAMED.filter((named) => !named.endsWith(" ")).length > 40);
});

for (const named of new Set(NAMED)) {
  test(named, (t) => {
    const [path, name] = named.split(" ");
    t.true(existsSync(join(ROOT, path)));
    const source = name === "" ? "" : readFileSync(join(ROOT, path), "utf8");
    const declared = `(?:class|function|interface) #?${name}\\b|^ +(?:async |get )?${name}(?:<[^>]*>)?\\(|::${name}\\(`;
    if (name !== "") t.regex(source, new RegExp(declared, "m"));
  });
}
