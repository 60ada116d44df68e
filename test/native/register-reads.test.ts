/** A Stream that answers reads of registers from memory, and what it leaves to its owner. */
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { RegisterMemoryHead } from "../../shared/spec/link.js";
import { Command, Header, HeaderFlags, RegionAccess } from "../../shared/spec/vfio-user.js";
import { owned, pair } from "./helpers.js";

const { StreamWord: Word } = native;
const PLACE = RegisterMemoryHead.size;
const REGION = 2;
const OFFSET = 0x100;
const SIZE = 0x20;

/** A stream whose peer reads registers; `memory` has SIZE bytes of REGION from OFFSET on. */
function registers(t: ExecutionContext) {
  const [near, far] = pair(t);
  const words = new Int32Array(native.STREAM_WORDS);
  const streamMemory = new native.StreamMemory(words, -1, 0, 4096, 4096);
  streamMemory.begin();
  const into = new Uint8Array(streamMemory.received);
  const stream = new native.Stream(near, streamMemory, new Int32Array(1 + 253));
  stream.replyFrom(new Uint8Array(4096));
  words[Word.ROOM] = 4096;
  words[Word.MOST_FDS] = 253;
  words[Word.READS] = 1;
  const memory = new Uint8Array(4096);
  const head = RegisterMemoryHead.view(new DataView(memory.buffer));
  head.valid = 1;
  for (let n = 0; n < SIZE; n++) memory[PLACE + n] = 0xa0 + n;
  stream.readsFrom(memory, Uint32Array.of(REGION, OFFSET, SIZE, PLACE));
  let called = () => {};
  const poll = new native.Poll(near, () => called(), stream);
  poll.start(native.POLL_READABLE);
  t.teardown(() => poll.close());
  /** Resolves when the owner was called, with how many bytes were received. */
  const asked = () =>
    new Promise<number>((resolve) => {
      called = () => resolve(words[Word.RECEIVED]);
    });
  return { near, far, words, into, stream, streamMemory, memory, head, asked };
}

type Fields = Partial<{ id: number; command: number; size: number; flags: number }>;
type Access = Partial<{ offset: number; region: number; count: number }>;

function request(access: Access = {}, fields: Fields = {}): Uint8Array {
  const size = Header.size + RegionAccess.size;
  return Buffer.concat([
    Header.encode({ id: 7, command: Command.REGION_READ, size, ...fields }),
    RegionAccess.encode({ offset: OFFSET, region: REGION, count: 4, ...access }),
  ]);
}

const send = (fd: number, bytes: Uint8Array, fds: number[] = []) => native.send(fd, bytes, 0, bytes.length, fds);

/** What the peer gets, when something comes. */
async function reply(fd: number): Promise<Buffer> {
  const bytes = Buffer.alloc(4096);
  for (;;) {
    const count = native.receive(fd, bytes, 0, bytes.length, new Int32Array(1));
    if (count >= 0) return bytes.subarray(0, count);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

for (const [offset, count] of [
  [OFFSET, 4],
  [OFFSET + 8, 8],
  [OFFSET + 1, 1],
  [OFFSET + 2, 2],
  [OFFSET + 3, 4],
  [OFFSET + 5, 8],
  [OFFSET + SIZE - 1, 1],
]) {
  test(`${count} bytes at ${offset - OFFSET} come from memory, and the owner is not called`, async (t) => {
    const { far, words, memory, asked } = registers(t);
    void asked().then(() => t.fail("called"));
    send(far, request({ offset, count }));
    const bytes = await reply(far);
    const size = Header.size + RegionAccess.size + count;
    t.is(bytes.length, size);
    const { id, command, flags, errno, size: said } = Header.view(new DataView(bytes.buffer, bytes.byteOffset));
    t.deepEqual([id, command, flags, errno, said], [7, Command.REGION_READ, HeaderFlags.TYPE_REPLY, 0, size]);
    t.deepEqual(bytes.subarray(Header.size, 32), Buffer.from(RegionAccess.encode({ offset, region: REGION, count })));
    const from = PLACE + offset - OFFSET;
    t.deepEqual(bytes.subarray(32), Buffer.from(memory.subarray(from, from + count)));
    t.is(words[Word.SERVED], 1);
  });
}

const left: Record<string, Uint8Array> = {
  "another region": request({ region: REGION + 1 }),
  "registers that are not there": request({ offset: OFFSET + SIZE }),
  "registers that are not all there": request({ offset: OFFSET + SIZE - 2 }),
  "an offset before them": request({ offset: OFFSET - 1 }),
  "an offset far outside": request({ offset: 2 ** 53 - 4 }),
  "no bytes": request({ count: 0 }),
  "three bytes": request({ count: 3 }),
  "16 bytes": request({ count: 16 }),
  "2^31 bytes": request({ count: 2 ** 31 }),
  "a write": request({}, { command: Command.REGION_WRITE }),
  "a reply": request({}, { flags: HeaderFlags.TYPE_REPLY }),
  "no reply wanted": request({}, { flags: HeaderFlags.NO_REPLY }),
  "a size that is too small": request({}, { size: 31 }),
  "a size that is too large": request({}, { size: 33 }),
  "a part of a message": request().subarray(0, 31),
  "two messages": Buffer.concat([request(), request()]),
};
for (const [name, bytes] of Object.entries(left)) {
  test(`left to the owner: ${name}`, async (t) => {
    const { far, words, into, asked } = registers(t);
    const called = asked();
    send(far, bytes);
    t.is(await called, bytes.length);
    t.deepEqual(Buffer.from(into.subarray(0, bytes.length)), Buffer.from(bytes));
    t.is(words[Word.SERVED], 0);
  });
}

type Registers = ReturnType<typeof registers>;
const states: Record<string, (all: Registers) => void> = {
  "the owner does not allow it": ({ words }) => {
    words[Word.READS] = 0;
  },
  "something is to be sent before it": ({ streamMemory }) => {
    streamMemory.queue(Uint8Array.of(1), 0, 1);
  },
  "a write is on its way": ({ head }) => {
    head.writesSent = 1;
  },
  "the device has dealt with more than it was sent": ({ head }) => {
    head.writesDone = 1;
  },
  "the values are not valid": ({ head }) => {
    head.valid = 0;
  },
  "the memory was taken away": ({ stream }) => stream.readsFrom(undefined),
  "there are no areas": ({ stream, memory }) => stream.readsFrom(memory, new Uint32Array(0)),
};
for (const [name, act] of Object.entries(states)) {
  test(`left to the owner when ${name}`, async (t) => {
    const all = registers(t);
    act(all);
    const called = all.asked();
    send(all.far, request());
    t.is(await called, 32);
    t.is(all.words[Word.SERVED], 0);
  });
}

test("left to the owner with fds", async (t) => {
  const { far, words, asked } = registers(t);
  const called = asked();
  const fd = owned(t, native.eventfd(0));
  send(far, request(), [fd]);
  t.is(await called, 32);
  t.is(words[Word.SERVED], 0);
});

test("left to the owner when the peer does not read what it is sent", async (t) => {
  const { near, far, words, asked } = registers(t);
  const filling = new Uint8Array(65536);
  let filled = 0;
  for (let sent = 0; sent >= 0; filled += sent) {
    sent = native.send(near, filling, 0, filling.length);
    if (sent < 0) break;
  }
  for (;;) {
    if (native.send(near, filling, 0, 1) < 0) break;
    filled++;
  }
  const called = asked();
  send(far, request());
  t.is(await called, native.NOTHING_RECEIVED);
  t.deepEqual([words[Word.REPLIED], words[Word.QUEUED], words[Word.SENT]], [0, 36, 0], "queued for the owner to send");
  let drained = 0;
  while (drained < filled) drained += (await reply(far)).length;
  t.is(drained, filled);
});

test("both counts may wrap around", async (t) => {
  const { far, head } = registers(t);
  head.writesSent = 0xffff_ffff;
  head.writesDone = 0xffff_ffff;
  send(far, request());
  t.is((await reply(far)).length, 36);
});

test("areas lie within the memory", (t) => {
  const { stream, memory } = registers(t);
  const wrong =
    (...area: number[]) =>
    () =>
      stream.readsFrom(memory, Uint32Array.from(area));
  t.throws(wrong(0, 0, 16, 4081), { instanceOf: RangeError });
  t.throws(wrong(0, 0, 0xffff_ffff, 16), { instanceOf: RangeError });
  t.throws(wrong(0, 0, 4097, 0), { instanceOf: RangeError });
  t.throws(wrong(0, 0, 16), { instanceOf: RangeError });
  t.throws(() => stream.readsFrom(new Uint8Array(8), new Uint32Array(0)), { instanceOf: RangeError });
  t.throws(() => stream.readsFrom(memory), { instanceOf: TypeError });
  t.throws(() => stream.readsFrom({} as Uint8Array, new Uint32Array(0)), { instanceOf: TypeError });
});
