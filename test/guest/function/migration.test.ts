/** The ways between migration states, against a table of <linux/vfio.h>'s rules that was made by hand. */
import test from "ava";
import { migrationPath } from "../../../guest/function/migration.js";
import { MigrationState } from "../../../shared/spec/vfio-user.js";

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P } = MigrationState;

const PATHS: readonly [from: number, to: number, path: readonly number[] | undefined][] = [
  [STOP, STOP, []],
  [STOP, RUNNING, [RUNNING]],
  [STOP, STOP_COPY, [STOP_COPY]],
  [STOP, RESUMING, [RESUMING]],
  [STOP, PRE_COPY, [RUNNING, PRE_COPY]],
  [RUNNING, STOP, [STOP]],
  [RUNNING, RUNNING, []],
  [RUNNING, STOP_COPY, [STOP, STOP_COPY]],
  [RUNNING, RESUMING, [STOP, RESUMING]],
  [RUNNING, PRE_COPY, [PRE_COPY]],
  [STOP_COPY, STOP, [STOP]],
  [STOP_COPY, RUNNING, [STOP, RUNNING]],
  [STOP_COPY, STOP_COPY, []],
  [STOP_COPY, RESUMING, [STOP, RESUMING]],
  [STOP_COPY, PRE_COPY, undefined],
  [RESUMING, STOP, [STOP]],
  [RESUMING, RUNNING, [STOP, RUNNING]],
  [RESUMING, STOP_COPY, [STOP, STOP_COPY]],
  [RESUMING, RESUMING, []],
  [RESUMING, PRE_COPY, [STOP, RUNNING, PRE_COPY]],
  [PRE_COPY, STOP, [RUNNING, STOP]],
  [PRE_COPY, RUNNING, [RUNNING]],
  [PRE_COPY, STOP_COPY, [STOP_COPY]],
  [PRE_COPY, RESUMING, [RUNNING, STOP, RESUMING]],
  [PRE_COPY, PRE_COPY, []],
];

for (const [from, to, path] of PATHS) {
  test(`from ${from} to ${to}`, (t) => t.deepEqual(migrationPath(from, to), path));
}

test("no way leads from or to a state that there is not, or to or from an error", (t) => {
  for (const nowhere of [ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, 0xabcd, 0xffffffff, -1, 1.5, Number.NaN]) {
    t.is(migrationPath(nowhere, nowhere), undefined);
    for (const state of [STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY]) {
      t.is(migrationPath(nowhere, state), undefined);
      t.is(migrationPath(state, nowhere), undefined);
    }
  }
});
