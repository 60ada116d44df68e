import { closeSync } from "node:fs";
import test from "ava";
import { eventfd, eventfdRead, eventfdWrite, POLL_READABLE, Poll } from "../../native/index.js";
import { startDeadline } from "../../shared/deadline.js";

/** Nothing of this process runs meanwhile. */
const standStill = (milliseconds: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);

for (const before of [0, 70, 90]) {
  test.serial(
    `what came while the process stood still, after ${before} % of the time, is seen before it is late`,
    async (t) => {
      t.is(await standStillAfter(before), "came");
    },
  );
}

/**
 * What comes of a deadline of 100 ms, of which that many have passed when something comes and the process stands still.
 */
async function standStillAfter(before: number): Promise<string> {
  const fd = eventfd(0);
  const seen = await new Promise<string>((resolve) => {
    const stop = startDeadline(100, () => resolve("late"));
    const poll = new Poll(fd, () => {
      eventfdRead(fd);
      stop();
      poll.close();
      resolve("came");
    });
    poll.start(POLL_READABLE);
    const stand = () => {
      eventfdWrite(fd);
      standStill(300);
    };
    if (before === 0) stand();
    else setTimeout(stand, before);
  });
  closeSync(fd);
  return seen;
}

test("what does not come is late, once; what is stopped never is", async (t) => {
  let count = 0;
  const stop = startDeadline(5, () => t.fail("it was stopped"));
  stop();
  await new Promise<void>((resolve) => {
    startDeadline(16, () => {
      count++;
      resolve();
    });
  });
  await new Promise<void>((resolve) => {
    startDeadline(0, resolve);
  });
  await new Promise<void>((resolve) => {
    startDeadline(40, resolve);
  });
  t.is(count, 1);
});
