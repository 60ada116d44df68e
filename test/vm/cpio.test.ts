import test from "ava";
import { archive } from "../../scripts/vm/cpio.js";

test("an entry is a header of thirteen hexadecimal fields, its name and its data, each padded to four bytes", (t) => {
  const bytes = Buffer.concat(archive([{ path: "/ab", data: "hello", mode: 0o755 }])).toString("latin1");
  const header = "070701 00000000 000081ed 00000000 00000000 00000001 00000000 00000005 00000000 00000000 00000000";
  const rest = "00000000 00000003 00000000";
  t.true(bytes.startsWith(`${header} ${rest}`.replaceAll(" ", "").concat("ab\0\0\0\0hello\0\0\x00070701")));
  t.is(bytes.length % 4, 0);
  t.true(bytes.endsWith("TRAILER!!!\0\0\0\0"));
});

test("directories come once and before what is in them, and links keep their target", (t) => {
  const pieces = archive([
    { path: "/a/b/file", data: "x" },
    { path: "/a/b/link", link: "../file" },
    { path: "/a/empty", directory: true },
  ]);
  const names = [
    ...Buffer.concat(pieces)
      .toString("latin1")
      .matchAll(/07070[01][0-9a-f]{104}([^\0]+)\0/g),
  ];
  t.deepEqual(
    names.map((name) => name[1]),
    ["a", "a/b", "a/b/file", "a/b/link", "a/empty", "TRAILER!!!"],
  );
});
