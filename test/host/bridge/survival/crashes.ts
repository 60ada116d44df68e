/**
 * Parts that are played while the bridge dies: at its n-th place, for every n that there is. The places are counted
 * from where the part begins, so that each value costs one start of the bridge, and all else goes on.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { ExecutionContext } from "ava";
import type { BridgeProcessOptions } from "../../../fakes/front-end-bridge.js";
import type { Random } from "../../../guest/devices/nvme/random.js";
import type { Part } from "./parts.js";
import { check, checkEqual, Peers } from "./peers.js";
import { SupervisedBridge } from "./supervised-bridge.js";

/** Nothing of what is played takes a second; what takes so long never comes. */
const DEADLINE_MS = 20_000;
/** Lines of the bridge's log that a failure shows. */
const LAST_LINES = 40;

/** Some commands are meant to be refused; and a client that goes has two sockets, one of which is closed first. */
const EXPECTED = /"msg":"(refused a command of the client|the twin socket is gone: no more DMA by message)"/;

/** Where a bridge dies: at a place of this life, and at one of the next, which has that one's take-over before it. */
export interface Deaths {
  readonly point: number;
  readonly next?: number;
}
type Idle = NonNullable<ReturnType<SupervisedBridge["openFiles"]>>;
const NONE: Deaths = { point: 0 };

export class Crashes {
  readonly #supervised: SupervisedBridge;
  /** What is open when nobody is connected. */
  readonly #idle: Idle;
  /** Places that had been passed where the part began. */
  #armedAt = 0;

  private constructor(supervised: SupervisedBridge, idle: Idle) {
    this.#supervised = supervised;
    this.#idle = idle;
  }

  static async start(t: ExecutionContext, options: BridgeProcessOptions = {}): Promise<Crashes> {
    const supervised = await SupervisedBridge.start(options);
    t.teardown(async () => {
      await supervised.stop();
    });
    // Until it has said that it is ready, and nobody can ask when that is.
    let idle: Idle | undefined;
    for (let same = 0; same < 10 || idle === undefined; await delay(10)) {
      const open = supervised.openFiles();
      same = JSON.stringify(open) === JSON.stringify(idle) ? same + 1 : 0;
      idle = open;
    }
    return new Crashes(supervised, idle);
  }

  get supervised(): SupervisedBridge {
    return this.#supervised;
  }

  /** How many places to die at the part has, about. */
  async places(part: Part): Promise<number> {
    await this.play(part);
    return this.#supervised.passed - this.#armedAt;
  }

  /** How many places the life behind a death has more than there would be without one: those of its take-over. */
  async takeOver(part: Part, point: number): Promise<number> {
    const places = await this.places(part);
    await this.play(part, { point });
    return Math.max(1, this.#supervised.passed - this.#armedAt - places);
  }

  /** Plays the part while the bridge dies so; whether it died. Rejects when anything was not as without a death. */
  async play(part: Part, deaths: Deaths = NONE): Promise<boolean> {
    const { bridge } = this.#supervised;
    const from = bridge.log.length;
    const before = this.#supervised.deaths;
    try {
      await withDeadline(this.#play(part, deaths), DEADLINE_MS);
    } catch (error) {
      const lines = bridge.log.slice(from).split("\n").slice(-LAST_LINES).join("\n");
      const { point, next = 0 } = deaths;
      throw new Error(`${part.name}, killed at ${point}, then at ${next}: ${(error as Error).stack}\n${lines}`);
    }
    return this.#supervised.deaths > before;
  }

  async #play(part: Part, { point, next = 0 }: Deaths): Promise<void> {
    const supervised = this.#supervised;
    const { bridge } = supervised;
    const from = bridge.log.length;
    if (part.fromStart) this.#arm(point, next);
    const peers = new Peers(bridge, part);
    try {
      await peers.share();
      await peers.connect(part.twin);
      if (!part.fromStart) this.#arm(point, next);
      await part.run(peers);
      await peers.disconnect();
    } finally {
      peers.close();
      if (!part.fromStart) supervised.arm(0);
    }
    peers.checkSoFar();
    await this.#settled();
    if (part.fromStart) supervised.arm(0);
    check(bridge.alive, "the supervisor ended");
    const complaints = bridge.log.slice(from).match(/^.*"level":(40|50|60).*$/gm) ?? [];
    checkEqual(
      complaints.filter((line) => !EXPECTED.test(line)),
      [],
      "the bridge complained",
    );
  }

  #arm(point: number, next: number): void {
    this.#armedAt = this.#supervised.passed;
    this.#supervised.arm(point, next);
  }

  /** Waits until as much is open as at first. */
  async #settled(): Promise<void> {
    const end = Date.now() + DEADLINE_MS / 2;
    for (;;) {
      const open = this.#supervised.openFiles();
      if (open && isIdle(open, this.#idle)) return;
      if (Date.now() > end) checkEqual(open, this.#idle, "open files when all is over");
      await delay(2);
    }
  }
}

/** A thread that a life starts when it is first needed has an eventfd. */
function isIdle({ bridge, kept }: Idle, idle: Idle): boolean {
  const { sockets, memfds, eventfds } = bridge;
  const isBridge = sockets === idle.bridge.sockets && memfds === idle.bridge.memfds;
  return isBridge && eventfds <= idle.bridge.eventfds + 1 && JSON.stringify(kept) === JSON.stringify(idle.kept);
}

/** Plays the parts with the bridge dying at every place in turn. */
export async function playEverywhere(t: ExecutionContext, parts: readonly Part[]): Promise<void> {
  const crashes = await Crashes.start(t);
  for (const part of parts) {
    const places = await crashes.places(part);
    let point = 1;
    // Not the same number each time: what comes together is dealt with together.
    while ((await crashes.play(part, { point })) || point < places) point++;
    t.log(`${part.name}: ${point - 1} places`);
    t.true(point > 1, `${part.name}: no place to die at`);
  }
}

/** Plays a part so many times, with the bridge dying at any place of it. */
export async function playAnywhere(t: ExecutionContext, part: Part, count: number, random: Random): Promise<void> {
  const crashes = await Crashes.start(t);
  const places = await crashes.places(part);
  for (let n = 0; n < count; n++) await crashes.play(part, { point: 1 + random.below(places) });
  t.log(`${part.name}: ${count} of ${places} places`);
  t.true(crashes.supervised.deaths > count / 2);
}

/**
 * Plays the parts in turn with two deaths: at any place, and then at the n-th place of the next life, which has its
 * take-over first, for every `step`-th n that a take-over has.
 */
export async function playTakeOvers(
  t: ExecutionContext,
  parts: readonly Part[],
  random: Random,
  step = 1,
): Promise<void> {
  const crashes = await Crashes.start(t);
  const places = new Map<Part, number>();
  for (const part of parts) places.set(part, await crashes.places(part));
  for (const part of parts) {
    // In the middle of the part much is open, and much in flight.
    const most = places.get(part) ?? 1;
    const takeOver = await crashes.takeOver(part, Math.ceil(most / 2));
    for (let next = 1 + random.below(step); next <= takeOver; next += step) {
      await crashes.play(part, { point: 1 + random.below(most), next });
    }
    t.log(`${part.name}: ${Math.ceil(takeOver / step)} of ${takeOver} places of a take-over`);
  }
}

async function withDeadline<T>(promise: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`it has not ended after ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
