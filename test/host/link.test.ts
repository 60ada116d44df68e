import test from "ava";
import { Client } from "../../shared/vfio-user/client.js";
import { FrontEnd } from "../fakes/front-end.js";
import { BridgeProcess } from "../fakes/front-end-bridge.js";
import { TestDevice } from "../fakes/front-end-device.js";

test("smoke", async (t) => {
  const bridge = await BridgeProcess.start();
  t.teardown(() => bridge.stop());
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath);
  t.teardown(() => frontEnd.quit());
  const device = new TestDevice(frontEnd);
  await device.startAndGreet();
  const client = await Client.connect(bridge.socketPath);
  t.log(await client.getInfo());
  client.close();
  await client.closed;
  await bridge.logged(/client gone/);
  t.log(bridge.log);
  t.is(frontEnd.fatal, undefined);
});
