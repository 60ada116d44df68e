/** What the bridge gives up on is told of that, and the session comes back by itself when the cause has gone. */
import { execFileSync } from "node:child_process";
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import { ConfigStatus, LinkCommand } from "../../../../shared/spec/link.js";
import { Command, HeaderFlags, Irq, Region } from "../../../../shared/spec/vfio-user.js";
import type { BridgeProcess } from "../../../fakes/front-end-bridge.js";
import { type LinkMessage, message } from "../../../fakes/front-end-device.js";
import { deviceAnswers, eventfd, memory, ones, readConfig, setUp } from "../set-up.js";

/** From now on the bridge may have no descriptor from that number on. */
const limitFds = ({ process }: BridgeProcess, count: number) =>
  execFileSync("prlimit", ["--pid", `${process.pid}`, `--nofile=${count}:`]);
const commands = (messages: readonly LinkMessage[]) => messages.map(({ command }) => command);

test.serial("a device process that answers late is told to let go of the client, and given it anew", async (t) => {
  t.timeout(60_000);
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  const irq = eventfd(t);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  const held: LinkMessage[] = [];
  const after = device.received.length;
  device.onCommand = (received) => {
    held.push(received);
    return true;
  };
  // It stands still: the client is answered without it.
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd] }).catch(() => {});
  await bridge.logged(/"msg":"gave up on the device process/);
  t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
  while (frontEnd.maps.length > 0) await new Promise(setImmediate);
  await device.waitFor(LinkCommand.CLIENT_GONE, after);
  t.deepEqual(commands(held), [Command.DEVICE_SET_IRQS, LinkCommand.CLIENT_GONE]);
  // It goes on, and answers what it was asked.
  device.onCommand = undefined;
  for (const received of held) device.reply(received);
  await deviceAnswers(client);
  t.deepEqual(commands(device.received.slice(after)).slice(0, 5), [
    Command.DEVICE_SET_IRQS,
    LinkCommand.CLIENT_GONE,
    LinkCommand.CLIENT_CONNECTED,
    Command.DEVICE_SET_IRQS,
    Command.DMA_MAP,
  ]);
  t.is(frontEnd.maps.length, 1);
  const { signals } = irq;
  device.ring(0);
  await irq.signalled(signals + 1);
});

test.serial("a device process that refuses its client is asked again until it does not", async (t) => {
  const { bridge, device, connect } = await setUp(t);
  let refusals = 0;
  device.onCommand = (received) => {
    if (received.command !== LinkCommand.CLIENT_CONNECTED || ++refusals > 3) return false;
    device.reply(received, undefined, Errno.ETIMEDOUT);
    return true;
  };
  const client = await connect();
  t.is((await client.getInfo()).numIrqs, 5);
  t.is(refusals, 4);
  t.is(bridge.log.match(/"level":40/g)?.length, 2, "said once: what was refused, and what becomes of it");
});

test.serial(
  "a bridge without fds for a client's interrupts gives the device process its client when it has some",
  async (t) => {
    t.timeout(60_000);
    const { bridge, device, connect } = await setUp(t, {
      queues: 40,
      device: { msixVectors: 32 },
      errors: /EMFILE|LimitNOFILE/,
    });
    const client = await connect();
    for (let n = 0; n < 32; n += 8) {
      const eventfds = Array.from({ length: 8 }, () => eventfd(t).fd);
      await client.setIrqs({ index: Irq.MSIX, start: n, eventfds });
    }
    t.is((await device.request(LinkCommand.QUIESCE)).errno, 0);
    // The session's share has them; so it is the process that may have no more.
    limitFds(bridge, 48);
    await device.request(LinkCommand.HELLO, device.hello());
    await bridge.logged(/"msg":"gave up on the device process/);
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4), "answered, as by a device that is not there");
    limitFds(bridge, 1024);
    await deviceAnswers(client);
    t.regex(bridge.log, /"level":50.*EMFILE/);
  },
);

test.serial("a front-end that stood still is asked for maps again when it answers", async (t) => {
  t.timeout(60_000);
  const { frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, 4 * MiB);
  await client.mapMemory({ address: 0, size: MiB, fd, fdOffset: 0 });
  frontEnd.busy = true;
  await client.mapMemory({ address: 0x1000_0000, size: MiB, fd, fdOffset: MiB });
  await client.mapMemory({ address: 0x2000_0000, size: MiB, fd, fdOffset: 2 * MiB });
  t.is(frontEnd.maps.length, 1, "by copies");
  t.is(commands(device.received).filter((command) => command === Command.DMA_MAP).length, 3);
  frontEnd.busy = false;
  // What it maps late is taken out again, and nothing is put upon it.
  for (let n = 0; n < 3; n++) {
    while (frontEnd.maps.length !== 1) await new Promise(setImmediate);
    await client.mapMemory({ address: 0x3000_0000, size: MiB, fd, fdOffset: 3 * MiB });
    if (n > 0) t.is(frontEnd.maps.length, 2);
    await client.unmapMemory(0x3000_0000, MiB);
  }
  t.is(frontEnd.fatal, undefined);
});

test.serial("a device process that breaks a rule is told that it has to reset the device", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  const client = await connect();
  for (let time = 1; time <= 3; time++) {
    const { generation } = frontEnd;
    device.sendRaw(message(1, 0x999, HeaderFlags.TYPE_COMMAND));
    await bridge.logged(/"msg":"the device process broke the link"/, time);
    while (frontEnd.generation === generation) await new Promise(setImmediate);
    t.not(readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET, 0);
    t.deepEqual(await client.regionRead(Region.BAR0, 0, 4), ones(4));
    await device.startAndGreet();
    t.is(readConfig(frontEnd).status & ConfigStatus.NEEDS_RESET, 0);
    await deviceAnswers(client);
  }
});
