/** The state that outlives the bridge: what comes back of it, and what of it is refused. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { describeFd, type FdDescription } from "../../../../host/bridge/state/fd-kinds.js";
import {
  Control,
  FD_KIND,
  Header,
  LAYOUT,
  MAP_FLAG,
  PAIRS,
  SLOT,
  SLOT_HEAD,
  SLOTS,
  type SlotsName,
  slotSize,
} from "../../../../host/bridge/state/layout.js";
import { readState } from "../../../../host/bridge/state/read-state.js";
import { checkOf, StateBytes } from "../../../../host/bridge/state/state-bytes.js";
import { StateMemory } from "../../../../host/bridge/state/state-memory.js";
import { copyAt } from "../../../../host/bridge/state/tables.js";
import { createMemory, duplicate, eventfd } from "../../../../native/index.js";
import { closePeerFd } from "../../../../shared/peer-fds.js";
import { owned, pair } from "../../../native/helpers.js";
import { FD, type Filled, filledState, IDENTITY, NUMBER, UUID } from "./set-up.js";

const REFUSED = "the saved state is refused: ";

function refusal(filled: Filled): string | undefined {
  try {
    filled.read();
    return undefined;
  } catch (error) {
    if ((error as Error).name !== "StateError") throw error;
    return (error as Error).message.slice(REFUSED.length);
  }
}

test("what was written comes back", (t) => {
  const { attempts, uuid, control, windowRequests, unmapped, slots } = filledState(t).read();
  t.is(attempts, 1);
  t.deepEqual([...uuid], [...UUID]);
  t.deepEqual(control, { some: "text", n: 5 });
  t.like(windowRequests, { sent: 10, sentOffset: 8192 });
  t.like(unmapped, { position: 3, size: 4096 });
  t.deepEqual(
    slots.fds.map(({ values, isPending }) => [values.id, isPending]),
    [1, 2, 3, 4, 5, 6].map((id) => [id, id === FD.COMING]),
  );
  t.deepEqual(
    slots.maps.map(({ values }) => values.address),
    [0, -4096],
  );
  t.like(slots.maps[0].values, { size: 0x10000, fd: FD.MEMORY, windowOffset: 0x2000 });
  t.like(slots.commands[0].values, { id: 12, clientId: 5, command: 9, offset: 0x1000, count: 4 });
});

/** Bytes that nothing depends on, as ranges. */
function unusedRanges(filled: Filled): [number, number][] {
  const { bytes } = filled.state;
  const ranges: [number, number][] = [[Header.offsets.padding, 4]];
  for (const [name, { record }] of Object.entries(PAIRS)) {
    const pairAt = LAYOUT.pairs[name as keyof typeof PAIRS];
    for (const which of [1, 2]) {
      if (bytes.word(pairAt) !== which) ranges.push([copyAt(pairAt, which, record.size), record.size]);
    }
  }
  const texts = LAYOUT.controlCopies.map((at) => [at, Control.size + 32] as [number, number]);
  ranges.push(texts[bytes.word(LAYOUT.control) === 1 ? 1 : 0]);
  for (const name of Object.keys(SLOTS) as SlotsName[]) {
    for (let slot = 0; slot < usedSlots(filled, name); slot++) {
      const slotAt = LAYOUT.slots[name] + slot * slotSize(name);
      if (bytes.words[slotAt / 4] === SLOT.FREE) ranges.push([slotAt + SLOT_HEAD, SLOTS[name].record.size]);
    }
  }
  return ranges;
}

const usedSlots = ({ state }: Filled, name: SlotsName) => state.bytes.word(LAYOUT.used[name]) ?? 0;

test("each byte that matters, damaged in turn, is refused", (t) => {
  const filled = filledState(t);
  const before = JSON.stringify(filled.read(), bigints);
  const all = new Uint8Array(filled.state.bytes.buffer);
  const isUnused = new Uint8Array(all.length);
  for (const [start, size] of unusedRanges(filled)) isUnused.fill(1, start, start + size);
  const parts: [number, number][] = [
    [0, Header.size],
    [Header.size, LAYOUT.control + 8 - Header.size],
    ...LAYOUT.controlCopies.map(
      (at) => [at, Control.size + Buffer.byteLength('{"some":"text","n":5}')] as [number, number],
    ),
    ...(Object.keys(SLOTS) as SlotsName[]).map(
      (name) => [LAYOUT.slots[name], usedSlots(filled, name) * slotSize(name)] as [number, number],
    ),
  ];
  const wrong: string[] = [];
  let refused = 0;
  for (const [start, size] of parts) {
    for (let offset = start; offset < start + size; offset++) {
      for (const change of [0x01, 0xff]) {
        all[offset] ^= change;
        const reason = refusal(filled);
        if (reason !== undefined) refused++;
        const isRight = isUnused[offset]
          ? reason === undefined && JSON.stringify(filled.read(), bigints) === before
          : reason !== undefined;
        if (!isRight) wrong.push(`byte ${offset}: ${reason}`);
        all[offset] ^= change;
      }
    }
  }
  t.deepEqual(wrong, []);
  t.true(refused > 1400, `${refused}`);
  t.is(refusal(filled), undefined);
});

const bigints = (_: string, value: unknown) => (typeof value === "bigint" ? String(value) : value);

test("what is truncated, of another version, build or command line", (t) => {
  const filled = filledState(t);
  const { bytes } = filled.state;
  const whole = LAYOUT.size;
  const read = (size: number, identity = IDENTITY, number = NUMBER) => {
    const error = t.throws(() => readState(bytes, size, number, identity, filled.kept), { name: "StateError" });
    return error?.message.slice(REFUSED.length);
  };
  t.is(read(0), "it is truncated to 0 bytes");
  t.is(read(4095), "it is truncated to 4095 bytes");
  for (const size of [4096, whole - 4096, whole + 4096])
    t.is(read(size), `it is truncated to ${size} of ${whole} bytes`);
  t.is(read(whole, IDENTITY, NUMBER + 1), "its identity is damaged");
  t.is(read(whole, { ...IDENTITY, sockets: ["/x", "/run/b"] }), "it is of other sockets");
  const window = read(whole, { ...IDENTITY, windowSize: 2 ** 31 });
  t.is(window, "it has a window of 1073741824 bytes, and the session is to have one of 2147483648");
  const header = Header.view(bytes.data);
  header.version = 3;
  t.is(read(whole), "it is of version 3, and not 2");
  header.magicLow = 0;
  t.is(read(whole), "it has no magic number");
  const empty = new StateBytes(new ArrayBuffer(whole));
  t.is(
    t.throws(() => readState(empty, whole, NUMBER, IDENTITY, new Map()))?.message,
    `${REFUSED}it has no magic number`,
  );
});

test("descriptors that do not fit: fewer, more, of another kind, another one", (t) => {
  const filled = filledState(t);
  const with_ = (name: string, description: FdDescription | undefined) => {
    const { kept } = filled;
    const before = kept.get(name);
    if (description) kept.set(name, description);
    else kept.delete(name);
    const reason = refusal(filled);
    if (before) kept.set(name, before);
    else kept.delete(name);
    return reason;
  };
  const memory = describeFd(owned(t, createMemory("other", 4096, false)));
  const event = describeFd(owned(t, eventfd(0)));
  const socket = describeFd(pair(t)[0]);
  t.is(with_("4", undefined), "it needs the file descriptor 4 (an eventfd), which did not come");
  t.is(with_("2", undefined), "it needs the file descriptor 2 (a socket), which did not come");
  t.is(with_("7", event), "it knows nothing of the file descriptor 7 that came");
  t.is(with_("x", event), "it knows nothing of the file descriptor x that came");
  t.is(with_("3", event), "the file descriptor 3 should be memory, and is an eventfd");
  t.is(with_("4", memory), "the file descriptor 4 should be an eventfd, and is memory");
  t.is(with_("1", socket), "the file descriptor 1 should be a listening socket, and is a socket");
  t.is(with_("3", memory), "the file descriptor 3 is memory, but not the one that was kept");
  t.is(with_("2", socket), "the file descriptor 2 is a socket, but not the one that was kept");
  t.is(with_("2", { kind: 0, device: 0, inode: 0 }), "the file descriptor 2 should be a socket, and is something else");
  // One that was on its way to the store is there, or is not.
  t.is(with_(String(FD.COMING), event), undefined);
  t.is(with_(String(FD.COMING), memory), "the file descriptor 6 should be an eventfd, and is memory");
});

const { READ, IN_WINDOW } = MAP_FLAG;
const WRONG: readonly [SlotsName, object, string][] = [
  ["maps", { address: 0x8000, size: 0x1000, flags: READ }, "overlaps another"],
  ["maps", { address: 0x7000_0000, size: 0, flags: READ }, "is no range"],
  ["maps", { address: 2 ** 62, size: 2 ** 63, flags: READ }, "is no range"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: 256 }, "has unknown flags"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: 99 }, "has the descriptor 99, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: FD.IRQ }, "has the descriptor 4, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: FD.COMING }, "has the descriptor 6, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fdOffset: 2 ** 60, fd: FD.MEMORY }, "is no range"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: IN_WINDOW, windowOffset: 2 ** 30 }, "lies outside of the window"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: IN_WINDOW, windowOffset: 0x3000 }, "overlaps another"],
  ["maps", { address: 0x7000_0000, size: 4096, backed: 8192 }, "has more in its file than there is of it"],
  ["commands", { id: 1, count: 2 ** 20 + 1 }, "is no command"],
  ["commands", { id: 1, region: 32 }, "is no command"],
  ["commands", { id: 1, clientId: 65536 }, "is no command"],
];
for (const [name, values, reason] of WRONG) {
  test(`no index is trusted: ${name} ${JSON.stringify(values)}`, (t) => {
    const filled = filledState(t);
    const slots = filled.state.slots(name);
    const slot = slots.add(values as never);
    t.is(refusal(filled), `${name}, slot ${slot} of ${SLOTS[name].count}, ${reason}`);
    slots.remove(slot ?? 0);
    t.is(refusal(filled), undefined);
  });
}

test("a record that is replaced is there once, whenever the bridge dies, and a third one is refused", (t) => {
  const filled = filledState(t);
  const maps = filled.state.slots("maps");
  const map = { address: 0x7000_0000, size: 4096 };
  const first = maps.add({ ...map, flags: 1 });
  const flags = () => filled.read().slots.maps.find(({ values }) => values.address === map.address)?.values.flags;
  t.is(flags(), 1);
  // Dead after the first of the two steps.
  maps.add({ ...map, flags: 3 });
  t.is(flags(), 3);
  const third = maps.add({ ...map, flags: 1 });
  t.regex(refusal(filled) ?? "", /maps, slot \d of \d+, is there twice/);
  maps.remove(third ?? 0);
  maps.remove(first ?? 0);
  t.is(flags(), 3);
});

test("numbers of any kind under checks that are right are taken or refused, and nothing else", (t) => {
  const filled = filledState(t);
  const { bytes } = filled.state;
  const all = new Uint8Array(bytes.buffer);
  const seed = (Math.random() * 2 ** 32) >>> 0;
  t.log(`seed ${seed}`);
  let last = seed;
  const random = (below: number) => {
    last = (Math.imul(last, 1664525) + 1013904223) >>> 0;
    return Math.floor((last / 2 ** 32) * below);
  };
  const places = [
    ...Object.entries(PAIRS).flatMap(([name, { record, number }]) =>
      [1, 2].map((which) => {
        const start = copyAt(LAYOUT.pairs[name as keyof typeof PAIRS], which, record.size);
        return { start, size: record.offsets.check, number, place: which };
      }),
    ),
    ...(Object.keys(SLOTS) as SlotsName[]).flatMap((name) =>
      Array.from({ length: usedSlots(filled, name) }, (_, place) => {
        const { record, number } = SLOTS[name];
        const start = LAYOUT.slots[name] + place * slotSize(name) + SLOT_HEAD;
        return { start, size: record.offsets.check, number, place };
      }),
    ),
  ];
  const reasons = new Set<string>();
  for (let i = 0; i < 3000; i++) {
    const { start, size, number, place } = places[random(places.length)];
    const before = all.slice(start, start + size + 4);
    for (let n = random(4); n >= 0; n--) all[start + random(size)] = random(3) === 0 ? 0xff : random(256);
    bytes.words[(start + size) / 4] = checkOf(bytes.words, start, size, number, place);
    // Anything but a StateError is thrown on, and fails.
    reasons.add(refusal(filled)?.replaceAll(/\d+/g, "N") ?? "taken");
    all.set(before, start);
  }
  t.is(refusal(filled), undefined);
  t.true(reasons.size > 15 && reasons.has("taken"), [...reasons].join("\n"));
});

test("a table that is full says so, and is used again", (t) => {
  const commands = filledState(t).state.slots("commands");
  const slots: number[] = [];
  for (let slot = commands.add({ id: 100 }); slot !== undefined; slot = commands.add({ id: 100 + slots.length })) {
    slots.push(slot);
  }
  t.is(slots.length, 511);
  t.is(commands.replace(slots[0], { id: 5 }), undefined);
  commands.remove(slots[7]);
  t.is(commands.add({ id: 6 }), slots[7]);
});

test("a state that is opened goes on, with its descriptors", (t) => {
  const { kept, store } = fakeStore(t);
  const first = StateMemory.create(NUMBER, IDENTITY, UUID, store);
  first.control.begin(() => ({ n: 1 }));
  const memory = owned(t, createMemory("ram", 1 << 20, false));
  const [event, twin] = [owned(t, eventfd(0)), owned(t, duplicate(memory))];
  const ids = [memory, event, twin].map((fd) => first.fds.keep(fd));
  t.deepEqual(ids, [1, 2, 1], "a file of memory is kept once");
  first.slots("maps").add({ address: 0x9000_0000, size: 4096, fd: 1 });
  first.control.commit();
  // What is about to begin.
  first.fds.keep(owned(t, eventfd(0)));
  t.deepEqual([...kept.keys()].sort(), ["4.1", "4.2", "4.3", "4.state"]);

  const came = new Map([...kept].map(([name, fd]) => [name.slice(2), duplicate(fd)]));
  const { state: second, saved } = StateMemory.open(NUMBER, came, IDENTITY, store);
  t.deepEqual(saved.control, { n: 1 });
  t.is(saved.slots.maps.length, 1);
  const again = second.fds.take(1, FD_KIND.MEMORY);
  t.is(again, came.get("1") ?? -1);
  const more = second.fds.take(1, FD_KIND.MEMORY);
  t.not(more, again);
  t.throws(() => second.fds.take(2, FD_KIND.MEMORY), { message: /the descriptor 2 is not memory/ });
  t.throws(() => second.fds.take(9, FD_KIND.EVENTFD), { message: /the descriptor 9 is not an eventfd/ });
  second.fds.sweep();
  t.deepEqual([...kept.keys()].sort(), ["4.1", "4.state"]);
  closePeerFd(again);
  t.true(kept.has("4.1"));
  closePeerFd(more);
  t.true(kept.has("4.1"), "what is written may name it");
  second.control.commit();
  t.false(kept.has("4.1"));
  t.is(second.fds.keep(eventfd(0)), 4);
  second.close();
  t.deepEqual([...kept.keys()], []);
});

test("what the store does not take is known", (t) => {
  const { store } = fakeStore(t, 2);
  const state = StateMemory.create(NUMBER, IDENTITY, UUID, store);
  const fds = Array.from({ length: 3 }, () => eventfd(0));
  for (const fd of fds) state.fds.keep(fd);
  const read = () => readState(state.bytes, LAYOUT.size, NUMBER, IDENTITY, new Map([["1", describeFd(fds[0])]]));
  t.throws(read, { message: `${REFUSED}2 file descriptors could not be kept` });
  closePeerFd(fds[2]);
  closePeerFd(fds[1]);
  state.control.commit();
  t.is(read().slots.fds.length, 1);
  closePeerFd(fds[0]);
  state.close();
});

/** A manager that keeps descriptors, up to `most`. */
function fakeStore(t: ExecutionContext, most = Number.POSITIVE_INFINITY) {
  const kept = new Map<string, number>();
  const store = {
    store: (name: string, fd: number) => {
      if (kept.size >= most) return false;
      kept.set(name, owned(t, duplicate(fd)));
      return true;
    },
    remove: (name: string) => void kept.delete(name),
  };
  return { kept, store };
}

const WRITER = fileURLToPath(new URL("./writer.js", import.meta.url));

test("a writer that is killed at any moment leaves what is whole", async (t: ExecutionContext) => {
  for (let life = 0; life < 6; life++) {
    const fd = owned(t, createMemory("state", LAYOUT.size, false));
    const writer = spawn(process.execPath, [WRITER], { stdio: ["ignore", "pipe", "inherit", fd] });
    t.teardown(() => writer.kill("SIGKILL"));
    await once(writer.stdout as NodeJS.ReadableStream, "data");
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
    writer.kill("SIGKILL");
    await once(writer, "close");
    const { saved } = StateMemory.open(NUMBER, new Map([["state", fd]]), IDENTITY);
    const { windowRequests, control, slots } = saved;
    // Step n writes pair n, the control state n, adds map n, removes map n - 3.
    const step = windowRequests?.sentOffset ?? 0;
    t.is(windowRequests?.sentSize, step * 3);
    const { n, text } = control as { n: number; text: string };
    t.true(n === step || n === step - 1);
    t.is(text.length, n % 1000);
    const addresses = slots.maps.map(({ values }) => values.address / 4096).sort((a, b) => a - b);
    t.true(step > 100, `${step} steps`);
    const last = addresses.at(-1) ?? 0;
    t.true(last === step || last === step - 1, `${addresses} at ${step}`);
    const first = last - addresses.length + 1;
    t.deepEqual(
      addresses,
      addresses.map((_, i) => first + i),
    );
    t.true(addresses.length === 3 || addresses.length === 4);
  }
});
