/** Turns of the event loop: their bounds, and the rest after one that is not light while others have some. */
import { setImmediate } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { KiB, MiB } from "../../shared/limits.js";
import { Rest, Share, Turn } from "../../shared/turn.js";

/** Takes as much as it may; how many messages that were. */
function fill(turn: Turn, bytes = 0): number {
  let messages = 1;
  while (turn.spend(bytes)) messages++;
  return messages;
}

/** The clock stands still until the test ends; what it shows. */
function stopClock(t: ExecutionContext): number {
  const { now } = performance;
  const time = now.call(performance);
  performance.now = () => time;
  t.teardown(() => {
    performance.now = now;
  });
  return time;
}

/** A light turn of some other session. */
function lightTurn(): void {
  const turn = new Turn(new Share(), Rest.CONTROL, () => {});
  turn.begin();
  turn.spend(0);
  turn.end(false);
}

test.serial("a turn is bounded in messages, in bytes, and in time", (t) => {
  const turn = new Turn(new Share(), Rest.CONTROL, () => t.fail());
  t.true(turn.begin());
  t.true(fill(turn) <= 128);
  turn.end(false);
  t.true(turn.begin());
  t.true(fill(turn, 64 * KiB) <= 8);
  turn.end(false);
  t.true(turn.begin());
  t.is(fill(turn, MiB), 1, "one message is always taken");
  turn.end(false);
  t.true(turn.begin());
  let messages = 1;
  for (; turn.spend(0); messages++) for (const until = performance.now() + 0.3; performance.now() < until; );
  t.true(messages < 40, `${messages} slow messages`);
  turn.end(false);
});

test.serial("what is left over is dealt with in a later turn, and not before", async (t) => {
  let resumed = 0;
  const turn = new Turn(new Share(), Rest.CONTROL, () => {
    resumed++;
    t.true(turn.begin());
    turn.end(false);
  });
  turn.begin();
  fill(turn);
  turn.end(true);
  t.true(turn.waits);
  t.false(turn.begin());
  t.is(resumed, 0);
  await setImmediate();
  t.is(resumed, 1);
  t.false(turn.waits);
});

test.serial("after it was closed nothing is resumed", async (t) => {
  const turn = new Turn(new Share(), Rest.CONTROL, () => t.fail());
  turn.begin();
  fill(turn);
  turn.end(true);
  turn.close();
  await setImmediate();
  await setImmediate();
  t.pass();
});

test.serial("who has always sent more than is begun floods, one message at a time", (t) => {
  const now = stopClock(t);
  const share = new Share();
  share.hadOthers();
  const turn = new Turn(share, Rest.CONTROL, () => {});
  const serveOne = (isBacklogged: boolean): boolean => {
    if (!turn.begin()) return false;
    turn.spend(0);
    turn.end(false, isBacklogged);
    return true;
  };
  for (let i = 0; i < 100; i++) {
    lightTurn();
    t.true(serveOne(i % 4 !== 3), "a backlog that is served again and again");
  }
  share.hadOthers();
  for (let i = 0; i < 100; i++) t.true(serveOne(true), "nobody else is there");
  t.true(serveOne(false));
  lightTurn();
  let served = 0;
  while (served < 100 && serveOne(true)) served++;
  t.true(served > 1 && served < 20, `${served} messages`);
  t.true(share.restsUntil > now);
  turn.close();
});

test.serial("who floods rests while others have light turns, with all that is its session's", async (t) => {
  const begun = process.hrtime.bigint();
  const now = stopClock(t);
  const share = new Share();
  share.hadOthers();
  const resumed = { turn: 0, other: 0 };
  const turn = new Turn(share, Rest.CONTROL, () => resumed.turn++);
  const other = new Turn(share, Rest.CONTROL, () => resumed.other++);
  turn.begin();
  fill(turn, MiB);
  turn.end(true);
  await setImmediate();
  t.is(resumed.turn, 1, "nobody else is there");

  lightTurn();
  t.true(turn.begin());
  fill(turn, MiB);
  turn.end(true);
  const rest = share.restsUntil - now;
  t.true(rest > 1);
  t.is(resumed.turn, 1, "it rests");
  t.false(other.begin());
  while (resumed.turn < 2 || resumed.other < 1) await setImmediate();
  t.true(Number(process.hrtime.bigint() - begun) / 1e6 >= rest - 1.5);
});

test.serial("light turns are never made to rest, and floods do not make each other rest", async (t) => {
  const flooding = [0, 1].map(() => {
    const share = new Share();
    share.hadOthers();
    const turn: Turn = new Turn(share, Rest.CONTROL, () => {
      turn.begin();
      fill(turn, MiB);
      turn.end(true);
    });
    turn.goOn();
    return { share, turn };
  });
  for (let n = 0; n < 20; n++) await setImmediate();
  for (const { share, turn } of flooding) {
    t.is(share.restsUntil, 0);
    turn.close();
  }
  const light = new Turn(new Share(), Rest.CONTROL, () => t.fail());
  for (let n = 0; n < 100; n++) {
    lightTurn();
    t.true(light.begin());
    for (let message = 0; message < 8; message++) t.true(light.spend(0));
    light.end(false);
  }
});

test.serial("data rests as long as its turn, and a rest has an end", async (t) => {
  for (const [rest, bytes, least, most] of [
    [Rest.DATA, MiB, 0.2, 10],
    [Rest.NONE, MiB, 0, 0],
    [Rest.CONTROL, 1024 * MiB, 40, 50],
  ] as const) {
    const share = new Share();
    const turn = new Turn(share, rest, () => {});
    turn.begin();
    fill(turn, bytes);
    lightTurn();
    const now = performance.now();
    turn.end(false);
    if (most === 0) t.true(share.restsUntil <= performance.now());
    else t.true(share.restsUntil >= now + least && share.restsUntil <= performance.now() + most);
  }
});
