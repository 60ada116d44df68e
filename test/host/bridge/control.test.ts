/** The bridge's control sockets: what they say of a session in use, and what they change. */
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { ControlClient } from "../../../shared/control/control-client.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { folder } from "../../native/helpers.js";
import { memory, setUp } from "./set-up.js";

const MIB = 1024 * 1024;

// biome-ignore lint/suspicious/noExplicitAny: what the schema says
type Answer = any;

async function withControl(t: ExecutionContext) {
  const directory = folder(t);
  const [control, admin] = ["control", "admin"].map((name) => join(directory, name));
  const parts = await setUp(t, { args: [`--control=${control}`, `--control-admin=${admin}`] });
  const reader = await ControlClient.connect(control);
  const changer = await ControlClient.connect(admin);
  t.teardown(() => {
    reader.close();
    changer.close();
  });
  const ask = (method: string, params = {}): Promise<Answer> => reader.request(method, params);
  const change = (method: string, params = {}): Promise<Answer> => changer.request(method, params);
  return { ...parts, ask, change, control };
}

test("sessions, maps, doorbells, rings, counts and latencies of a driver VM that is there", async (t) => {
  const { ask, connect, bridge } = await withControl(t);
  t.like(await ask("version"), { program: "vfio-user-bridge", pid: bridge.process.pid });
  t.like(await ask("sessions"), [{ client: false, device: "ready", maps: 0, draining: false }]);
  const client = await connect();
  await client.mapMemory({ address: 0x100000, size: MIB, fd: memory(t, MIB).fd });
  await client.regionRead(Region.BAR0, 0, 4);
  t.deepEqual(await ask("latency"), [], "nobody looked until now");
  for (let n = 0; n < 20; n++) await client.regionRead(Region.BAR0, 0, 4);
  await client.regionWrite(Region.CONFIG, 4, Uint8Array.of(6, 0));
  const [session] = await ask("sessions");
  t.like(session, { client: true, device: "connected", maps: 1, mappedBytes: MIB, windowMaps: 1 });
  t.like(await ask("maps"), [{ maps: 1, first: [{ address: "0x100000", size: MIB, readable: true }] }]);
  t.like(await ask("doorbells"), [{ state: { attached: true } }]);
  const [{ state }] = await ask("rings");
  t.true(state.frontEnd.queues[0].running);
  const [{ counts, commands }] = await ask("counts");
  t.true(counts.reads >= 21 && counts.clients === 1);
  t.true(commands.REGION_READ >= 21 && commands.REGION_WRITE === 1 && commands.DMA_MAP === 1, JSON.stringify(commands));
  const latencies = await ask("latency");
  const of = (command: string) => latencies.find((each: Answer) => each.command === command);
  t.is(of("REGION_READ").count, 20);
  const { p50, p99, max, mean } = of("REGION_READ");
  t.true(p50 > 1 && p50 <= p99 && p99 <= max && mean <= max && max < 4e6, JSON.stringify(of("REGION_READ")));
  t.is(of("REGION_WRITE").count, 1);
  const [{ state: all }] = await ask("inspect", { session: session.name });
  t.like(all, { link: { state: "connected" }, server: { connected: true } });
});

test("a session that is drained takes no new driver VM, and keeps the one that it has", async (t) => {
  const { ask, change, connect } = await withControl(t);
  const client = await connect();
  t.like(await change("drain"), [{ draining: true, client: true }]);
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  client.close();
  while ((await ask("sessions"))[0].client) await client.closed.catch(() => {});
  await t.throwsAsync(connect());
  t.like(await change("drain", { off: true }), [{ draining: false }]);
  const next = await connect();
  t.is((await next.regionRead(Region.BAR0, 0, 4)).length, 4);
});

test("a client that is disconnected is gone, and another one can come", async (t) => {
  const { ask, change, connect } = await withControl(t);
  const client = await connect();
  const [{ name }] = await ask("sessions");
  t.deepEqual(await change("disconnect", { session: name }), { session: name, done: true });
  await t.throwsAsync(client.regionRead(Region.BAR0, 0, 4));
  const next = await connect();
  t.is((await next.regionRead(Region.BAR0, 0, 4)).length, 4);
});

test("the log's level changes for sessions that are there; its last warnings can be asked for", async (t) => {
  const { ask, change, connect, bridge } = await withControl(t);
  t.deepEqual(await ask("log-level"), { level: "debug" });
  await change("set-log-level", { level: "warn" });
  const client = await connect();
  await t.throwsAsync(client.unmapMemory(0x1000, 4096 + 1));
  const warnings = await ask("warnings");
  t.like(warnings.at(-1), { level: "warn", message: "refused a command of the client" });
  t.true(warnings.at(-1).details.session.length > 0);
  t.false(bridge.log.includes('"msg":"client connected"'), bridge.log);
});
