/**
 * What stays of peers that have gone: no descriptors, no maps and no memory, however many there were. A bridge lives
 * for months, and nothing of a connection may wait for the garbage collector, which does not know what a map costs.
 */
import { join } from "node:path";
import test from "ava";
import { ControlClient } from "../../../shared/control/control-client.js";
import { MiB } from "../../../shared/limits.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { TestDevice } from "../../fakes/front-end-device.js";
import { staysAsItWas } from "../../fakes/resources.js";
import { folder } from "../../native/helpers.js";
import { eventfd, memory, setUp } from "./set-up.js";

test.serial("clients with twin sockets, maps and interrupts", async (t) => {
  const { bridge } = await setUp(t);
  const ram = memory(t, MiB);
  const interrupt = eventfd(t);
  await staysAsItWas(t, bridge.process.pid ?? 0, 2000, async () => {
    const client = await Client.connect(bridge.socketPath, { capabilities: { twinSocket: true } });
    t.true(client.hasTwinSocket);
    await client.mapMemory({ address: 0, size: MiB, fd: ram.fd });
    await client.setIrqs({ index: Irq.MSIX, eventfds: [interrupt.fd] });
    await client.regionRead(Region.BAR0, 0, 4);
    client.close();
    await client.closed;
  });
});

test.serial("front-ends with their channels", async (t) => {
  const bridge = await BridgeProcess.start();
  t.teardown(() => bridge.stop());
  await staysAsItWas(t, bridge.process.pid ?? 0, 1000, async () => {
    const frontEnd = new FrontEnd(bridge.vhostUserSocketPath, { ramSize: MiB });
    frontEnd.quit();
    t.is(frontEnd.fatal, undefined);
  });
});

test.serial("device processes that come and go under their clients", async (t) => {
  const { bridge, frontEnd } = await setUp(t);
  const ram = memory(t, MiB);
  await staysAsItWas(t, bridge.process.pid ?? 0, 300, async () => {
    const client = await Client.connect(bridge.socketPath, { capabilities: { twinSocket: true } });
    await client.mapMemory({ address: 0, size: MiB, fd: ram.fd });
    await client.regionRead(Region.BAR0, 0, 4);
    frontEnd.freeAll();
    await new TestDevice(frontEnd).startAndGreet();
    client.close();
    await client.closed;
  });
  t.is(frontEnd.fatal, undefined);
});

test.serial("clients of the control socket", async (t) => {
  const control = join(folder(t), "control");
  const { bridge } = await setUp(t, { args: [`--control=${control}`] });
  await staysAsItWas(t, bridge.process.pid ?? 0, 2000, async () => {
    const client = await ControlClient.connect(control);
    await client.request("sessions", {});
    client.close();
  });
});
