/** The program's file is another one when the bridge is started again: it goes on with what it knows, or refuses it. */
import { readFileSync, writeFileSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { MiB } from "../../../../shared/limits.js";
import { HeldBridge } from "../../../fakes/fd-holder.js";
import { Peers } from "./peers.js";
import { SupervisedBridge } from "./supervised-bridge.js";

/** Where the program says which layout it knows. */
const LAYOUT = /LAYOUT_NUMBER = hashText\(\s*JSON\.stringify\(\[/;

async function upgraded(t: ExecutionContext, edit: (program: string) => string) {
  const supervised = await SupervisedBridge.start();
  t.teardown(() => supervised.stop().then(() => {}));
  const { bridge, program } = supervised;
  const peers = new Peers(bridge);
  t.teardown(() => peers.close());
  await peers.share();
  const client = await peers.connect(true);
  await client.mapMemory({ address: 0, size: MiB, fd: peers.memory.fd });
  await peers.write(0x20, Uint8Array.of(1, 2));
  const text = readFileSync(program, "utf8");
  const edited = edit(text);
  t.not(edited, text);
  writeFileSync(program, edited);
  const from = bridge.log.length;
  supervised.kill();
  return { supervised, bridge, peers, client, logged: () => bridge.log.slice(from) };
}

test.serial("a version that knows the state goes on with it", async (t) => {
  const { peers, logged } = await upgraded(t, (program) => program.replace('"serving"', '"serving, and newer"'));
  t.is(await peers.read(0x20, 2), "0102");
  peers.checkSoFar();
  t.regex(logged(), /serving, and newer/);
});

test.serial(
  "one that does not know it says so in one sentence, and ends the session; the next one is served",
  async (t) => {
    const { bridge, peers, client, logged } = await upgraded(t, (program) => program.replace(LAYOUT, '$&"newer",'));
    await client.closed;
    await bridge.logged(/"msg":"serving"/, 2);
    const said = logged().match(/^.*"level":[45]0.*$/gm) ?? [];
    t.is(said.length, 1, said.join("\n"));
    t.regex(said.join(), /of another build of the bridge/);
    peers.close();
    const next = new Peers(bridge);
    t.teardown(() => next.close());
    await next.share();
    await next.connect();
    t.is(await next.read(0x20, 2), "0000");
    await next.disconnect();
    next.checkSoFar();
  },
);

test.serial("a bridge that is stopped ends its sessions, also where what it kept comes back", async (t) => {
  const held = await HeldBridge.start();
  t.teardown(() => held.stop());
  const peers = new Peers(held);
  await peers.share();
  const client = await peers.connect();
  const from = held.log.length;
  await held.restart([], 15);
  await client.closed;
  peers.close();
  await held.logged(/"msg":"serving"/, 1, from);
  t.notRegex(held.log.slice(from), /"level":[45]0/);
  const next = new Peers(held);
  t.teardown(() => next.close());
  await next.share();
  await next.connect();
  await next.read(0x20, 4);
  await next.disconnect();
  next.checkSoFar();
  t.is(await held.end(), 0);
});
