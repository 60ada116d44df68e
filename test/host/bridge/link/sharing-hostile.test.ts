/** Device processes that lie about the memory and eventfds that they share. */
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { AllocateEvents, LinkCommand } from "../../../../shared/spec/link.js";
import { Command, IoFdType, RegionInfo, RegionInfoFlags, RegionIoFds } from "../../../../shared/spec/vfio-user.js";
import { Client } from "../../../../shared/vfio-user/client/client.js";
import { BAR_SIZE, message, type TestDevice } from "../../../fakes/front-end-device.js";
import { deviceAnswers, setUp } from "../set-up.js";
import {
  allocateMemory,
  answer,
  beginMemory,
  ioFds,
  mapBar,
  memoryBody,
  PARTS,
  refusal,
  regionInfo,
  replyWithHandles,
  type Shared,
  share,
  tooMany,
} from "./sharing-set-up.js";

/** What a device process may answer to GET_REGION_INFO or GET_REGION_IO_FDS; `mine` is what it really has. */
const INFO = Command.DEVICE_GET_REGION_INFO;
const IO_FDS = Command.DEVICE_GET_REGION_IO_FDS;
const lies: Record<string, (shared: Shared, before: Shared) => [number, Uint8Array, number[]]> = {
  "a handle that is nobody's": () => [INFO, regionInfo(PARTS), [0x7777]],
  "handle 0": () => [INFO, regionInfo(PARTS), [0]],
  "a handle of the process before it": (_, before) => [INFO, regionInfo(PARTS), [before.bar.handle]],
  "an eventfd as memory": ({ events }) => [INFO, regionInfo(PARTS), [events[0]]],
  "memory of another region": ({ shadow }) => [INFO, regionInfo(PARTS), [shadow.handle]],
  "an area that is not there": ({ bar }) => [INFO, regionInfo([{ offset: 0, size: 0x1000 }]), [bar.handle]],
  "an area that is larger": ({ bar }) => [INFO, regionInfo([{ offset: 0x1000, size: 0x3000 }]), [bar.handle]],
  "no area": ({ bar }) => [INFO, regionInfo([]), [bar.handle]],
  "all of the region": ({ bar }) => [
    INFO,
    RegionInfo.encode({ argsz: RegionInfo.size, flags: 7, index: 0, size: BAR_SIZE }),
    [bar.handle],
  ],
  "a file offset": ({ bar }) => [INFO, regionInfo(PARTS, { offset: 0x1000 }), [bar.handle]],
  "another size": ({ bar }) => [INFO, regionInfo(PARTS, { size: 2 * BAR_SIZE }), [bar.handle]],
  "memory that cannot be mapped": ({ bar }) => [
    INFO,
    regionInfo(PARTS, { flags: 3 | RegionInfoFlags.CAPS }),
    [bar.handle],
  ],
  "capabilities outside of the body": ({ bar }) => [INFO, regionInfo(PARTS, { capOffset: 0x1000 }), [bar.handle]],
  "an eventfd that is nobody's": () => [IO_FDS, ioFds([{ size: 4 }]), [0x7777]],
  "memory as an eventfd": ({ shadow }) => [IO_FDS, ioFds([{ size: 4 }]), [shadow.handle]],
  "an fd that has no use": ({ events }) => [IO_FDS, ioFds([{ size: 4 }]), events],
  "an fd index that is not there": ({ events }) => [IO_FDS, ioFds([{ size: 4, fdIndex: 1 }]), [events[0]]],
  "an ioregionfd": ({ events }) => [IO_FDS, ioFds([{ size: 4, type: IoFdType.IOREGIONFD }]), [events[0]]],
  "a sub-region outside of the region": ({ events }) => [
    IO_FDS,
    ioFds([{ gpaOffset: BAR_SIZE, size: 4 }]),
    [events[0]],
  ],
  "a shadow in an eventfd": ({ events }) => [IO_FDS, ioFds([{ size: 4, type: 2, shadowMemFdIndex: 1 }]), events],
  "a shadow in a BAR's memory": ({ events, bar }) => [
    IO_FDS,
    ioFds([{ size: 4, type: 2, shadowMemFdIndex: 1 }]),
    [events[0], bar.handle],
  ],
  "a shadow outside of its memory": ({ events, shadow }) => [
    IO_FDS,
    ioFds([{ size: 4, type: 2, shadowMemFdIndex: 1, shadowOffset: 0xffc }]),
    [events[0], shadow.handle],
  ],
  "a shadow that is not there": ({ events }) => [
    IO_FDS,
    ioFds([{ size: 4, type: 2, shadowMemFdIndex: 9 }]),
    [events[0]],
  ],
  "one fd for two purposes": ({ events, shadow }) => [
    IO_FDS,
    ioFds([{ size: 4 }, { size: 4, type: 2, fdIndex: 1, shadowMemFdIndex: 0 }]),
    [events[0], events[1], shadow.handle].slice(0, 2),
  ],
};
test.serial("a device process that names what it does not have: an error for the client, and no more", async (t) => {
  const { bridge, frontEnd, device, connect } = await setUp(t);
  frontEnd.reset();
  const before = await share(frontEnd, device);
  frontEnd.reset();
  const shared = await share(frontEnd, device);
  const client = await connect();
  const fds = bridge.fds();
  for (const [name, lie] of Object.entries(lies)) {
    const [command, body, handles] = lie(shared, before);
    device.onCommand = (received) => {
      if (received.command === command) replyWithHandles(device, received, body, handles);
      return received.command === command;
    };
    const request = command === IO_FDS ? RegionIoFds.encode({ argsz: 4096 }) : RegionInfo.encode({ argsz: 4096 });
    await t.throwsAsync(client.request(command, request, { maxFds: 16 }), refusal(Errno.EIO), name);
  }
  await bridge.logged(/"level":40.*"msg":"refused a reply of the device process"/);
  t.notRegex(bridge.log, /broke the link/);
  t.deepEqual(bridge.fds(), fds);
  answer(device, shared);
  t.is((await mapBar(t, client)).views.length, 2, "the truth still goes through");
});

test.serial("more fds than the client takes: an error instead", async (t) => {
  const { frontEnd, device, bridge } = await setUp(t);
  frontEnd.reset();
  answer(device, await share(frontEnd, device));
  const client = await Client.connect(bridge.socketPath, { capabilities: { maxMsgFds: 2 } });
  t.teardown(() => client.close());
  await t.throwsAsync(client.getRegionIoFds(0), refusal(Errno.EIO));
  t.is((await mapBar(t, client)).views.length, 2);
});

const breaks: Record<string, (shared: Shared) => [number, Uint8Array, number[], number?]> = {
  "more handles than the message has": ({ bar }) => [INFO, regionInfo(PARTS), [bar.handle], 1000],
  "2^32 - 1 handles": ({ bar }) => [INFO, regionInfo(PARTS), [bar.handle], 0xffffffff],
  "two fds for a region": ({ bar }) => [INFO, regionInfo(PARTS), [bar.handle, bar.handle]],
  "another region": ({ bar }) => [INFO, regionInfo(PARTS, { index: 1 }), [bar.handle]],
  "an argsz that lies": ({ bar }) => [INFO, regionInfo(PARTS, { argsz: 33 }), [bar.handle]],
  "a longer reply than asked for": ({ bar }) => [INFO, regionInfo([...PARTS, ...tooMany]), [bar.handle]],
  "ioeventfds of another region": ({ events }) => [IO_FDS, ioFds([{ size: 4 }], { index: 1 }), [events[0]]],
  "more ioeventfds than can be": () => [IO_FDS, RegionIoFds.encode({ argsz: 16 + 65 * 48, count: 65 }), []],
  "a count that does not fit": ({ events }) => [IO_FDS, ioFds([{ size: 4 }], { count: 2 }), [events[0]]],
};
for (const [name, lie] of Object.entries(breaks)) {
  test.serial(`a reply with ${name} costs the device process the link`, async (t) => {
    const { bridge, frontEnd, device, connect } = await setUp(t);
    frontEnd.reset();
    const [command, body, handles, count] = lie(await share(frontEnd, device));
    const client = await connect();
    device.onCommand = (received) => {
      if (received.command === command) replyWithHandles(device, received, body, handles, count);
      return received.command === command;
    };
    const request = command === IO_FDS ? RegionIoFds.encode({ argsz: 512 }) : RegionInfo.encode({ argsz: 512 });
    await t.throwsAsync(client.request(command, request, { maxFds: 16 }), refusal(Errno.ENODEV));
    await bridge.logged(/"msg":"the device process broke the link"/);
    await bridge.logged(/"msg":"the device process left"/);
    // All that it shared is out of its reach, and it may start again.
    answer(device, await share(frontEnd, device));
    await deviceAnswers(client);
    t.is((await mapBar(t, client)).views.length, 2);
  });
}

const badMoments: Record<string, (device: TestDevice) => void> = {
  "ALLOCATE_MEMORY after HELLO": (device) =>
    device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(0, PARTS))),
  "ALLOCATE_EVENTS after HELLO": (device) =>
    device.sendRaw(message(1, LinkCommand.ALLOCATE_EVENTS, 0, AllocateEvents.encode({ count: 1 }))),
};
const badPreparations: Record<string, (device: TestDevice) => void> = {
  "a short ALLOCATE_MEMORY": (device) => device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, new Uint8Array(7))),
  "areas that are not in the message": (device) =>
    device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(0, PARTS, 3))),
  "more areas than can be": (device) =>
    device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(0, tooMany))),
  "2^32 - 1 areas": (device) =>
    device.sendRaw(message(1, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(0, PARTS, 0xffffffff))),
  "a long ALLOCATE_EVENTS": (device) => device.sendRaw(message(1, LinkCommand.ALLOCATE_EVENTS, 0, new Uint8Array(12))),
  "memory outside of its region": async (device) => {
    await allocateMemory(device, 0, [{ offset: BAR_SIZE, size: 0x1000 }]);
    device.sendRaw(message(2, LinkCommand.HELLO, 0, device.hello()));
  },
  "a DMA before HELLO": async (device) => {
    await allocateMemory(device, 0, PARTS);
    device.sendRaw(message(2, Command.DMA_READ, 0, new Uint8Array(16)));
  },
};
for (const [name, act] of [...Object.entries(badMoments), ...Object.entries(badPreparations)]) {
  test.serial(`${name} costs the device process the link`, async (t) => {
    const { bridge, frontEnd, device } = await setUp(t);
    const fds = bridge.fds();
    if (name in badPreparations) {
      frontEnd.reset();
      device.start();
    }
    act(device);
    await bridge.logged(/"msg":"the device process broke the link"/);
    await device.startAndGreet();
    t.is(frontEnd.maps.length, 0);
    t.deepEqual(bridge.fds(), fds);
  });
}

const impatient: Record<string, (device: TestDevice) => Uint8Array> = {
  "a second ALLOCATE_MEMORY": () => message(2, LinkCommand.ALLOCATE_MEMORY, 0, memoryBody(1, PARTS)),
  ALLOCATE_EVENTS: () => message(2, LinkCommand.ALLOCATE_EVENTS, 0, AllocateEvents.encode({ count: 1 })),
  HELLO: (device) => message(2, LinkCommand.HELLO, 0, device.hello()),
};
for (const [name, next] of Object.entries(impatient)) {
  test.serial(`${name} while memory is being made costs the device process the link`, async (t) => {
    const { bridge, frontEnd, device } = await setUp(t);
    const fds = bridge.fds();
    beginMemory(frontEnd, device);
    device.sendRaw(next(device));
    await bridge.logged(/"msg":"the device process broke the link"/);
    frontEnd.busy = false;
    // What was under way is done, and undone.
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    while (frontEnd.maps.length === 0) await turn();
    while (frontEnd.maps.length > 0) await turn();
    await device.startAndGreet();
    t.deepEqual(bridge.fds(), fds);
  });
}
