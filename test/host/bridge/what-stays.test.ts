/**
 * What stays of peers that have gone: no descriptors, no maps and no memory, however many there were. A bridge lives for
 * months, and nothing of a connection may wait for the garbage collector, which does not know what a map or a descriptor
 * costs.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { ControlClient } from "../../../shared/control/control-client.js";
import { MiB } from "../../../shared/limits.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { TestDevice } from "../../fakes/front-end-device.js";
import { folder } from "../../native/helpers.js";
import { eventfd, memory, setUp } from "./set-up.js";

/** Growth that is none: what an allocator keeps of what was freed, compiled code. */
const MAPS_SLACK = 8;
const SHARED_SLACK_KIB = 1024;
const OWN_SLACK_KIB = 48 * 1024;
/** Rounds after which caches and compiled code are there. */
const WARM_UP = 200;
const DEADLINE_MS = 10_000;

interface Resources {
  readonly fds: number;
  /** Shared ones: what V8 has for itself is not. */
  readonly maps: number;
  /** RSS in KiB: of memfds and the like, and of its own. */
  readonly shared: number;
  readonly own: number;
}

function resources(pid: number): Resources {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return {
    fds: readdirSync(`/proc/${pid}/fd`).length,
    maps: readFileSync(`/proc/${pid}/maps`, "utf8").match(/^\S+ ...s /gm)?.length ?? 0,
    shared: kib("RssShmem"),
    own: kib("RssAnon"),
  };
}

/** Runs `round` so many times, and holds what the process has then against what it had before. */
async function staysAsItWas(t: ExecutionContext, pid: number, rounds: number, round: () => Promise<void>) {
  for (let n = 0; n < WARM_UP; n++) await round();
  await delay(100);
  const before = resources(pid);
  for (let n = 0; n < rounds; n++) await round();
  const end = Date.now() + DEADLINE_MS;
  let after = resources(pid);
  // Descriptors are closed a turn or two after their peer has gone.
  while (after.fds > before.fds && Date.now() < end) {
    await delay(10);
    after = resources(pid);
  }
  const both = JSON.stringify([before, after]);
  if (process.env.SHOW) console.log(t.title, both);
  t.true(after.fds <= before.fds, both);
  t.true(after.maps <= before.maps + MAPS_SLACK, both);
  t.true(after.shared <= before.shared + SHARED_SLACK_KIB, both);
  t.true(after.own <= before.own + OWN_SLACK_KIB, both);
}

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
