/**
 * Tests that run over both links, with a device that can be migrated; one at a time, as each has a bridge of its own.
 */
import test, { type ExecutionContext } from "ava";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { MigratableDevice } from "../../fakes/migratable-device.js";
import { type Machine, setUpWith } from "./machine.js";

/** Runs a test with a device that can be migrated, over each link. */
export function both(
  title: string,
  run: (t: ExecutionContext, machine: Machine<MigratableDevice>) => Promise<void>,
): void {
  for (const kind of ["local", "virtio"] as const) {
    test.serial(`${kind}: ${title}`, async (t) => {
      const machine = await setUpWith(t, kind, new MigratableDevice());
      try {
        await run(t, machine);
      } finally {
        t.deepEqual(await machine.end(), []);
      }
    });
  }
}

/** The server refuses a request with that errno. */
export async function refuses(t: ExecutionContext, work: Promise<unknown>, errno: keyof typeof Errno, what?: string) {
  const error = await t.throwsAsync(work, { instanceOf: ProtocolError }, what);
  t.is(error?.errno, Errno[errno], what);
}
