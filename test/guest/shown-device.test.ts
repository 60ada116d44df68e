/** What a device by itself shows of a driver VM that uses it: accesses that C++ answers are counted, and measured. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test from "ava";
import { ControlClient } from "../../shared/control/control-client.js";
import { Region } from "../../shared/spec/vfio-user.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import { ServiceProcess } from "../fakes/service-process.js";
import { folder } from "../native/helpers.js";

const MAIN = fileURLToPath(new URL("../../guest/main.js", import.meta.url));

// biome-ignore lint/suspicious/noExplicitAny: what the schema says
type Answer = any;

test("accesses are counted before and after somebody looks, and measured then", async (t) => {
  const directory = folder(t);
  const [socket, control] = ["socket", "control"].map((name) => join(directory, name));
  const device = new ServiceProcess(t, [MAIN, "run", "edu", `--socket-path=${socket}`, `--control=${control}`]);
  await device.serving();
  const reader = await ControlClient.connect(control);
  t.teardown(() => reader.close());
  const ask = async (method: string): Promise<Answer> => reader.request(method);
  const client = await Client.connect(socket);
  t.teardown(() => client.close());
  const read = async (times: number) => {
    for (let n = 0; n < times; n++) await client.regionRead(Region.BAR0, 4, 4);
  };
  await read(10);
  t.deepEqual(await ask("latency"), []);
  await read(20);
  for (let n = 0; n < 20; n++) await client.regionWrite(Region.BAR0, 4, Uint8Array.of(1, 2, 3, n));
  const latencies = await ask("latency");
  const of = (command: string) => latencies.find((each: Answer) => each.command === command);
  // What is answered from register memory takes no time that anybody would look at.
  t.is(of("REGION_READ"), undefined);
  t.is(of("REGION_WRITE").count, 20);
  t.true(of("REGION_WRITE").max > 0 && of("REGION_WRITE").max < 4e6);
  const [{ counts, commands }] = await ask("counts");
  t.deepEqual([commands.REGION_READ, commands.REGION_WRITE, counts.reads], [30, 20, 30]);
  const [{ name, client: isThere, device: state }] = await ask("sessions");
  t.deepEqual([name, isThere, state], ["edu", true, "local"]);
});
