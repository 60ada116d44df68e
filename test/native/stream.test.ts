/** A Poll with a Stream: received before the callback, answered after it. */
import test, { type ExecutionContext } from "ava";
import * as native from "../../native/index.js";
import { owned, pair } from "./helpers.js";

const { StreamWord: Word } = native;

const RING_SIZE = 4096;

/** A stream on one end of a pair; `next` resolves with the events of the next call, after `act` has run in it. */
function stream(t: ExecutionContext, size = RING_SIZE) {
  const [near, far] = native.socketPair();
  owned(t, near);
  const hangUp = once(() => native.close(far));
  t.teardown(hangUp);
  const words = new Int32Array(native.STREAM_WORDS);
  const fds = new Int32Array(1 + 253);
  const memory = new native.StreamMemory(words, -1, 0, RING_SIZE, 1 << 21);
  memory.begin();
  const into = new Uint8Array(memory.received);
  const from = new Uint8Array(1 << 20);
  const stream = new native.Stream(near, memory, fds);
  stream.replyFrom(from);
  words[Word.ROOM] = size;
  words[Word.MOST_FDS] = fds.length - 1;
  let called: (events: number) => void = () => {};
  const poll = new native.Poll(near, (events) => called(events), stream);
  poll.start(native.POLL_READABLE);
  t.teardown(() => poll.close());
  const next = (act = () => {}) =>
    new Promise<number>((resolve) => {
      called = (events) => {
        act();
        resolve(events);
      };
    });
  return { near, far, hangUp, words, memory, fds, into, from, poll, next };
}

/** After the callback under way has ended, promises and all. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

function once(act: () => void): () => void {
  let isDone = false;
  return () => {
    if (!isDone) act();
    isDone = true;
  };
}

const send = (fd: number, ...bytes: number[]) => native.send(fd, Uint8Array.from(bytes), 0, bytes.length);

function receive(fd: number, size = 16): number[] {
  const bytes = new Uint8Array(size);
  const count = native.receive(fd, bytes, 0, size, new Int32Array(1));
  return [...bytes.subarray(0, Math.max(0, count))];
}

test("bytes are there when the callback runs, where they were wanted", async (t) => {
  const { far, words, fds, into, next } = stream(t);
  words[Word.ROOM] = 3;
  send(far, 1, 2, 3);
  await next();
  words[Word.ROOM] = 2;
  send(far, 7, 8, 9);
  let received: number[] = [];
  await next(() => {
    received = [words[Word.RECEIVED], fds[0], words[Word.END], ...into.subarray(0, 6)];
    words[Word.ROOM] = 0;
  });
  t.deepEqual(received, [2, 0, 5, 1, 2, 3, 7, 8, 0]);
  t.deepEqual([...into.subarray(RING_SIZE, RING_SIZE + 6)], [1, 2, 3, 7, 8, 0], "twice, one behind the other");
});

test("without room nothing is received", async (t) => {
  const { near, far, words, poll } = stream(t);
  words[Word.ROOM] = 0;
  send(far, 1);
  // Another callback that comes later than the stream's would have.
  await new Promise((resolve) => setTimeout(resolve, 5));
  poll.stop();
  t.deepEqual(receive(near), [1]);
});

test("a reply goes out when the callback has ended, once", async (t) => {
  const { far, words, from, next } = stream(t);
  send(far, 1);
  let during: number[] = [];
  await next(() => {
    from.set([4, 5, 6]);
    words[Word.REPLY] = 2;
    during = receive(far);
  });
  t.deepEqual(during, []);
  await settled();
  t.is(words[Word.REPLY], 0);
  t.deepEqual(receive(far), [4, 5]);
  t.deepEqual(receive(far), []);
});

test("fds that come along are in the array; the end of the stream is 0", async (t) => {
  const { far, hangUp, words, fds, next } = stream(t);
  const sent = owned(t, native.eventfd(3));
  native.send(far, new Uint8Array(1), 0, 1, [sent]);
  await next();
  t.is(fds[0], 1);
  t.is(native.eventfdRead(owned(t, fds[1])), 3);
  hangUp();
  let received = -1;
  await next(() => {
    received = words[Word.RECEIVED];
    words[Word.ROOM] = 0;
  });
  t.is(received, 0);
});

test("what the socket does not take is reported, with how much it took", async (t) => {
  const { far, words, from, next } = stream(t);
  send(far, 1);
  const length = from.length;
  await next(() => {
    words[Word.REPLY] = length;
  });
  const events = await next();
  t.is(events, native.POLL_UNSENT);
  t.true(words[Word.REPLIED] >= 0 && words[Word.REPLIED] < length);
  t.is(words[Word.REPLY], 0);
});

test("a reply to nobody, and one beyond the buffer, are negative errnos", async (t) => {
  const { far, hangUp, words, from, next } = stream(t);
  send(far, 1);
  await next(() => {
    words[Word.REPLY] = from.length + 1;
  });
  t.is(await next(), native.POLL_UNSENT);
  t.is(words[Word.REPLIED], -22);

  send(far, 1);
  await next(() => {
    hangUp();
    words[Word.REPLY] = 1;
  });
  t.is(await next(), native.POLL_UNSENT);
  t.is(words[Word.REPLIED], -32);
});

test("what is in use of the buffer is never written to", async (t) => {
  const { far, words, into, memory, next } = stream(t, 1 << 20);
  send(far, ...new Array(RING_SIZE + 2).fill(1));
  await next();
  t.is(words[Word.RECEIVED], RING_SIZE);
  send(far, 2);
  await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(words[Word.END], RING_SIZE);
  words[Word.FLOOR] = 1;
  await new Promise((resolve) => setTimeout(resolve, 5));
  t.is(words[Word.END], RING_SIZE, "another process would be given it again");
  const received = next(() => {
    words[Word.ROOM] = 0;
  });
  memory.commit(1);
  await received;
  t.is(words[Word.END], RING_SIZE + 1);
  t.deepEqual([...into.subarray(0, 2), into[RING_SIZE]], [1, 1, 1], "the rest of the first bytes");
});

test("closed in its own callback, with a reply left", async (t) => {
  const { far, words, poll, next } = stream(t);
  send(far, 1);
  await next(() => {
    words[Word.REPLY] = 1;
    poll.close();
  });
  await settled();
  t.deepEqual(receive(far), []);
});

test("wrong arguments are refused", (t) => {
  const [near] = pair(t);
  const words = new Int32Array(native.STREAM_WORDS);
  const fds = new Int32Array(1 + 253);
  const make = (...[received, unsent]: number[]) => new native.StreamMemory(words, -1, 0, received, unsent);
  t.throws(() => new native.StreamMemory(new Int32Array(1), -1, 0, 4096, 4096), { instanceOf: RangeError });
  t.throws(() => make(4096, 4097), { instanceOf: RangeError });
  t.throws(() => make(1, 4096), { instanceOf: RangeError });
  t.throws(() => new native.StreamMemory(words, 999_999, 0, 4096, 4096), { code: "EBADF" });
  const memory = make(4096, 4096);
  t.throws(() => new native.Stream(near, memory, new Int32Array(1)), { instanceOf: RangeError });
  t.throws(() => new native.Stream(near, memory, new Uint8Array(8) as never), { instanceOf: TypeError });
  t.throws(() => new native.Stream(near, {} as never, fds), { instanceOf: TypeError });
  const stream = new native.Stream(near, memory, fds);
  t.throws(() => stream.replyFrom([] as never), { instanceOf: TypeError });
  for (const task of ["event", {}, 1, null]) {
    t.throws(() => new native.Poll(near, () => {}, task as never), { instanceOf: TypeError });
  }
});
