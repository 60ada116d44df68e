/** The table of the device side's states: what cannot be seen from outside. */
import test from "ava";
import { type Change, DeviceState, type Event } from "../../../../host/bridge/link/device-state.js";

function stateAfter(...events: Event[]): DeviceState {
  const state = new DeviceState();
  for (const event of events) if (!state.raise(event)) throw new Error(`${event} in ${state.name}`);
  return state;
}

test("what an event changes is observed; one that means nothing changes nothing", (t) => {
  const state = new DeviceState();
  const seen: Change[] = [];
  state.observe((change) => seen.push(change));
  t.false(state.raise("introduced"));
  t.false(state.accepts("quiesce"));
  t.true(state.raise("hello", "why"));
  t.deepEqual(seen, [{ event: "hello", from: "absent", to: "ready", reason: "why" }]);
});

test("a pause goes back to where it was, but for what changed meanwhile", (t) => {
  const served: Event[] = ["hello", "introduced", "pause"];
  t.is(stateAfter(...served, "resume").name, "ready", "maps and interrupts are made up for first");
  t.is(stateAfter("allocate", "pause", "resume").name, "preparing");
  t.is(stateAfter("hello", "quiesce", "pause", "resume").name, "quiescing");
  t.is(stateAfter("hello", "quiesce", "pause", "quiesced", "resume").name, "quiesced", "its reply was in flight");
  t.is(stateAfter(...served, "reset").name, "absent");
});

test("a command waits for the end of a pause, until its grace is over, and of the next one as well", (t) => {
  const state = stateAfter("hello", "introduced", "pause");
  t.is(state.command, "held for a while");
  state.raise("graceOver");
  state.raise("resetOwed");
  t.is(state.command, "without waiting");
  state.raise("resume");
  t.is(state.command, "held");
  state.raise("pause");
  t.is(state.command, "held for a while");
  t.is(stateAfter("allocate", "pause").command, "without the device", "nobody waits for one that was not there");
});

test("each end of a device process is another generation; a pause is none", (t) => {
  const state = stateAfter("hello", "introduced", "pause", "resume");
  t.is(state.generation, 0);
  for (const event of ["silent", "quiesce", "violated", "reset"] as const) {
    const { generation } = state;
    t.true(state.raise(event));
    t.is(state.generation, generation + 1);
    t.is(state.cause, event === "silent" || event === "violated" ? event : undefined);
  }
});
