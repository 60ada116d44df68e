/** When the device process polls for messages and when it sleeps. */
import test from "ava";
import { DevicePath, type LinkPolling, PathState } from "../../../guest/link/virtio/device-path.js";

/** A clock that the test moves, in microseconds. */
function polling(kind: LinkPolling = "adaptive") {
  let now = 1000;
  const it = new DevicePath(new PathState(), kind).native;
  return {
    /** What it does at a turn, `us` after the one before. */
    turn: (found: boolean, us = 5) => {
      now += us;
      return it.continues(found, now);
    },
    /** Turns that a round lasts which finds nothing; 0 when there is none. */
    inVain(): number {
      let turns = 0;
      while (this.turn(turns === 0)) turns++;
      return turns;
    },
  };
}

test("it polls for 50 us after a message, and again after each that comes meanwhile", (t) => {
  const { turn } = polling();
  t.true(turn(true));
  t.true(turn(false, 30));
  t.true(turn(true, 10));
  t.true(turn(false, 45));
  t.false(turn(false, 10));
  t.false(turn(false, 0), "asleep");
});

test("a round that finds nothing makes the next ones rarer, up to one in 1025 sleeps", (t) => {
  const it = polling();
  for (const pause of [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]) {
    t.true(it.inVain() > 0);
    for (let n = 0; n < pause; n++) t.is(it.inVain(), 0, `${n} of ${pause}`);
  }
  t.true(it.inVain() > 0);
});

test("one that finds something begins anew", (t) => {
  const it = polling();
  for (const pause of [1, 2, 4, 8]) {
    it.inVain();
    for (let n = 0; n < pause; n++) it.inVain();
  }
  t.true(it.turn(true));
  t.true(it.turn(true));
  while (it.turn(false));
  t.is(it.inVain(), 0);
  t.true(it.inVain() > 0);
});

test("pinned", (t) => {
  const always = polling("always");
  const never = polling("never");
  for (const found of [true, false, false]) {
    t.true(always.turn(found, 10_000));
    t.false(never.turn(found));
  }
});
