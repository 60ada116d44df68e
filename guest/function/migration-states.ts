/**
 * The states of a device's migration and the ways between them (vfio-user, "Direct State Transitions" and "Complex
 * State Transitions"; <linux/vfio.h>, enum vfio_device_mig_state). Left out: the two states for peer-to-peer DMA, as in
 * vfio-user.
 */
import { MigrationState } from "../../shared/spec/vfio-user.js";

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;

/** By state, those that one step leads to. None leads from or to ERROR. */
const ARCS: Readonly<Record<number, readonly number[]>> = {
  [STOP]: [RUNNING, STOP_COPY, RESUMING],
  [RUNNING]: [STOP, PRE_COPY],
  [STOP_COPY]: [STOP],
  [RESUMING]: [STOP],
  [PRE_COPY]: [RUNNING, STOP_COPY],
};

export function isSaving(state: number): boolean {
  return state === PRE_COPY || state === STOP_COPY;
}

/**
 * The states to go through from `from` to `to`, which is the last of them: the shortest way on which no saving state
 * lies in between. Empty when they are the same; undefined when there is no way, or the way is forbidden.
 */
export function migrationPath(from: number, to: number): readonly number[] | undefined {
  if (ARCS[from] === undefined || ARCS[to] === undefined) return undefined;
  // What was read before would be read again, and the stream make no sense.
  if (from === STOP_COPY && to === PRE_COPY) return undefined;
  const ways: number[][] = [[]];
  for (let way = ways.shift(); way !== undefined; way = ways.shift()) {
    const at = way.at(-1) ?? from;
    if (at === to) return way;
    if (at !== from && isSaving(at)) continue;
    for (const next of ARCS[at]) if (next !== from && !way.includes(next)) ways.push([...way, next]);
  }
  return undefined;
}
