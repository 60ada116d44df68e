/**
 * Deadlines in turns of the event loop, not in time alone. A process that stood still (it was stopped, or the machine
 * had too much to do) finds its timers expired before it looks at what came meanwhile; what was answered in time must
 * not count as late then. So a deadline is several ticks of a timer, of which a standstill of any length is one, and
 * what a tick decides waits until the event loop has looked at its sockets and rings a few times.
 */

/** Ticks within one deadline; what is late is noticed at most one tick early. */
export const TICKS_PER_DEADLINE = 8;
/** Turns of the event loop after a tick: what was received in one may be answered in the next. */
const TURNS = 4;

/**
 * Calls `late` once, when `milliseconds` have passed in which the event loop went round several times; 0 is its next
 * turn. Time in which the other side `isPaused` does not count, and afterwards it has all of it again. Returns what
 * takes that back.
 */
export function startDeadline(milliseconds: number, late: () => void, isPaused = () => false): () => void {
  const ticks = milliseconds > 0 ? TICKS_PER_DEADLINE : 1;
  let left = ticks;
  const stop = startTicks(milliseconds, () => {
    if (isPaused()) left = ticks;
    else left--;
    if (left > 0) return;
    stop();
    late();
  });
  return stop;
}

/**
 * Calls `tick` TICKS_PER_DEADLINE times within `milliseconds`, on and on: for many waits that have the same deadline,
 * which note the ticks so far when they begin. Returns what ends it.
 */
export function startTicks(milliseconds: number, tick: () => void): () => void {
  let turn: NodeJS.Immediate | undefined;
  const wait = (turns: number) => {
    turn = setImmediate(() => {
      turn = undefined;
      if (turns > 1) wait(turns - 1);
      else tick();
    });
  };
  const clock = setInterval(() => {
    if (turn === undefined) wait(TURNS);
  }, milliseconds / TICKS_PER_DEADLINE);
  return () => {
    clearInterval(clock);
    clearImmediate(turn);
  };
}
