/**
 * Deadlines in turns of the event loop, not in time alone. A process that stood still (it was stopped, or the machine had too
 * much to do) finds its timers expired before it looks at what came meanwhile; what was answered in time must not count as
 * late then.
 */
const TURNS = 8;

/**
 * Calls `late` once, when `milliseconds` have passed in which the event loop went round several times; 0 is its next turn. Time in
 * which the other side `isPaused` does not count, and afterwards it has all of it again. Returns what takes that back.
 */
export function startDeadline(milliseconds: number, late: () => void, isPaused = () => false): () => void {
  const turns = milliseconds > 0 ? TURNS : 1;
  let left = turns;
  const clock = setInterval(() => {
    if (isPaused()) left = turns;
    else left--;
    if (left > 0) return;
    clearInterval(clock);
    late();
  }, milliseconds / TURNS);
  return () => clearInterval(clock);
}
