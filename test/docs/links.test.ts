/** What the pages for people point at is there. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const MAX_README_LINES = 150;

const pages = ["README.md", ...readdirSync(join(ROOT, "docs")).filter((name) => name.endsWith(".md"))];

test("each link to a file leads to one", (t) => {
  const wrong = pages.flatMap((name) => {
    const path = name === "README.md" ? name : join("docs", name);
    const links = [...readFileSync(join(ROOT, path), "utf8").matchAll(/\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)/g)];
    const targets = links.map(([, target]) => normalize(join(dirname(path), target)));
    return targets.filter((target) => !existsSync(join(ROOT, target))).map((target) => `${path} points at ${target}`);
  });
  t.deepEqual(wrong, []);
});

test(`the README has at most ${MAX_README_LINES} lines`, (t) => {
  t.true(readFileSync(join(ROOT, "README.md"), "utf8").split("\n").length <= MAX_README_LINES + 1);
});
