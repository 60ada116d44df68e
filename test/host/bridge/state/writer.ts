/** Changes the state in descriptor 3 without end, for a test that kills it. */
import { StateMemory } from "../../../../host/bridge/state/state-memory.js";

const [session] = StateMemory.of(3, 1).sessions;
const maps = session.slots("maps");
const slots: (number | undefined)[] = [];
for (let step = 1; ; step++) {
  session.pair("client").write({ generation: step, maxMaps: step * 3 });
  slots.push(maps.add({ address: step * 4096, size: 4096 }));
  if (slots.length > 3) maps.remove(slots.shift() ?? 0);
  if (step === 200) process.stdout.write("writing\n");
}
