/** docs/troubleshooting.md has each message of the sources, with a cure, and none that is gone. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { messagesOf } from "./messages.js";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const ROW = /^\| `(.+?)` \| (.*) \|$/gm;
/** Of these there is a table of what somebody sees elsewhere, in QEMU's words or in the log of a VM. */
const OTHERS = "## What you see in the VMs";

const [, rest] = readFileSync(join(ROOT, "docs/troubleshooting.md"), "utf8").split(OTHERS);
const rows = [...rest.slice(rest.indexOf("\n## ")).matchAll(ROW)].map(([, message, cure]) => ({ message, cure }));
const messages = messagesOf(ROOT);

test("enough messages are found to be worth comparing", (t) => {
  t.true(messages.size > 200, `${messages.size}`);
});

test("each message of the sources stands there", (t) => {
  const known = new Set(rows.map(({ message }) => message));
  const missing = [...messages].filter(([message]) => !known.has(message));
  t.deepEqual(
    missing.map(([message, paths]) => `"${message}" of ${paths.join(", ")} is not in docs/troubleshooting.md`),
    [],
  );
});

test("none stands there that is gone, or twice, or without a cure", (t) => {
  const gone = rows.filter(({ message }) => !messages.has(message));
  t.deepEqual(
    gone.map(({ message }) => `"${message}" is in no source`),
    [],
  );
  t.is(new Set(rows.map(({ message }) => message)).size, rows.length);
  t.deepEqual(
    rows.filter(({ cure }) => cure.trim().length < 8),
    [],
  );
});
