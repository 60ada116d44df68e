/** Changes the state in descriptor 3 without end, for a test that kills it. */

import { ControlState } from "../../../../host/bridge/state/control-state.js";
import { LAYOUT } from "../../../../host/bridge/state/layout.js";
import { StateBytes } from "../../../../host/bridge/state/state-bytes.js";
import { initialize } from "../../../../host/bridge/state/state-memory.js";
import { Pair, Slots } from "../../../../host/bridge/state/tables.js";
import { mapFile, PROT_READ, PROT_WRITE } from "../../../../native/index.js";
import { IDENTITY, NUMBER, UUID } from "./set-up.js";

const bytes = new StateBytes(mapFile(3, 0, LAYOUT.size, PROT_READ | PROT_WRITE));
initialize(bytes, NUMBER, IDENTITY, UUID);
const maps = new Slots(bytes, "maps");
const windowRequests = new Pair(bytes, "windowRequests");
const control = new ControlState(bytes);
const slots: (number | undefined)[] = [];
let step = 0;
control.begin(() => ({ n: step, text: "x".repeat(step % 1000) }));
for (step = 1; ; step++) {
  windowRequests.write({ sentOffset: step, sentSize: step * 3 });
  control.touch();
  control.commit();
  slots.push(maps.add({ address: step * 4096, size: 4096 }));
  if (slots.length > 3) maps.remove(slots.shift() ?? 0);
  if (step === 200) process.stdout.write("writing\n");
}
