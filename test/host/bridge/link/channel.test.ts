/** The channel's rings, where they cannot be polled. */
import { closeSync, openSync } from "node:fs";
import test from "ava";
import { Channel } from "../../../../host/bridge/link/channel.js";
import { Copies } from "../../../../host/bridge/link/copies.js";
import { DeviceState } from "../../../../host/bridge/link/device-state.js";
import type { BackEnd } from "../../../../host/bridge/vhost-user/back-end.js";
import { DeviceVmMemory } from "../../../../host/bridge/vhost-user/memory.js";
import * as native from "../../../../native/index.js";
import { quietLog } from "../../../../shared/log.js";
import { Share } from "../../../../shared/turn.js";
import { CopiedMemory } from "../../../../shared/vfio-user/dma/copied-memory.js";
import { AccessPath } from "../../../../shared/vfio-user/socket/access-path.js";
import { DeviceQueue } from "../../../../shared/virtqueue/device.js";

test("rings that cannot be polled are not open, and can be started and go on later", (t) => {
  const state = new DeviceState();
  const channel = new Channel(state, new Share(), new AccessPath(new Share()));
  const copied = new CopiedMemory(quietLog);
  const copies = new Copies(copied, new Share(), state);
  const queue = new DeviceQueue(new DeviceVmMemory());
  const good = [0, 1, 2].map(() => native.eventfd(0));
  // No file can be polled.
  const bad = openSync("/proc/self/exe", "r");
  let isGood = false;
  const kickFd = (index: number) => (isGood ? good[index] : bad);
  const backEnd = { queue: () => queue, kickFd, call: () => false } as unknown as BackEnd;
  t.teardown(() => {
    channel.stop();
    copies.stop();
    copied.close();
    for (const fd of good) native.close(fd);
    closeSync(bad);
  });
  t.throws(() => channel.start(backEnd));
  t.false(channel.open);
  t.throws(() => copies.start(backEnd));
  t.false(copies.running);
  isGood = true;
  channel.start(backEnd);
  copies.start(backEnd);
  t.true(channel.open && copies.running);
  channel.halt();
  isGood = false;
  t.throws(() => channel.goOn());
  t.true(channel.open && channel.halted);
  isGood = true;
  channel.goOn();
  t.false(channel.halted);
});
