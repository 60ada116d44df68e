/** Transfers that overlap: one after the other, by whatever way each goes, and no other waits for them. */
import test from "ava";
import { AtomicIo } from "../../../../../guest/devices/nvme/storage/atomic-io.js";
import type { Done } from "../../../../../guest/devices/nvme/storage/storage.js";
import { close, createMemory } from "../../../../../native/index.js";
import { Random } from "../random.js";
import { bringUp, scratch, settle } from "../setup.js";

/** One that does not end before its time. */
const TASK = { ended: false };

const rethrow = (error: unknown): never => {
  throw error;
};

const COMMANDS = {
  read: { opcode: 2, namespaceId: 1 },
  write: { opcode: 1, namespaceId: 1 },
  zero: { opcode: 8, namespaceId: 1 },
};
const FUA = 1 << 30;
/** Memory that is reached by messages. */
const OUTSIDE = 0x8_0000_0000;
const DISK = 1024 * 1024;

const pieces = (length: number) => ({
  count: 2,
  segments: [
    { bytes: new Uint8Array(length), offset: 0, length: length - 4 },
    { bytes: new Uint8Array(length), offset: 0, length: 4 },
  ],
});

test("random transfers: nothing overlaps a write that is in flight, and all of them end", (t) => {
  const random = new Random();
  t.log(`seed ${random.seed}`);
  interface Begun {
    readonly start: number;
    readonly end: number;
    readonly writes: boolean;
    readonly ended: Done;
  }
  const begun: Begun[] = [];
  const begin = (start: number, length: number, writes: boolean, ended: Done): void => {
    for (const other of begun) {
      const apart = other.end <= start || start + length <= other.start;
      if (!apart && (other.writes || writes)) t.fail(`seed ${random.seed}: ${start}+${length}`);
    }
    begun.push({ start, end: start + length, writes, ended });
  };
  const sum = ({ segments }: ReturnType<typeof pieces>): number => segments[0].length + segments[1].length;
  const io = new AtomicIo(
    {
      read: (given, position, ended) => begin(position, sum(given as ReturnType<typeof pieces>), false, ended),
      write: (given, position, ended) => begin(position, sum(given as ReturnType<typeof pieces>), true, ended),
      zero: (position, length, _deallocate, ended) => begin(position, length, true, ended),
    },
    rethrow,
  );
  let [asked, ended, failed] = [0, 0, 0];
  const done: Done = (error) => {
    ended++;
    if (error !== null) failed++;
  };
  const endOne = (): void => {
    const [one] = begun.splice(random.below(begun.length), 1);
    one.ended(random.below(8) === 0 ? new Error("EIO") : null);
  };
  for (let n = 0; n < 5000; n++) {
    if (random.below(2) === 0 && begun.length > 0) endOne();
    const [position, length] = [random.below(64) * 8, (1 + random.below(8)) * 8];
    const [before, kind] = [begun.length, random.below(4)];
    const free = io.isFree(position, length, kind < 2);
    asked++;
    if (kind < 2) io.read(pieces(length), position, TASK, done);
    else if (kind === 2) io.write(pieces(length), position, TASK, done);
    else io.zero(position, length, random.below(2) === 0, TASK, done);
    t.is(begun.length, before + (free ? 1 : 0), "what is free begins at once");
  }
  while (begun.length > 0) endOne();
  t.is(ended, asked);
  t.true(failed > 0);
  t.true(io.isFree(0, DISK, false), "nothing is left");
});

test("they begin in the order in which they came, so that no write waits for ever behind reads", (t) => {
  const begun: [string, Done][] = [];
  const io = new AtomicIo(
    {
      read: (_, position, ended) => begun.push([`read ${position}`, ended]),
      write: (_, position, ended) => begun.push([`write ${position}`, ended]),
      zero: (position, _length, deallocate, ended) =>
        begun.push([`${deallocate ? "hole" : "zero"} ${position}`, ended]),
    },
    rethrow,
  );
  const order = (): string[] => begun.map(([name]) => name);
  const end = (): void => begun.shift()?.[1](null);
  io.read(pieces(16), 0, TASK, () => {});
  io.write(pieces(16), 0, TASK, () => {});
  io.read(pieces(16), 8, TASK, () => {});
  io.zero(0, 512, false, TASK, () => {});
  io.zero(512, 512, true, TASK, () => {});
  io.read(pieces(8), 0, TASK, () => {});
  t.deepEqual(order(), ["read 0", "hole 512"]);
  end();
  t.deepEqual(order(), ["hole 512", "write 0"]);
  end();
  end();
  t.deepEqual(order(), ["read 8"], "the later read waits for the zeros, and these for this read");
  end();
  t.deepEqual(order(), ["zero 0"]);
  end();
  t.deepEqual(order(), ["read 0"]);
});

/**
 * The ways of data: `direct` needs a disk whose bytes can be had at once, `bounced` memory that is not in the window.
 */
const WAYS = ["direct", "pooled", "bounced"] as const;

for (const first of ["pooled", "bounced"] as const) {
  for (const second of WAYS) {
    for (const [held, next] of [
      ["write", "read"],
      ["read", "write"],
      ["write", "write"],
      ["zero", "read"],
    ] as const) {
      test(`a ${second} ${next} of a block begins when a ${first} ${held} of it has ended`, async (t) => {
        // Only what comes second finds a disk whose bytes can be had at once.
        const flags = (operation: string) => (second === "direct" && next === operation ? 0 : undefined);
        const fd = createMemory("disk", DISK, false);
        const direct = { kind: "file", fd, readFlags: flags("read"), writeFlags: flags("write") } as const;
        const { machine, storage, driver } = await bringUp(t, { size: DISK, queues: 2, direct });
        t.teardown(() => close(fd));
        const outside = { address: OUTSIDE, size: 65536, offset: scratch(machine, 16).offset, windowed: false };
        machine.dma.maps = [...machine.dma.maps, outside];
        const prp = (way: string, page: number) =>
          way === "bounced" ? OUTSIDE + page * 4096 : scratch(machine, page).address;
        const send = (what: "read" | "write" | "zero", way: string, page: number, dwords: number[]) =>
          driver.io({ ...COMMANDS[what], prp1: prp(way, page), dwords }, page === 0 ? 0 : 1);
        storage.hold();
        // What has to be stable is not done at once.
        const one = send(held, first, 0, [8, 0, 7 | (held === "write" ? FUA : 0)]);
        await storage.whenHeld(1);
        let ended = false;
        const two = send(next, second, 1, [15, 0, 0]).finally(() => {
          ended = true;
        });
        await settle();
        t.deepEqual(storage.calls, [held]);
        t.false(ended);
        const other = send(next, second, 2, [16, 0, 0]);
        if (second === "direct") t.is((await other).status, 0);
        else await storage.whenHeld(2);
        t.false(ended);
        storage.release();
        t.deepEqual(
          (await Promise.all([one, two, other])).map(({ status }) => status),
          [0, 0, 0],
        );
      });
    }
  }
}

test("a task that ends: what has begun goes on and is waited for, what has not never begins", async (t) => {
  const begun: [string, Done][] = [];
  const io = new AtomicIo(
    {
      read: (_, position, ended) => begun.push([`read ${position}`, ended]),
      write: (_, position, ended) => begun.push([`write ${position}`, ended]),
      zero: () => t.fail(),
    },
    rethrow,
  );
  const events: string[] = [];
  const done = (name: string) => (error: Error | null) => events.push(`${name} ${error && Reflect.get(error, "code")}`);
  const old = { ended: false };
  io.write(pieces(16), 0, old, done("old write"));
  io.read(pieces(16), 0, old, done("old read"));
  io.write(pieces(16), 0, old, done("second old write"));
  io.read(pieces(8), 8, old, done("second old read"));
  old.ended = true;
  io.purge();
  t.deepEqual(events.splice(0), ["second old read ECANCELED", "second old write ECANCELED", "old read ECANCELED"]);
  io.purge();
  io.read(pieces(8), 512, old, done("reader"));
  t.false(io.isIdle("writes"));
  void io.settled("writes").then(() => events.push("written"));
  void io.settled("all").then(() => events.push("settled"));
  io.write(pieces(16), 0, TASK, done("new write"));
  t.deepEqual(begun.map(([name]) => name).splice(0), ["write 0", "read 512"]);
  begun.shift()?.[1](null);
  await Promise.resolve();
  t.deepEqual(begun.map(([name]) => name).splice(0), ["read 512", "write 0"]);
  for (let n = 0; n < 4; n++) await Promise.resolve();
  t.deepEqual(events.splice(0), ["old write null", "written"]);
  begun.shift()?.[1](null);
  for (let n = 0; n < 4; n++) await Promise.resolve();
  t.deepEqual(events.splice(0), ["reader null", "settled"]);
  begun.shift()?.[1](null);
  t.true(io.isIdle("all"));
});
