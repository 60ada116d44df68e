/** The back-end's state machine against raw bytes. */
import { closeSync, openSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { BackEnd } from "../../../../host/bridge/vhost-user/back-end.js";
import type { BackEndDevice } from "../../../../host/bridge/vhost-user/back-end-device.js";
import { DeviceVmMemory, type RegionEntry } from "../../../../host/bridge/vhost-user/memory.js";
import { Window } from "../../../../host/bridge/vhost-user/window.js";
import * as native from "../../../../native/index.js";
import { quietLog } from "../../../../shared/log.js";
import { FdShare } from "../../../../shared/peer-fds.js";
import {
  DeviceConfig,
  Features,
  Header,
  MemoryRegion,
  MemTable,
  ProtocolFeature,
  Request,
  U64,
  VringAddr,
  VringState,
} from "../../../../shared/spec/vhost-user.js";
import { TestRing } from "../../../fakes/front-end-ring.js";
import { closeFd, openFds, RawPeer, turn, uniqueMemory } from "../raw-peer.js";

const WINDOW_SIZE = 2 ** 36;
const RAM_SIZE = 0x10_0000;
const USER = 0x7f00_0000_0000;
const GUEST = 0x8000_0000;

/** Made once: the address space of a DeviceVmMemory stays as long as its ArrayBuffers. */
const memory = new DeviceVmMemory();

const noDevice: BackEndDevice = {
  config: () => new Uint8Array(256),
  enabled() {},
  pausing() {},
  resumed() {},
  failed() {},
  memoryChanged() {},
  reset() {},
};

function setUp(t: ExecutionContext) {
  const [ours, theirs] = native.socketPair();
  const events: string[] = [];
  const config = Uint8Array.from({ length: 256 }, (_, i) => i);
  const window = new Window(WINDOW_SIZE, quietLog);
  const backEnd = new BackEnd(ours, {
    window,
    memory,
    log: quietLog,
    device: {
      config: () => config,
      enabled: (index) => events.push(`enabled ${index}`),
      pausing: () => events.push(`pausing, queue 0 ${backEnd.queue(0)?.running ? "running" : "stopped"}`),
      resumed: () => events.push("resumed"),
      failed: () => events.push("failed"),
      memoryChanged() {},
      reset: () => events.push(`reset, queue 0 ${backEnd.queue(0)?.running ? "running" : "stopped"}`),
    },
    gone: () => events.push("gone"),
  });
  const qemu = new RawPeer(theirs);
  const ram = uniqueMemory(RAM_SIZE);
  t.teardown(() => {
    backEnd.close();
    qemu.close();
    closeFd(ram);
  });
  return { backEnd, qemu, events, ram, window };
}

type SetUp = ReturnType<typeof setUp>;

const negotiate = ({ qemu }: SetUp) =>
  qemu.send(
    Request.SET_PROTOCOL_FEATURES,
    1,
    Features.encode({ value: ProtocolFeature.REPLY_ACK | ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_REQ }),
  );

/** Sends a request that wants an acknowledgement, and returns its value. */
async function ask({ qemu }: SetUp, request: number, payload?: Uint8Array, fds?: number[]): Promise<number> {
  qemu.send(request, 9, payload, fds);
  const reply = await qemu.receive();
  if (reply.request !== request || reply.flags !== 5 || reply.payload.length !== 8)
    throw new Error("no acknowledgement");
  return U64.view(new DataView(reply.payload.buffer)).value;
}

function table(...entries: Partial<RegionEntry>[]): Uint8Array {
  const regions = entries.map((entry) =>
    MemoryRegion.encode({ guestAddress: GUEST, size: RAM_SIZE, userAddress: USER, mmapOffset: 0, ...entry }),
  );
  return Buffer.concat([MemTable.encode({ regions: entries.length }), ...regions]);
}

serial("answers of known bytes", async (t) => {
  const setup = setUp(t);
  const { qemu } = setup;
  const bytes = async (request: number, payload?: Uint8Array) => {
    qemu.send(request, 1, payload);
    const reply = await qemu.receive();
    t.is(reply.request, request);
    t.is(reply.flags, 5);
    t.deepEqual(reply.fds, []);
    return [...reply.payload];
  };
  t.deepEqual(
    await bytes(Request.GET_FEATURES),
    [1, 0, 0, 0x60, 3, 0, 0, 0],
    "INSPECT, VERSION_1, ACCESS_PLATFORM, event indices, protocol features",
  );
  t.deepEqual(
    await bytes(Request.GET_PROTOCOL_FEATURES),
    [0x29, 0x06, 0x40, 0, 0, 0, 0, 0],
    "MQ, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, SHMEM; never CONFIGURE_MEM_SLOTS",
  );
  t.deepEqual(await bytes(Request.GET_QUEUE_NUM), [0, 1, 0, 0, 0, 0, 0, 0]);
  t.deepEqual(
    await bytes(Request.GET_SHMEM_CONFIG),
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0],
    "one region of 64 GiB",
  );
  const config = await bytes(
    Request.GET_CONFIG,
    Buffer.concat([DeviceConfig.encode({ offset: 2, size: 4 }), new Uint8Array(4)]),
  );
  t.deepEqual(config, [2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5]);
  t.deepEqual(await bytes(Request.GET_VRING_BASE, VringState.encode({ index: 3 })), [3, 0, 0, 0, 0, 0, 0, 0]);
});

serial("acknowledgements come when they were negotiated and asked for", async (t) => {
  const setup = setUp(t);
  const { qemu } = setup;
  qemu.send(Request.SET_OWNER, 9);
  negotiate(setup);
  qemu.send(Request.SET_OWNER, 1);
  qemu.send(Request.SET_OWNER, 9);
  t.deepEqual(await qemu.receive(), { request: Request.SET_OWNER, flags: 5, payload: new Uint8Array(8), fds: [] });
  await turn();
  t.is(qemu.pending, 0);
  t.is(await ask(setup, Request.SET_CONFIG, new Uint8Array(92)), 0, "a write of the config space is ignored");
});

serial("a message may come in pieces", async (t) => {
  const setup = setUp(t);
  negotiate(setup);
  for (const byte of [Request.SET_VRING_NUM, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0]) {
    setup.qemu.sendBytes(Uint8Array.of(byte));
    await turn();
  }
  t.is((await setup.qemu.receive()).request, Request.SET_VRING_NUM);
});

const refusals: Record<string, (setup: SetUp) => Promise<number>> = {
  "an unknown request": (s) => ask(s, 99),
  "a request that may not be used (ADD_MEM_REG)": (s) => ask(s, 37, new Uint8Array(40)),
  "a payload of a wrong size": (s) => ask(s, Request.SET_VRING_NUM, new Uint8Array(7)),
  "features that were not offered": (s) => ask(s, Request.SET_FEATURES, Features.encode({ value: 1n << 28n })),
  "protocol features that were not offered": (s) =>
    ask(s, Request.SET_PROTOCOL_FEATURES, Features.encode({ value: ProtocolFeature.CONFIGURE_MEM_SLOTS })),
  "no backend channel": (s) => ask(s, Request.SET_BACKEND_REQ_FD),
  "a backend channel that is memory": (s) => ask(s, Request.SET_BACKEND_REQ_FD, undefined, [s.ram]),
  "queue 256": (s) => ask(s, Request.SET_VRING_NUM, VringState.encode({ index: 256, num: 64 })),
  "queue 2^32 - 1": (s) => ask(s, Request.SET_VRING_ENABLE, VringState.encode({ index: 0xffffffff, num: 1 })),
  "a queue of no descriptors": (s) => ask(s, Request.SET_VRING_NUM, VringState.encode({ index: 0, num: 0 })),
  "a queue of 2048": (s) => ask(s, Request.SET_VRING_NUM, VringState.encode({ index: 0, num: 2048 })),
  "an available index of 65536": (s) => ask(s, Request.SET_VRING_BASE, VringState.encode({ index: 0, num: 65536 })),
  "a kick without an fd": (s) => ask(s, Request.SET_VRING_KICK, U64.encode({ value: 0 })),
  "a call that is no eventfd": (s) => ask(s, Request.SET_VRING_CALL, U64.encode({ value: 0 }), [s.ram]),
  "a memory table without its regions": (s) => ask(s, Request.SET_MEM_TABLE, table({}).subarray(0, 8), [s.ram]),
  "a memory table shorter than its head": (s) => ask(s, Request.SET_MEM_TABLE, new Uint8Array(4)),
  "a memory table that says 2^32 - 1 regions": (s) =>
    ask(s, Request.SET_MEM_TABLE, Uint8Array.from([255, 255, 255, 255, ...table({}).subarray(4)]), [s.ram]),
  "a region without an fd": (s) => ask(s, Request.SET_MEM_TABLE, table({})),
  "two fds for one region": (s) => ask(s, Request.SET_MEM_TABLE, table({}), [s.ram, s.ram]),
  "nine regions": (s) => ask(s, Request.SET_MEM_TABLE, table(...new Array(9).fill({})), new Array(8).fill(s.ram)),
  "a region larger than its file": (s) => ask(s, Request.SET_MEM_TABLE, table({ mmapOffset: 0x1000 }), [s.ram]),
  "a region of size 0": (s) => ask(s, Request.SET_MEM_TABLE, table({ size: 0 }), [s.ram]),
  "a region that is not page-aligned": (s) =>
    ask(s, Request.SET_MEM_TABLE, table({ mmapOffset: 0x800, size: 0x1000 }), [s.ram]),
  "regions that overlap": (s) =>
    ask(s, Request.SET_MEM_TABLE, table({}, { guestAddress: GUEST + RAM_SIZE - 0x1000 }), [s.ram, s.ram]),
  "a region at 2^64 - 4096": (s) => {
    const bytes = table({});
    bytes.set([0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], MemTable.size);
    return ask(s, Request.SET_MEM_TABLE, bytes, [s.ram]);
  },
  "nine fds on one message": (s) => ask(s, Request.SET_MEM_TABLE, table({}), new Array(9).fill(s.ram)),
  "nine fds on its bytes": async (s) => {
    const bytes = Buffer.concat([Header.encode({ request: Request.SET_OWNER, flags: 9, size: 0 })]);
    for (const byte of bytes.subarray(0, 9)) s.qemu.sendBytes(Uint8Array.of(byte), [s.ram]);
    s.qemu.sendBytes(bytes.subarray(9));
    return U64.view(new DataView((await s.qemu.receive()).payload.buffer)).value;
  },
  "a region in a file of a disk": async (s) => {
    const fd = openSync(process.execPath, "r");
    const value = await ask(s, Request.SET_MEM_TABLE, table({}), [fd]);
    closeSync(fd);
    return value;
  },
  "a region in an eventfd": async (s) => {
    const fd = native.eventfd(0);
    const value = await ask(s, Request.SET_MEM_TABLE, table({}), [fd]);
    closeFd(fd);
    return value;
  },
};
for (const [name, act] of Object.entries(refusals)) {
  serial(`${name} is refused, leaves no fd, and the connection goes on`, async (t) => {
    const setup = setUp(t);
    negotiate(setup);
    await ask(setup, Request.SET_OWNER);
    t.is(await act(setup), 1);
    t.is(openFds(setup.ram), 1);
    t.is(await ask(setup, Request.SET_OWNER), 0);
    t.deepEqual(setup.events, []);
  });
}

const fatalities: Record<string, (setup: SetUp) => void> = {
  "a message of version 2": ({ qemu }) => qemu.send(Request.SET_OWNER, 2),
  "a huge payload": ({ qemu }) => qemu.sendBytes(Uint8Array.of(3, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)),
  "a request that waits for an answer that cannot be given": ({ qemu }) =>
    qemu.send(Request.GET_CONFIG, 1, DeviceConfig.encode({ offset: 250, size: 7 })),
  "GET_VRING_BASE of queue 300": ({ qemu }) => qemu.send(Request.GET_VRING_BASE, 1, VringState.encode({ index: 300 })),
};
for (const [name, act] of Object.entries(fatalities)) {
  serial(`${name} ends the connection and leaves no fd`, async (t) => {
    const setup = setUp(t);
    act(setup);
    await setup.qemu.end();
    t.deepEqual(setup.events, ["gone"]);
    t.is(openFds(setup.ram), 1);
  });
}

/** Realizes a device with one queue of 8 in shared memory, and starts it. */
async function start(t: ExecutionContext) {
  const setup = setUp(t);
  const buffer = native.mapFile(setup.ram, 0, RAM_SIZE, native.PROT_READ | native.PROT_WRITE);
  const ring = new TestRing(buffer, GUEST, 0x1000, 8);
  const [kick, call, error] = [native.eventfd(1), native.eventfd(0), native.eventfd(0)];
  t.teardown(() => [kick, call, error].forEach(closeFd));
  negotiate(setup);
  const address = {
    descriptors: USER + ring.descriptors,
    available: USER + ring.available,
    used: USER + ring.used,
  };
  t.is(await ask(setup, Request.SET_MEM_TABLE, table({}), [setup.ram]), 0);
  t.is(await ask(setup, Request.SET_VRING_NUM, VringState.encode({ index: 0, num: 8 })), 0);
  t.is(await ask(setup, Request.SET_VRING_BASE, VringState.encode({ index: 0, num: 0 })), 0);
  t.is(await ask(setup, Request.SET_VRING_ADDR, VringAddr.encode({ index: 0, ...address })), 0);
  t.is(await ask(setup, Request.SET_VRING_KICK, U64.encode({ value: 0 }), [kick]), 0);
  t.is(await ask(setup, Request.SET_VRING_CALL, U64.encode({ value: 0 }), [call]), 0);
  t.is(await ask(setup, Request.SET_VRING_ERR, U64.encode({ value: 0 }), [error]), 0);
  t.is(await ask(setup, Request.SET_VRING_ENABLE, VringState.encode({ index: 0, num: 1 })), 0);
  t.is(await ask(setup, Request.SET_VRING_ENABLE, VringState.encode({ index: 1, num: 1 })), 0);
  return { ...setup, ring, buffer, kick, call, error };
}

serial(
  "an interrupt that nobody took goes on to the next call eventfd, and one without an eventfd to the first",
  async (t) => {
    const setup = await start(t);
    const { backEnd, ring, call } = setup;
    const setCall = (...fds: number[]) =>
      ask(setup, Request.SET_VRING_CALL, U64.encode({ value: fds.length > 0 ? 0 : 0x100 }), fds);
    const complete = () => {
      ring.add(0, { address: GUEST + 0x8000, length: 16 });
      const queue = backEnd.queue(0);
      t.true(queue?.next());
      queue?.complete(0);
      return backEnd.call(0);
    };
    const [second, third, fourth] = [native.eventfd(0), native.eventfd(0), native.eventfd(0)];
    t.teardown(() => [second, third, fourth].forEach(closeFd));
    t.true(complete());
    t.is(await setCall(second), 0);
    t.is(native.eventfdRead(second), 1);
    native.eventfdRead(call);
    t.is(await setCall(third), 0);
    t.is(native.eventfdRead(third), 0);
    t.is(await setCall(), 0);
    t.false(complete());
    t.is(await setCall(fourth), 0);
    t.is(native.eventfdRead(fourth), 1);
    t.is(await setCall(third), 0);
    t.is(native.eventfdRead(third), 0);
  },
);

serial("the end of a front-end is found when the next one is there, and told once", async (t) => {
  const setup = await start(t);
  const { backEnd, events, qemu } = setup;
  backEnd.endIfHungUp();
  t.false(events.includes("gone"));
  qemu.close();
  backEnd.endIfHungUp();
  t.is(events.filter((event) => event === "gone").length, 1);
  await turn();
  t.is(events.filter((event) => event === "gone").length, 1);
});

serial("a queue runs from its enabling to the stop, and says where it was", async (t) => {
  const setup = await start(t);
  const { backEnd, ring, events, call, qemu } = setup;
  t.deepEqual(events, ["enabled 0", "enabled 1"]);
  t.is(backEnd.queues, 2);
  t.true(backEnd.kickFd(0) >= 0);
  t.is(backEnd.kickFd(1), -1, "a queue that the driver never set up has no kick");
  t.false(backEnd.queue(1)?.running);
  ring.add(0, { address: GUEST + 0x8000, length: 16 });
  const queue = backEnd.queue(0);
  t.true(queue?.next());
  queue?.complete(0);
  backEnd.call(0);
  t.is(native.eventfdRead(call), 1);
  ring.setAvailableFlags(1);
  backEnd.call(0);
  t.is(native.eventfdRead(call), 0);
  setup.window.permit();

  t.is(await ask(setup, Request.SET_VRING_ENABLE, VringState.encode({ index: 0, num: 0 })), 0);
  qemu.send(Request.GET_VRING_BASE, 1, VringState.encode({ index: 0 }));
  t.deepEqual([...(await qemu.receive()).payload], [0, 0, 0, 0, 1, 0, 0, 0]);
  t.deepEqual(events.slice(2), ["pausing, queue 0 running"], "told once, and before the queue stops");
  t.false(backEnd.queue(0)?.running);
  t.is(backEnd.kickFd(0), -1);
});

serial("the same table again keeps what is mapped and closes the new fds", async (t) => {
  const setup = await start(t);
  const { backEnd, buffer, ring } = setup;
  const at = memory.locate(GUEST + 0x9000, 4);
  for (let i = 0; i < 10; i++) t.is(await ask(setup, Request.SET_MEM_TABLE, table({}), [setup.ram]), 0);
  t.is(openFds(setup.ram), 2, "the test's, and one for the region");
  t.is(memory.locate(GUEST + 0x9000, 4), at);
  t.true(backEnd.queue(0)?.running);
  new Uint8Array(buffer).set([1, 2, 3], 0x9000);
  ring.add(0, { address: GUEST + 0x9000, length: 3 });
  t.true(backEnd.queue(0)?.next());
  const got = new Uint8Array(3);
  backEnd.queue(0)?.read(0, got, 0, 3);
  t.deepEqual([...got], [1, 2, 3]);
});

serial("a region that comes and goes beside another leaves that one alone", async (t) => {
  const setup = await start(t);
  const other = native.createMemory("other", 0x2000, false);
  t.teardown(() => closeFd(other));
  const guestAddress = 0x1_0000_0000;
  const two = table({}, { guestAddress, size: 0x1000, userAddress: USER + 0x1000_0000, mmapOffset: 0x1000 });
  t.is(await ask(setup, Request.SET_MEM_TABLE, two, [setup.ram, other]), 0);
  const at = memory.locate(guestAddress, 0x1000);
  t.true(at >= 0);
  t.is(memory.locate(guestAddress, 0x1001), -1);
  t.is(memory.locate(guestAddress - 1, 2), -1);
  memory.bytes(Math.floor(at / memory.pieceSize))[at % memory.pieceSize] = 77;
  t.is(new Uint8Array(native.mapFile(other, 0x1000, 0x1000, native.PROT_READ))[0], 77);
  t.is(await ask(setup, Request.SET_MEM_TABLE, table({}), [setup.ram]), 0);
  t.is(memory.locate(guestAddress, 1), -1);
  t.is(memory.bytes(Math.floor(at / memory.pieceSize))[at % memory.pieceSize], 0, "what is unmapped reads as zeros");
  t.true(setup.backEnd.queue(0)?.running);
});

serial("a table without a running queue's memory stops the queue and reports it", async (t) => {
  const setup = await start(t);
  t.is(await ask(setup, Request.SET_MEM_TABLE, table({ guestAddress: 0, userAddress: USER * 2 }), [setup.ram]), 0);
  t.false(setup.backEnd.queue(0)?.running);
  t.is(native.eventfdRead(setup.error), 1);
  t.is(await ask(setup, Request.SET_OWNER), 0);
});

serial("a queue outside memory is enabled, does not run, and is reported", async (t) => {
  const setup = await start(t);
  for (const index of [2, 3]) {
    const bad = { descriptors: index === 2 ? 0x5000 : USER + 8, available: USER, used: USER };
    t.is(await ask(setup, Request.SET_VRING_NUM, VringState.encode({ index, num: 8 })), 0);
    t.is(await ask(setup, Request.SET_VRING_ADDR, VringAddr.encode({ index, ...bad })), 0);
    t.is(await ask(setup, Request.SET_VRING_KICK, U64.encode({ value: index }), [setup.kick]), 0);
    t.is(await ask(setup, Request.SET_VRING_ERR, U64.encode({ value: index }), [setup.error]), 0);
    t.is(await ask(setup, Request.SET_VRING_ENABLE, VringState.encode({ index, num: 1 })), 0);
    t.false(setup.backEnd.queue(index)?.running);
    t.is(native.eventfdRead(setup.error), 1);
  }
});

serial("the kick of a running queue cannot be taken away", async (t) => {
  const setup = await start(t);
  const value = 0x100;
  t.is(await ask(setup, Request.SET_VRING_KICK, U64.encode({ value }), []), 1);
  t.true(setup.backEnd.kickFd(0) >= 0);
});

serial("the front-end's end stops the device, closes everything and is told last", async (t) => {
  const setup = await start(t);
  const { kick, backEnd } = setup;
  t.not(backEnd.kickFd(0), kick);
  setup.qemu.close();
  while (!setup.events.includes("gone")) await turn();
  t.deepEqual(setup.events.slice(2), ["reset, queue 0 running", "gone"]);
  t.is(memory.regions, 0);
  t.is(backEnd.kickFd(0), -1);
  t.is(openFds(setup.ram), 1);
  setup.qemu.close = () => {};
});

function serial(name: string, run: (t: ExecutionContext) => Promise<void>): void {
  // They share one memory.
  test.serial(name, run);
}

serial("a flood of requests is dealt with in turns, in order", async (t) => {
  const [ours, theirs] = native.socketPair();
  let served = 0;
  const backEnd = new BackEnd(ours, {
    window: new Window(WINDOW_SIZE, quietLog),
    memory,
    device: {
      ...noDevice,
      config: () => {
        served++;
        return new Uint8Array(256).fill(served);
      },
    },
    log: quietLog,
    gone: () => t.fail(),
  });
  const qemu = new RawPeer(theirs);
  t.teardown(() => {
    backEnd.close();
    qemu.close();
  });
  const count = 1000;
  const size = DeviceConfig.size;
  const request = Buffer.concat([
    Header.encode({ request: Request.GET_CONFIG, flags: 1, size: size + 1 }),
    DeviceConfig.encode({ offset: 0, size: 1 }),
    new Uint8Array(1),
  ]);
  qemu.sendBytes(Buffer.concat(new Array(count).fill(request)));
  for (let before = 0; served < count; before = served) {
    await turn();
    t.true(served - before <= 200, `${served - before} at once`);
  }
  for (let n = 1; n <= count; n++) t.is((await qemu.receive()).payload[size], n & 0xff);
});

serial(
  "the front-end's fds are counted from their arrival to their end, and those beyond its share refused",
  async (t) => {
    const [ours, theirs] = native.socketPair();
    const fds = new FdShare(() => 4);
    const backEnd = new BackEnd(ours, {
      window: new Window(WINDOW_SIZE, quietLog),
      memory,
      device: noDevice,
      log: quietLog,
      fds,
      gone: () => {},
    });
    const setup = { backEnd, qemu: new RawPeer(theirs), ram: uniqueMemory(RAM_SIZE) } as SetUp;
    t.teardown(() => {
      setup.qemu.close();
      closeFd(setup.ram);
    });
    negotiate(setup);
    const event = native.eventfd(0);
    const call = (index: number) => ask(setup, Request.SET_VRING_CALL, U64.encode({ value: index }), [event]);
    t.deepEqual([await call(0), await call(0), await call(1)], [0, 0, 0]);
    t.is(fds.used, 2);
    t.is(await ask(setup, Request.SET_MEM_TABLE, table({}), [setup.ram]), 0);
    t.is(fds.used, 3, "of a table's, one for each region");
    const two = table({}, { guestAddress: 4 * GUEST });
    t.is(await ask(setup, Request.SET_MEM_TABLE, two, [setup.ram, setup.ram]), 1);
    t.is(memory.regions, 1, "the table before stays");
    t.is(await call(2), 0);
    t.is(await call(3), 1);
    t.is(await ask(setup, Request.SET_OWNER), 0);
    t.is(openFds(setup.ram), 2);
    native.close(event);
    backEnd.close();
    t.is(fds.used, 0);
  },
);

serial("a table that cannot be mapped leaves the one before", async (t) => {
  const setup = setUp(t);
  negotiate(setup);
  t.is(await ask(setup, Request.SET_MEM_TABLE, table({}), [setup.ram]), 0);
  const place = memory.locate(GUEST, RAM_SIZE);
  const bytes = memory.bytes(Math.floor(place / memory.pieceSize));
  bytes[place % memory.pieceSize] = 7;
  const readOnly = openSync(`/proc/self/fd/${setup.ram}`, "r");
  t.teardown(() => closeSync(readOnly));
  const two = table({ mmapOffset: 0x1000, size: 0x1000 }, { guestAddress: 2 * GUEST });
  t.is(await ask(setup, Request.SET_MEM_TABLE, two, [setup.ram, readOnly]), 1);
  t.is(memory.regions, 1);
  t.is(memory.locate(GUEST, RAM_SIZE), place);
  t.is(bytes[place % memory.pieceSize], 7);
  t.is(await ask(setup, Request.SET_MEM_TABLE, table({ guestAddress: 2 * GUEST }), [setup.ram]), 0);
  t.is(memory.locate(GUEST, 1), -1);
  t.true(memory.locate(2 * GUEST, RAM_SIZE) >= 0);
});
