/** The Wireshark dissector: tshark prints recorded messages as our own views say, and marks what is broken. */
import { execFile } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import test, { type ExecutionContext } from "ava";
import { snake } from "../../../scripts/protocol/names.js";
import { prepareProtocolTools } from "../../../scripts/vm/environment.js";
import { Capture } from "../../../shared/capture/capture.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { CaptureDirection } from "../../../shared/spec/capture.js";
import { PROTOCOLS } from "../../../shared/spec/messages.js";
import { broken, errorReplies, type Sample, samples, type Tree } from "./samples.js";

const SCRIPT = new URL("../../../../docs/protocol/vfio-user.lua", import.meta.url).pathname;
const run = promisify(execFile);

/** Packets of a file: each field's values by its name. */
async function dissect(path: string): Promise<Map<string, string[]>[]> {
  const { tshark } = await prepareProtocolTools();
  const args = ["-X", `lua_script:${SCRIPT}`, "-r", path, "-T", "pdml"];
  const env = { ...process.env, ...tshark.environment };
  const { stdout } = await run(tshark.program, [...tshark.args, ...args], { env, maxBuffer: 512 * MiB });
  return stdout
    .split("<packet>")
    .slice(1)
    .map((packet) => {
      const fields = new Map<string, string[]>();
      for (const [, name, rest] of packet.matchAll(/<field name="([^"]*)"([^>]*)>/g)) {
        const show = / show="([^"]*)"/.exec(rest)?.[1] ?? "";
        fields.set(name, [...(fields.get(name) ?? []), show]);
      }
      return fields;
    });
}

async function record(t: ExecutionContext, all: readonly Sample[]): Promise<Map<string, string[]>[]> {
  const directory = mkdtempSync(join(tmpdir(), "capture-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, "messages.pcapng");
  const capture = await Capture.open({ path, size: 64 * MiB, log: quietLog });
  const interfaces = new Map([
    [PROTOCOLS[0].id, capture.interface("a session", "VFIO_USER")],
    [PROTOCOLS[1].id, capture.interface("a session, link", "VIRTIO_VFIO_USER")],
  ]);
  for (const { protocol, bytes } of all)
    interfaces.get(protocol.id)?.message(CaptureDirection.TO_DEVICE, bytes, 0, bytes.length, 2);
  await capture.close();
  const packets = await dissect(path);
  t.is(packets.length, all.length);
  return packets;
}

/** All numbers of a tree by their field's name, in order. */
function numbersOf(tree: Tree, name = ""): [string, number][] {
  if (typeof tree === "number") return [[name, tree]];
  if (typeof tree === "string") return [];
  if (Array.isArray(tree)) return tree.flatMap((each) => numbersOf(each, name));
  return Object.entries(tree).flatMap(([field, value]) => numbersOf(value, field));
}

test("every message is taken apart as by our views", async (t) => {
  const all = [...samples(), ...errorReplies()];
  const packets = await record(t, all);
  for (const [n, each] of all.entries()) {
    const fields = packets[n];
    const { id } = each.protocol;
    t.deepEqual(fields.get(`${id}.malformed`), undefined, `${each.name}: ${fields.get("_ws.expert.message")}`);
    t.deepEqual(fields.get(`${id}.fds`), ["2"], each.name);
    // A structure's fields are shown in any number of structures: all values are there.
    const shown = [...fields]
      .filter(([name]) => name.startsWith(`${id}.`))
      .flatMap(([name, values]) => values.map((value) => `${name.split(".").at(-1)} ${number(value)}`));
    for (const [field, value] of [...numbersOf(each.header), ...numbersOf(each.body)]) {
      const isWord = !Object.keys(each.protocol.structs).some((name) => field in each.protocol.structs[name].table);
      if (isWord && !(field in (each.header as object)))
        t.true(shown.includes(`word ${value}`), `${each.name} ${field}`);
      else t.true(shown.includes(`${snake(field)} ${value}`), `${each.name}: ${field} ${value}`);
    }
    for (const handle of each.handles) t.true(shown.includes(`word ${handle}`), each.name);
  }
});

const number = (text: string) => (/^(0x[0-9a-f]+|[0-9]+)$/i.test(text) ? Number(text) : text);

test("what is broken is marked", async (t) => {
  const bad = broken(samples());
  const packets = await record(t, bad);
  for (const [n, each] of bad.entries()) t.true(packets[n].has(`${each.protocol.id}.malformed`), each.name);
});
