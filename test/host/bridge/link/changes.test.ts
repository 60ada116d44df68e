/** Work in its order, and work that is wanted again while it waits. */
import test from "ava";
import { Changes } from "../../../../host/bridge/link/changes.js";
import { DeviceState } from "../../../../host/bridge/link/device-state.js";
import { quietLog } from "../../../../shared/log.js";

function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open: () => open(), opened };
}

test("work that waits is done once for all who want it, and again for who wants it afterwards", async (t) => {
  const changes = new Changes(new DeviceState(), quietLog);
  const done: string[] = [];
  const first = gate();
  const begun = gate();
  const again = gate();
  void changes.run(() => first.opened);
  const work = async () => {
    done.push("work");
    begun.open();
    await again.opened;
  };
  const wanted = changes.once(work);
  void changes.run(async () => void done.push("behind"));
  for (let n = 0; n < 1000; n++) t.is(changes.once(work), wanted);
  first.open();
  await begun.opened;
  const next = changes.once(work);
  t.not(next, wanted, "it has begun, perhaps before the reason for the next");
  again.open();
  await next;
  t.deepEqual(done, ["work", "behind", "work"]);
});

test("what fails is logged, and what is behind it is done", async (t) => {
  const errors: unknown[] = [];
  const changes = new Changes(new DeviceState(), {
    ...quietLog,
    error: (...said: unknown[]) => void errors.push(said.at(-1)),
  });
  await changes.once(async () => {
    throw new Error("failed");
  });
  await t.throwsAsync(
    changes.run(() => Promise.reject(new Error("told"))),
    { message: "told" },
  );
  let isDone = false;
  await changes.run(async () => {
    isDone = true;
  });
  t.true(isDone);
  t.deepEqual(errors, ["unexpected"]);
});
