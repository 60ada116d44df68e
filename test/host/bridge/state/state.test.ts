/** The state that outlives the bridge: what comes back of it, and what of it is refused. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { describeFd, type FdDescription } from "../../../../host/bridge/state/fd-kinds.js";
import {
  Call,
  checkOf,
  fdName,
  Header,
  LAYOUT,
  MAP_FLAG,
  PAIRS,
  RING_POSITIONS_SIZE,
  SLOT,
  SLOT_HEAD,
  SLOTS,
  type SlotsName,
  STREAMS,
  type StreamName,
  sessionAt,
  slotSize,
  stateSize,
} from "../../../../host/bridge/state/layout.js";
import { readState } from "../../../../host/bridge/state/read-state.js";
import { callAt, copyAt, StateBytes, StateMemory } from "../../../../host/bridge/state/state-memory.js";
import { createMemory, eventfd } from "../../../../native/index.js";
import { MAX_QUEUES } from "../../../../shared/limits.js";
import { owned, pair } from "../../../native/helpers.js";
import { FD, type Filled, filledState, IDENTITY } from "./set-up.js";

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

test("what was written comes back, with what the kernel did last", (t) => {
  const { attempts, sessions } = filledState(t).read();
  const [{ client, device, slots, streams, rings }] = sessions;
  const { received, unsent, positions, tookFds } = streams.client;
  t.is(attempts, 1);
  t.like(client, { socket: FD.CLIENT, generation: 3, minor: 1, pageSizes: 4096 });
  t.like(device, { generation: 2, state: 4, features: 0x1_0000_0001n });
  t.deepEqual([...received], [1, 2, 3, 4, 5], "two that waited, and three of the call");
  t.deepEqual([...unsent], [6, 7, 8]);
  t.false(tookFds);
  t.deepEqual(positions, { received: 2, handled: 2 ** 32 - 3, queued: 10, sent: 7 });
  t.deepEqual(rings[1], { available: 17, used: 16 });
  t.deepEqual(
    slots.fds.map(({ values, isPending }) => [values.id, isPending]),
    [1, 2, 3, 4, 5, 6].map((id) => [id, id === FD.COMING]),
  );
  t.deepEqual(
    slots.maps.map(({ values }) => values.address),
    [0, -4096],
  );
  t.like(slots.maps[0].values, { size: 0x10000, fd: FD.MEMORY, windowOffset: 0x2000 });
  t.like(slots.irqs[0].values, { index: 2, vector: 7, fd: FD.IRQ });
  t.like(slots.commands[0].values, { id: 12, clientId: 5, command: 9, offset: 0x1000, count: 4 });
  t.is(slots.vrings.length, 1);
  t.like(slots.vrings[0].values, { index: 1, size: 64, kick: FD.KICK });
  t.like(slots.memory[0].values, { userAddress: 2 ** 46, fd: FD.MEMORY });
});

/** Bytes that nothing depends on, as ranges. */
function unusedRanges(filled: Filled): [number, number][] {
  const { bytes } = filled.state;
  const at = sessionAt(0);
  const ranges: [number, number][] = [[Header.offsets.padding, 4]];
  for (const [name, { record }] of Object.entries(PAIRS)) {
    const pairAt = at + LAYOUT.pairs[name as keyof typeof PAIRS];
    for (const which of [1, 2]) {
      if (bytes.word(pairAt) !== which) ranges.push([copyAt(pairAt, which, record.size), record.size]);
    }
  }
  for (const stream of Object.keys(STREAMS) as StreamName[]) {
    for (const name of ["receive", "send"] as const) {
      const call = callAt(0, stream, name);
      ranges.push([call + Call.offsets.name, 56], [call + Call.offsets.padding, 4]);
    }
  }
  // Of another life of the stream.
  ranges.push([callAt(0, "client", "send") + Call.offsets.result, 4]);
  for (const name of Object.keys(SLOTS) as SlotsName[]) {
    for (let slot = 0; slot < usedSlots(filled, name); slot++) {
      const slotAt = at + LAYOUT.slots[name] + slot * slotSize(name);
      if (bytes.words[slotAt / 4] === SLOT.FREE) ranges.push([slotAt + SLOT_HEAD, SLOTS[name].record.size]);
    }
  }
  return ranges;
}

const usedSlots = ({ state }: Filled, name: SlotsName) => state.bytes.word(sessionAt(0) + LAYOUT.used[name]) ?? 0;

test("each byte that matters, damaged in turn, is refused", (t) => {
  const filled = filledState(t);
  const at = sessionAt(0);
  const before = JSON.stringify(filled.read(), bigints);
  const all = new Uint8Array(filled.state.bytes.buffer);
  const isUnused = new Uint8Array(all.length);
  for (const [start, size] of unusedRanges(filled)) isUnused.fill(1, start, start + size);
  // The kernel's own words of a call that it completed: see layout.ts.
  const result = callAt(0, "client", "receive") + Call.offsets.result;
  const control = callAt(0, "client", "receive") + Call.offsets.controlLength;
  const parts: [number, number][] = [
    [0, Header.size + 8],
    [at, LAYOUT.rings + RING_POSITIONS_SIZE * MAX_QUEUES],
    ...(Object.keys(SLOTS) as SlotsName[]).map(
      (name) => [at + LAYOUT.slots[name], usedSlots(filled, name) * slotSize(name)] as [number, number],
    ),
  ];
  const wrong: string[] = [];
  let refused = 0;
  for (const [start, size] of parts) {
    for (let offset = start; offset < start + size; offset++) {
      if ((offset >= result && offset < result + 4) || (offset >= control && offset < control + 8)) continue;
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
  t.true(refused > 9000, `${refused}`);
  t.is(refusal(filled), undefined);
  // Not a byte of it, but more than there was room for.
  filled.state.bytes.store(result, 2 ** 21 - 1);
  t.is(refusal(filled), "session 0: client receive is damaged");
});

const bigints = (_: string, value: unknown) => (typeof value === "bigint" ? String(value) : value);

test("what is truncated, of another version, build or command line", (t) => {
  const filled = filledState(t);
  const { bytes } = filled.state;
  const whole = stateSize(1);
  const read = (size: number, identities = [IDENTITY]) => {
    const error = t.throws(() => readState(bytes, size, identities, filled.kept), { name: "StateError" });
    return error?.message.slice(REFUSED.length);
  };
  t.is(read(0), "it is truncated to 0 bytes");
  t.is(read(4095), "it is truncated to 4095 bytes");
  for (const size of [4096, whole - 4096, whole + 4096])
    t.is(read(size), `it is truncated to ${size} of ${whole} bytes`);
  t.is(read(whole, [IDENTITY, IDENTITY]), "it is of 1 sessions, and the command line has 2");
  t.is(read(whole, [{ ...IDENTITY, socketPath: "/x" }]), "session 0 has other sockets than the command line says");
  const window = read(whole, [{ ...IDENTITY, windowSize: 2 ** 31 }]);
  t.is(window, "session 0 has a window of 1073741824 bytes, and the command line says 2147483648");
  const header = Header.view(bytes.data);
  header.version = 2;
  t.is(read(whole), "it is of version 2, and not 1");
  header.magicLow = 0;
  t.is(read(whole), "it has no magic number");
  t.is(
    t.throws(() => readState(new StateBytes(new ArrayBuffer(whole)), whole, [IDENTITY], new Map()))?.message,
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
  t.is(with_("0.4", undefined), "it needs the file descriptor 0.4 (an eventfd), which did not come");
  t.is(with_("0.2", undefined), "it needs the file descriptor 0.2 (a socket), which did not come");
  t.is(with_("0.7", event), "it knows nothing of the file descriptor 0.7 that came");
  t.is(with_("1.1", event), "it knows nothing of the file descriptor 1.1 that came");
  t.is(with_("x", event), "it knows nothing of the file descriptor x that came");
  t.is(with_("0.3", event), "the file descriptor 0.3 should be memory, and is an eventfd");
  t.is(with_("0.4", memory), "the file descriptor 0.4 should be an eventfd, and is memory");
  t.is(with_("0.1", socket), "the file descriptor 0.1 should be a listening socket, and is a socket");
  t.is(with_("0.3", memory), "the file descriptor 0.3 is memory, but not the one that was kept");
  t.is(with_("0.2", socket), "the file descriptor 0.2 is a socket, but not the one that was kept");
  t.is(
    with_("0.2", { kind: 0, device: 0, inode: 0 }),
    "the file descriptor 0.2 should be a socket, and is something else",
  );
  // One that was on its way to the store is there, or is not.
  t.is(with_(fdName(0, FD.COMING), event), undefined);
  t.is(with_(fdName(0, FD.COMING), memory), "the file descriptor 0.6 should be an eventfd, and is memory");
});

const { READ, IN_WINDOW } = MAP_FLAG;
const WRONG: readonly [SlotsName, object, string][] = [
  ["maps", { address: 0x8000, size: 0x1000, flags: READ }, "overlaps another"],
  ["maps", { address: 0x7000_0000, size: 0, flags: READ }, "is no range"],
  ["maps", { address: 2 ** 62, size: 2 ** 63, flags: READ }, "is no range"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: 8 }, "has unknown flags"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: 99 }, "has the descriptor 99, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: FD.IRQ }, "has the descriptor 4, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fd: FD.COMING }, "has the descriptor 6, which is not memory"],
  ["maps", { address: 0x7000_0000, size: 4096, fdOffset: 2 ** 60, fd: FD.MEMORY }, "is no range"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: IN_WINDOW, windowOffset: 2 ** 30 }, "lies outside of the window"],
  ["maps", { address: 0x7000_0000, size: 4096, flags: IN_WINDOW, windowOffset: 0x3000 }, "overlaps another"],
  ["irqs", { index: 5, vector: 0, fd: FD.IRQ }, "is no vector"],
  ["irqs", { index: 2, vector: 2048, fd: FD.IRQ }, "is no vector"],
  ["irqs", { index: 2, vector: 1, fd: 0 }, "has the descriptor 0, which is not an eventfd"],
  ["irqs", { index: 2, vector: 1, fd: FD.IRQ, flags: 4 }, "has unknown flags"],
  ["commands", { id: 1, count: 2 ** 20 + 1 }, "is no command"],
  ["commands", { id: 1, region: 32 }, "is no command"],
  ["commands", { id: 1, clientId: 65536 }, "is no command"],
  ["vrings", { index: 256, size: 64 }, "is no queue"],
  ["vrings", { index: 2, size: 63 }, "is no queue"],
  ["vrings", { index: 2, size: 2048 }, "is no queue"],
  ["vrings", { index: 2, size: 64, call: FD.MEMORY }, "has the descriptor 3, which is not an eventfd"],
  ["memory", { guestAddress: 0x1000, size: 4096, fd: FD.MEMORY }, "overlaps another"],
  ["memory", { guestAddress: 2 ** 40, size: 0, fd: FD.MEMORY }, "is no range"],
  ["memory", { guestAddress: 2 ** 40, size: 4096, fd: 0 }, "has the descriptor 0, which is not memory"],
];
for (const [name, values, reason] of WRONG) {
  test(`no index is trusted: ${name} ${JSON.stringify(values)}`, (t) => {
    const filled = filledState(t);
    const slots = filled.state.sessions[0].slots(name);
    const slot = slots.add(values as never);
    t.is(refusal(filled), `session 0: ${name}, slot ${slot} of ${SLOTS[name].count}, ${reason}`);
    slots.remove(slot ?? 0);
    t.is(refusal(filled), undefined);
  });
}

test("a record that is replaced is there once, whenever the bridge dies, and a third one is refused", (t) => {
  const filled = filledState(t);
  const irqs = filled.state.sessions[0].slots("irqs");
  const vector = { index: 2, vector: 7, fd: FD.IRQ };
  const flags = () => filled.read().sessions[0].slots.irqs.map(({ values }) => values.flags);
  t.deepEqual(flags(), [1]);
  // Dead after the first of the two steps.
  irqs.add({ ...vector, flags: 0 });
  t.deepEqual(flags(), [0]);
  irqs.add({ ...vector, flags: 1 });
  t.regex(refusal(filled) ?? "", /irqs, slot \d of 4096, is there twice/);
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
  const at = sessionAt(0);
  const places = [
    ...Object.entries(PAIRS).flatMap(([name, { record, number }]) =>
      [1, 2].map((which) => {
        const start = copyAt(at + LAYOUT.pairs[name as keyof typeof PAIRS], which, record.size);
        return { start, size: record.offsets.check, number, place: which };
      }),
    ),
    ...(Object.keys(SLOTS) as SlotsName[]).flatMap((name) =>
      Array.from({ length: usedSlots(filled, name) }, (_, place) => {
        const { record, number } = SLOTS[name];
        const start = at + LAYOUT.slots[name] + place * slotSize(name) + SLOT_HEAD;
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

test("what the kernel says of descriptors that came with its last call is known, too", (t) => {
  const filled = filledState(t);
  Call.view(filled.state.bytes.data, callAt(0, "client", "receive")).controlLength = 24;
  t.true(filled.read().sessions[0].streams.client.tookFds);
  // Of a call whose result was taken.
  filled.state.sessions[0].pair("clientStream").write({});
  t.false(filled.read().sessions[0].streams.client.tookFds);
});

test("a table that is full says so, and is used again", (t) => {
  const commands = filledState(t).state.sessions[0].slots("commands");
  const slots: number[] = [];
  for (let slot = commands.add({ id: 100 }); slot !== undefined; slot = commands.add({ id: 100 + slots.length })) {
    slots.push(slot);
  }
  t.is(slots.length, 511);
  t.is(commands.replace(slots[0], { id: 5 }), undefined);
  commands.remove(slots[7]);
  t.is(commands.add({ id: 6 }), slots[7]);
});

test("a bridge that took a state over goes on in it", (t) => {
  const filled = filledState(t);
  const again = StateMemory.of(filled.state.fd, 1);
  const [session] = again.sessions;
  again.countAttempt();
  session.pair("client").write({ generation: 4 });
  session.slots("irqs").add({ index: 2, vector: 8, fd: FD.IRQ });
  session.slots("maps").add({ address: 0x9000_0000, size: 4096 });
  const { attempts, sessions } = filled.read();
  t.is(attempts, 2);
  t.like(sessions[0].client, { generation: 4, socket: 0 });
  t.is(sessions[0].slots.irqs.length, 2);
  t.is(sessions[0].slots.maps.length, 3);
  again.serves();
  t.is(filled.read().attempts, 0);
});

const WRITER = fileURLToPath(new URL("./writer.js", import.meta.url));

test("a writer that is killed at any moment leaves what is whole", async (t: ExecutionContext) => {
  for (let life = 0; life < 6; life++) {
    const state = StateMemory.create([IDENTITY]);
    owned(t, state.fd);
    const writer = spawn(process.execPath, [WRITER], { stdio: ["ignore", "pipe", "inherit", state.fd] });
    t.teardown(() => writer.kill("SIGKILL"));
    await once(writer.stdout as NodeJS.ReadableStream, "data");
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
    writer.kill("SIGKILL");
    await once(writer, "close");
    const { client, slots } = readState(state.bytes, stateSize(1), [IDENTITY], new Map()).sessions[0];
    // Step n writes pair n, adds map n, removes map n - 3.
    const step = client?.generation ?? 0;
    t.is(client?.maxMaps, step * 3);
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
