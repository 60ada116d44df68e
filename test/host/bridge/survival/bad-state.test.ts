/**
 * What a service manager gives back is not what it was given: the session that it is of ends cleanly, with one
 * sentence, and is served anew; the other one goes on.
 */
import { setTimeout as delay } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { MiB } from "../../../../shared/limits.js";
import { Irq } from "../../../../shared/spec/vfio-user.js";
import { type Change, HeldBridge, type Kept } from "../../../fakes/fd-holder.js";
import { Random } from "../../../guest/devices/nvme/random.js";
import { PARTS } from "./parts.js";
import { check, Peers } from "./peers.js";

/** What takes so long never comes. */
const DEADLINE_MS = 10_000;
const COMPLAINT = /^.*"level":[456]0.*$/gm;
const REFUSED = /and begins anew|is served no more, and ends/;
const SERVED = /"msg":"serving"/;

/** Peers in the middle of what they do: there are maps, interrupts, and all that is shared. */
async function busyPeers(held: HeldBridge, session: number): Promise<Peers> {
  const peers = new Peers(held, { session });
  await peers.share();
  const client = await peers.connect(true);
  await client.mapMemory({ address: 0, size: MiB, fd: peers.memory.fd });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [peers.signals[0].fd, peers.signals[1].fd] });
  await peers.read(0x20, 4);
  return peers;
}

const numberOf = ([name]: Kept) => Number(name.split(".")[0]);
/** The number of the second session, which always goes on; the first one gets another each time that it begins anew. */
const SECOND = 2;
const ofFirst = (kept: readonly Kept[]) => kept.filter((each) => numberOf(each) !== SECOND);

/** One restart of a bridge of two sessions, the first of which gets something back that is wrong. */
async function refuses(t: ExecutionContext, held: HeldBridge, choose: (kept: readonly Kept[]) => readonly Change[]) {
  const [bad, good] = [await busyPeers(held, 0), await busyPeers(held, 1)];
  const changes = choose(ofFirst(await held.kept()));
  const what = JSON.stringify(changes);
  const from = held.log.length;
  await held.restart(changes);
  await held.logged(SERVED, 2, from);
  const isClosed = await Promise.race([bad.client.closed.then(() => true), delay(DEADLINE_MS, false)]);
  check(isClosed, `${what}: the session goes on:\n${held.log.slice(from)}`);
  bad.close();
  const complaints = held.log.slice(from).match(COMPLAINT) ?? [];
  t.is(complaints.length, 1, `${what}: ${complaints.join("\n")}`);
  t.regex(complaints.join(), REFUSED, what);
  // The other one has not noticed.
  await good.read(0x24, 4);
  await good.disconnect();
  good.checkSoFar();
  good.close();
  const next = new Peers(held);
  try {
    await next.share();
    await next.connect();
    await PARTS[1].run(next);
    next.checkSoFar();
  } finally {
    next.close();
  }
}

async function start(t: ExecutionContext): Promise<HeldBridge> {
  const held = await HeldBridge.start(2);
  t.teardown(() => held.stop());
  return held;
}

const isMemory = ([, target]: Kept) => target.startsWith("/memfd:");
const stateOf = (kept: readonly Kept[]) => {
  const found = kept.find(([name]) => name.endsWith("state"));
  check(found !== undefined, "no state is kept");
  return found;
};

test.serial("fewer file descriptors, others, and some that it knows nothing of", async (t) => {
  t.timeout(5 * 60_000);
  const held = await start(t);
  const random = new Random();
  t.log(`SEED=${random.seed}`);
  const pick = (kept: readonly Kept[]) => kept[random.below(kept.length)][0];
  const choices: ((kept: readonly Kept[]) => Change)[] = [
    (kept) => ["drop", pick(kept)],
    (kept) => ["drop", pick(kept.filter(isMemory))],
    (kept) => ["drop", stateOf(kept)[0]],
    (kept) => ["eventfd", pick(kept.filter(([, target]) => !target.includes("eventfd")))],
    (kept) => ["socket", pick(kept)],
    (kept) => ["memory", pick(kept), 4096],
    (kept) => ["memory", stateOf(kept)[0], 4096],
    (kept) => ["swap", ...twoSockets(kept)],
    (kept) => ["add", `${numberOf(kept[0])}.999999`],
    (kept) => ["rename", pick(kept.filter((each) => each !== stateOf(kept))), `${numberOf(kept[0])}.999998`],
  ];
  for (const choose of choices) await refuses(t, held, (kept) => [choose(kept)]);
});

function twoSockets(kept: readonly Kept[]): [string, string] {
  const [a, b] = kept.filter(([, target]) => target.startsWith("socket:"));
  return [a[0], b[0]];
}

test.serial("a state that is cut short, or damaged", async (t) => {
  t.timeout(5 * 60_000);
  const held = await start(t);
  const random = new Random();
  t.log(`SEED=${random.seed}`);
  for (const size of [0, 1, 4095, 4096, 2 * MiB + 1])
    await refuses(t, held, (kept) => [["truncate", stateOf(kept)[0], size]]);
  // Of the header, of what makes it another build's, and of the words behind it.
  for (const offset of [0, 8, 12, 24, 41, 50])
    await refuses(t, held, (kept) => [["byte", stateOf(kept)[0], offset, 0x10]]);
});

test.serial("what is of no session costs none anything", async (t) => {
  const held = await start(t);
  const peers = await busyPeers(held, 0);
  for (const name of ["stranger", "1.", ".state", "99.state", "1.2.3", "-1.5"]) {
    const from = held.log.length;
    await held.restart([["add", name]]);
    await held.logged(SERVED, 2, from);
    await peers.read(0x20, 4);
  }
  await peers.disconnect();
  peers.checkSoFar();
  peers.close();
  t.pass();
});
