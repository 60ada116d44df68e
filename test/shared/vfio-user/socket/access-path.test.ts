/** Accesses by the path, from a client's socket to a ring and back; and all that it leaves to TypeScript. */
import test, { type ExecutionContext } from "ava";
import * as native from "../../../../native/index.js";
import { TICKS_PER_DEADLINE } from "../../../../shared/deadline.js";
import { Errno } from "../../../../shared/errors.js";
import { RegisterMemoryHead } from "../../../../shared/spec/link.js";
import { Command, HeaderFlags, RegionAccess, WriteMulti, WriteMultiEntry } from "../../../../shared/spec/vfio-user.js";
import { DescriptorFlags } from "../../../../shared/spec/virtio.js";
import { Share } from "../../../../shared/turn.js";
import { checkBody, checkRequest } from "../../../../shared/vfio-user/checks.js";
import { AccessPath, Stop } from "../../../../shared/vfio-user/socket/access-path.js";
import { AccessRig, encode, type Message, type RigOptions } from "../../../fakes/access-rig.js";
import { Choices } from "../../../fuzz/choices.js";
import { oddNumber, spoil } from "../../../fuzz/mutate.js";

const SIZES = [0x1000, 0, 0x10_0000, 0, 0, 0, 0, 0x100, 0];
const POSTED = 0;
const PLAIN = 2;

function setUp(t: ExecutionContext, options: Partial<RigOptions> = {}): AccessRig {
  const rig = new AccessRig({ regionSizes: SIZES, postedRegions: 1 << POSTED, ...options });
  t.teardown(() => rig.close());
  return rig;
}

const access = (region: number, offset: number, count: number) => RegionAccess.encode({ region, offset, count });
const read = (id: number, region = PLAIN, offset = 0x40, count = 4, flags = 0) =>
  encode(id, Command.REGION_READ, access(region, offset, count), flags);
const write = (id: number, data: Uint8Array, region = POSTED, offset = 0x40, flags = 0) =>
  encode(id, Command.REGION_WRITE, Buffer.concat([access(region, offset, data.length), data]), flags);
const multi = (id: number, ...counts: number[]) =>
  encode(
    id,
    Command.REGION_WRITE_MULTI,
    Buffer.concat([
      WriteMulti.encode({ writes: counts.length }),
      ...counts.map((count) => WriteMultiEntry.encode({ region: PLAIN, offset: 8, count })),
    ]),
  );
const withData = ({ body }: Message, ...data: number[]) => Buffer.concat([body, Uint8Array.from(data)]);

for (const eventIndex of [false, true]) {
  const how = eventIndex ? "event indices" : "flags";

  test(`a read goes to the device and back without TypeScript, ${how}`, async (t) => {
    const rig = setUp(t, { eventIndex });
    rig.offer(2);
    for (const id of [7, 0xffff]) {
      rig.send(read(id));
      const asked = await rig.until(() => rig.take());
      t.deepEqual([asked.command, asked.flags, asked.body], [9, 0, Buffer.from(access(PLAIN, 0x40, 4))]);
      t.true(native.eventfdRead(rig.call) > 0, "the device process is woken");
      rig.answer(asked, withData(asked, 1, 2, 3, 4));
      const reply = await rig.until(() => rig.receive().at(0));
      t.deepEqual([reply.id, reply.flags, [...reply.body.subarray(16)]], [id, HeaderFlags.TYPE_REPLY, [1, 2, 3, 4]]);
      t.deepEqual(rig.fromRing.take(), { id: id === 7 ? 0 : 1, length: 0 });
    }
    t.deepEqual([rig.commands, rig.left, rig.path.isBusy], [[], [], false]);
    t.like(rig.path.counts, { reads: 2, sent: 2, received: 2 });
  });

  test(`a posted write is answered before the device has it; many come in order, ${how}`, async (t) => {
    const rig = setUp(t, { eventIndex });
    rig.offer(16);
    rig.send(...Array.from({ length: 12 }, (_, n) => write(n, Uint8Array.of(n))));
    const replies: Message[] = [];
    await rig.until(() => {
      replies.push(...rig.receive());
      return replies.length === 12 ? true : undefined;
    });
    t.deepEqual(
      replies.map(({ id }) => id),
      Array.from({ length: 12 }, (_, n) => n),
    );
    t.deepEqual([...replies[3].body], [...access(POSTED, 0x40, 1)]);
    for (let n = 0; n < 12; n++) {
      const asked = rig.take();
      t.deepEqual([asked?.flags, asked?.body[16]], [HeaderFlags.NO_REPLY, n]);
    }
    t.true(native.eventfdRead(rig.call) <= 2, "one signal for those that came together");
    t.like(rig.path.counts, { writes: 12, postedWrites: 12 });
    t.deepEqual(rig.commands, []);
  });
}

test("writes that are not posted, and several in one message, wait for the device", async (t) => {
  const rig = setUp(t);
  rig.offer(2);
  rig.send(write(1, Uint8Array.of(1, 2), PLAIN));
  let asked = await rig.until(() => rig.take());
  t.is(asked.flags, 0);
  rig.answer(asked, asked.body.subarray(0, 16));
  t.is((await rig.until(() => rig.receive().at(0))).body.length, 16);
  rig.send(multi(2, 8, 3));
  asked = await rig.until(() => rig.take());
  rig.answer(asked, WriteMulti.encode({ writes: 2 }));
  t.deepEqual([...(await rig.until(() => rig.receive().at(0))).body], [...WriteMulti.encode({ writes: 2 })]);
  t.like(rig.path.counts, { writes: 1, postedWrites: 0, sent: 2 });
});

test("NO_REPLY: the device is asked all the same, and the next one waits for it", async (t) => {
  const rig = setUp(t);
  rig.offer(3);
  rig.send(write(1, Uint8Array.of(5), POSTED, 0, HeaderFlags.NO_REPLY), read(2, PLAIN, 0, 4, HeaderFlags.NO_REPLY));
  t.is((await rig.until(() => rig.take())).flags, HeaderFlags.NO_REPLY);
  const asked = await rig.until(() => rig.take());
  t.true(rig.path.isBusy);
  rig.answer(asked, withData(asked, 0, 0, 0, 0));
  await rig.until(() => (rig.path.isBusy ? undefined : true));
  t.deepEqual(rig.receive(), []);
});

test("one at a time: what comes behind a read waits, and is handed over after it", async (t) => {
  const rig = setUp(t);
  rig.offer(4);
  rig.send(read(1), read(2));
  const asked = await rig.until(() => rig.take());
  rig.send(encode(3, Command.DEVICE_RESET, new Uint8Array(0)));
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.deepEqual([rig.take(), rig.commands], [undefined, []]);
  rig.answer(asked, withData(asked, 1, 1, 1, 1));
  await rig.until(() => rig.commands.at(0));
  t.is(rig.receive().at(0)?.id, 1);
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2],
  );
  rig.connection.finish();
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2, 3],
  );
  rig.connection.finish();
  rig.send(read(4));
  t.is((await rig.until(() => rig.take())).command, Command.REGION_READ, "by the path again");
});

test("an error of the device's", async (t) => {
  const rig = setUp(t);
  for (const [errno, expected] of [
    [Errno.EPERM, Errno.EPERM],
    [5000, Errno.EIO],
  ]) {
    rig.offer();
    rig.send(read(1));
    rig.answer(await rig.until(() => rig.take()), undefined, errno);
    const reply = await rig.until(() => rig.receive().at(0));
    t.deepEqual([reply.flags, reply.errno, reply.body.length], [0x21, expected, 0]);
  }
});

const WRONG: Readonly<Record<string, (asked: Message) => Uint8Array>> = {
  "too short": ({ id, command, body }) => encode(id, command, body, HeaderFlags.TYPE_REPLY),
  "too long": (asked) => encode(asked.id, asked.command, withData(asked, 1, 2, 3, 4, 5), HeaderFlags.TYPE_REPLY),
  "of another place": ({ id, command }) =>
    encode(id, command, Buffer.concat([access(PLAIN, 0x44, 4), Uint8Array.of(1, 2, 3, 4)]), HeaderFlags.TYPE_REPLY),
  "to another command": (asked) =>
    encode(asked.id, Command.REGION_WRITE, withData(asked, 1, 2, 3, 4), HeaderFlags.TYPE_REPLY),
  "with an id of nothing": (asked) =>
    encode(asked.id + 1, asked.command, withData(asked, 1, 2, 3, 4), HeaderFlags.TYPE_REPLY),
  "with an id beyond all": (asked) =>
    encode(0xffff, asked.command, withData(asked, 1, 2, 3, 4), HeaderFlags.TYPE_REPLY),
};
for (const [what, bytes] of Object.entries(WRONG)) {
  test(`a reply ${what} is left to TypeScript, and answers nothing`, async (t) => {
    const rig = setUp(t);
    rig.offer();
    rig.send(read(1));
    const asked = await rig.until(() => rig.take());
    rig.reply(bytes(asked));
    await rig.until(() => rig.left.at(0));
    t.deepEqual([rig.receive(), rig.path.isBusy], [[], true]);
    rig.answer(asked, withData(asked, 1, 2, 3, 4));
    t.is((await rig.until(() => rig.receive().at(0))).id, 1, "the right one does");
    rig.answer(asked, withData(asked, 1, 2, 3, 4));
    await rig.until(() => rig.left.at(1));
    t.deepEqual(rig.receive(), [], "but once");
  });
}

test("a device process's command is left to TypeScript, with all that is behind it", async (t) => {
  const rig = setUp(t);
  rig.offer();
  rig.send(read(1));
  const asked = await rig.until(() => rig.take());
  rig.reply(encode(3, Command.DMA_READ, Buffer.alloc(16)));
  rig.answer(asked, withData(asked, 1, 2, 3, 4));
  t.is((await rig.until(() => rig.receive().at(0))).id, 1, "delivered");
  t.is(rig.left[0].command, Command.DMA_READ);
});

const DECLINED: Readonly<Record<string, (rig: AccessRig) => void>> = {
  "the path is stopped": (rig) => {
    rig.offer();
    rig.path.stop(Stop.CHANNEL);
  },
  "the driver offers no buffer": () => {},
  "the buffer is too short": (rig) => rig.offer(1, { length: 31 }),
  "the buffer is not the device's to write": (rig) => rig.offer(1, { writable: false }),
  "the buffer is not in memory": (rig) => rig.offer(1, { address: 0x9000_0000 }),
  "the buffer ends outside of memory": (rig) => rig.offer(1, { address: 0x13_fff0 }),
  "the buffer is a chain": (rig) => {
    const [from] = [0x11_0000];
    rig.toRing.add(
      0,
      { address: from, length: 16, writable: true },
      { address: from + 64, length: 64, writable: true },
    );
  },
  "the descriptor is indirect": (rig) => {
    rig.toRing.descriptor(0, 0x11_0000, 64, DescriptorFlags.WRITE | DescriptorFlags.INDIRECT);
    rig.toRing.offer(0);
  },
  "the head is outside of the queue": (rig) => rig.toRing.offer(99),
  "the available index jumped": (rig) => {
    rig.offer();
    rig.toRing.setAvailableIndex(40);
  },
  "the queue has stopped": (rig) => {
    rig.offer();
    rig.to.stop();
  },
  "the session rests": (rig) => {
    rig.offer();
    rig.share.restsUntil = performance.now() + 20;
  },
  "there are no rings": (rig) => {
    rig.offer();
    rig.path.reset();
  },
};
for (const [why, prepare] of Object.entries(DECLINED)) {
  test(`an access comes up when ${why}`, async (t) => {
    const rig = setUp(t);
    prepare(rig);
    rig.send(write(9, Uint8Array.of(1)));
    const command = await rig.until(() => rig.commands.at(0));
    t.deepEqual([command.id, command.command, command.body[16]], [9, Command.REGION_WRITE, 1]);
    t.deepEqual(rig.receive(), []);
  });
}

test("a command between accesses comes up in its place", async (t) => {
  const rig = setUp(t);
  rig.offer(4);
  rig.send(write(1, Uint8Array.of(1)), encode(2, Command.DEVICE_RESET, new Uint8Array(0)), write(3, Uint8Array.of(3)));
  await rig.until(() => rig.commands.at(0));
  t.is(rig.take()?.body[16], 1);
  t.deepEqual([rig.commands.map(({ id }) => id), rig.take()], [[2], undefined]);
  rig.connection.finish();
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2, 3],
    "what came with it goes the same way",
  );
});

test("a message in pieces is put together", async (t) => {
  const rig = setUp(t);
  rig.offer(4);
  const bytes = Buffer.concat([write(1, Uint8Array.of(1)), write(2, Uint8Array.of(2))]);
  rig.send(bytes.subarray(0, 50));
  t.is((await rig.until(() => rig.take())).body[16], 1);
  rig.send(bytes.subarray(50));
  t.is((await rig.until(() => rig.take())).body[16], 2);
});

test("a client that does not read its replies loses none, and makes nobody wait", async (t) => {
  const rig = setUp(t);
  const numbered = (n: number) => write(n & 0xffff, new Uint8Array(Uint32Array.of(n).buffer));
  const seen: number[] = [];
  let sent = 0;
  let left: Uint8Array = numbered(0);
  rig.offer(8);
  const turn = async () => {
    await new Promise((resolve) => setImmediate(resolve));
    for (let asked = rig.take(); asked; asked = rig.take()) {
      seen.push(asked.body.readUInt32LE(16));
      rig.offer();
    }
    for (const { body } of rig.commands.splice(0)) {
      seen.push(body.readUInt32LE(16));
      rig.connection.answer(encode(body.readUInt32LE(16) & 0xffff, Command.REGION_WRITE, body.subarray(0, 16), 1), 32);
      rig.connection.finish();
    }
  };
  // Until its socket takes no more, since nobody takes from it.
  for (let idle = 0; idle < 100; ) {
    const took = rig.send(left);
    if (took > 0) left = left.subarray(took);
    if (left.length === 0) left = numbered(++sent);
    idle = took > 0 ? 0 : idle + 1;
    await turn();
  }
  t.true(sent > 100);
  const replies: Message[] = [];
  // The session may rest meanwhile, as other tests have turns, too.
  while (replies.length < sent) {
    replies.push(...rig.receive());
    await turn();
  }
  t.deepEqual(
    seen,
    Array.from({ length: seen.length }, (_, n) => n),
    "the device has them in order",
  );
  t.deepEqual(
    replies.map(({ id }) => id),
    seen.map((n) => n & 0xffff),
  );
  t.is(seen.length, sent);
});

test("an access that is not waited for any more is taken, and its reply is nobody's", async (t) => {
  const rig = setUp(t);
  rig.offer(3);
  rig.send(read(5, PLAIN, 0x20, 8));
  const asked = await rig.until(() => rig.take());
  for (let n = 1; n < TICKS_PER_DEADLINE; n++) t.false(rig.path.tick());
  t.true(rig.path.tick());
  const late = rig.connection.takeAccess();
  t.like(late, { id: 5, command: Command.REGION_READ, flags: 0, length: 16 });
  t.deepEqual([...(late?.bytes.subarray(late.offset, late.offset + 16) ?? [])], [...access(PLAIN, 0x20, 8)]);
  t.deepEqual([rig.path.isBusy, rig.connection.takeAccess(), rig.path.tick()], [false, undefined, false]);
  rig.connection.finish();
  rig.send(read(6));
  const next = await rig.until(() => rig.take());
  t.not(next.id, asked.id);
  rig.answer(asked, withData(asked, 1, 2, 3, 4));
  rig.answer(next, withData(next, 5, 6, 7, 8));
  t.deepEqual((await rig.until(() => rig.receive().at(0))).id, 6);
  t.deepEqual([rig.receive(), rig.left], [[], []]);
});

test("a command behind an access that was taken is not ended by the path", async (t) => {
  const rig = setUp(t);
  rig.offer();
  rig.send(read(1));
  await rig.until(() => rig.take());
  rig.send(encode(2, Command.DEVICE_RESET, new Uint8Array(0)), encode(3, Command.DEVICE_RESET, new Uint8Array(0)));
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(rig.connection.takeAccess()?.id, 1);
  rig.connection.finish();
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2],
  );
  rig.path.attend();
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2],
  );
  rig.connection.finish();
  t.deepEqual(
    rig.commands.map(({ id }) => id),
    [2, 3],
  );
});

test("an access outlives its rings until it is taken", async (t) => {
  const rig = setUp(t);
  rig.offer(2);
  rig.send(read(5));
  const asked = await rig.until(() => rig.take());
  rig.path.reset();
  t.true(rig.path.isBusy);
  t.is(rig.connection.takeAccess()?.id, 5);
  rig.path.rings(rig.to, rig.from);
  rig.answer(asked, withData(asked, 1, 2, 3, 4));
  await rig.until(() => rig.left.at(0));
  t.deepEqual(rig.receive(), [], "of the device process before");
});

test("a device that answers nothing gets no more than there is room for", async (t) => {
  const rig = setUp(t);
  const ids = new Set<number>();
  for (let n = 0; n < 100 && rig.commands.length === 0; n++) {
    rig.offer();
    rig.send(read(n));
    await rig.until(() => {
      const asked = rig.take();
      if (asked) ids.add(asked.id);
      return asked ?? rig.commands.at(0);
    });
    if (rig.connection.takeAccess()) rig.connection.finish();
  }
  t.true(ids.size >= 15 && ids.size <= 16, `${ids.size} asked`);
  t.is(rig.commands.length, 1, "the next one comes up");
});

test("the next client does not get the replies of the one before", async (t) => {
  const rig = setUp(t);
  rig.offer(2);
  rig.send(read(1));
  const asked = await rig.until(() => rig.take());
  rig.connection.close();
  t.false(rig.path.isBusy);
  rig.answer(asked, withData(asked, 1, 2, 3, 4));
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.deepEqual(
    rig.left,
    rig.left.filter(({ id }) => rig.path.has(id) && id !== asked.id),
  );
});

test("writes are counted in register memory before the device has them", async (t) => {
  const rig = setUp(t);
  const memory = new Uint8Array(RegisterMemoryHead.size);
  rig.path.native.registers(memory);
  rig.offer(4);
  rig.send(write(1, Uint8Array.of(1)), write(2, Uint8Array.of(1)), multi(3, 4));
  await rig.until(() => (rig.path.isBusy ? true : undefined));
  t.is(RegisterMemoryHead.view(new DataView(memory.buffer)).writesSent, 3);
});

test("an interrupt without an eventfd is owed", async (t) => {
  const rig = setUp(t);
  rig.to.state[5] = -1;
  rig.offer();
  rig.send(write(1, Uint8Array.of(1)));
  await rig.until(() => rig.take());
  await rig.until(() => rig.receive().at(0));
  t.is(rig.to.state[6], 1);
});

test("a turn of the path's is one of the session's", async (t) => {
  const rig = setUp(t);
  const [before] = Share.lightTurns;
  rig.offer();
  rig.send(write(1, Uint8Array.of(1)));
  await rig.until(() => rig.take());
  await rig.until(() => rig.receive().at(0));
  t.is(rig.share.words[0], 1);
  t.true(Share.lightTurns[0] > before);
});

test("a state that is laid out otherwise is refused", (t) => {
  const layout = new Uint32Array(22);
  const words = () => new Int32Array(2);
  t.throws(() => new native.AccessPath(new Uint8Array(1 << 20), layout, words(), words()), {
    message: /another build/,
  });
  t.throws(() => new native.AccessPath(new Uint8Array(8), new Uint32Array(1), words(), words()), {
    instanceOf: RangeError,
  });
  t.notThrows(() => new AccessPath(new Share()));
});

/** Whether shared/vfio-user/checks.ts lets a message go on to the device. */
function passes(bytes: Buffer<ArrayBuffer>): boolean {
  const command = bytes.readUInt16LE(2);
  const length = bytes.length - 16;
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  try {
    checkBody(command, length, 0);
    const frame = { id: 0, command, flags: 0, errno: 0, bytes, data, offset: 16, length, fds: [] };
    checkRequest(
      { ...frame, position: 0, isAgain: false },
      { regionSizes: SIZES, postedRegions: 1 << POSTED, irqCounts: [] },
    );
    return true;
  } catch {
    return false;
  }
}

test("the checks of C++ and of TypeScript are the same", async (t) => {
  const seed = Math.floor(Math.random() * 2 ** 32);
  t.log(`seed ${seed}`);
  const random = Choices.forRound(seed, 0);
  const rig = setUp(t);
  const taken = { passed: 0, refused: 0 };
  let how = "passed";
  for (let n = 0; n < 4000; n++) {
    const region = random.pick([POSTED, PLAIN, 7, 1, 9, 31, 32, oddNumber(random, 4)]);
    const size = SIZES[region] ?? 0x1000;
    const count = random.pick([0, 1, 2, 4, 8, 64, oddNumber(random, 2) & 0x7ff]);
    const offset = random.chance(80) ? Math.max(0, size - random.below(2 * count + 2)) : random.below(size + 1);
    const bytes: Buffer<ArrayBuffer> = random.pick([
      () => read(n & 0xffff, region, offset, count),
      () => write(n & 0xffff, random.bytes(count), region, offset),
      () => multi(n & 0xffff, ...Array.from({ length: random.between(1, 4) }, () => random.pick([0, 1, 4, 8, 9]))),
    ])();
    if (random.chance(60)) {
      const isMulti = bytes.readUInt16LE(2) === Command.REGION_WRITE_MULTI;
      if (isMulti && random.chance(70)) spoil(random, bytes, WriteMultiEntry, 16 + WriteMulti.size);
      else spoil(random, bytes, isMulti ? WriteMulti : RegionAccess, 16);
    }
    if (how === "passed") rig.offer();
    rig.send(bytes);
    how = await rig.until(() => (rig.take() ? "passed" : rig.commands.length > 0 ? "came up" : undefined));
    const isLarge = bytes.readUInt16LE(2) === Command.REGION_READ && bytes.readUInt32LE(28) > 16384 - 32;
    const expected = passes(bytes) && !isLarge ? "passed" : "came up";
    if (how !== expected) t.fail(`seed ${seed}, message ${n}: ${bytes.toString("hex")} ${how}`);
    if (how !== expected) return;
    taken[how === "passed" ? "passed" : "refused"]++;
    if (how === "passed") rig.path.abandon();
    else {
      rig.commands.length = 0;
      rig.connection.finish();
    }
    rig.path.reset();
    rig.path.rings(rig.to, rig.from);
    rig.receive();
  }
  t.true(taken.passed > 500 && taken.refused > 500, JSON.stringify(taken));
});
