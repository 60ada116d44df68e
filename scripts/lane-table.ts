/** Writes native/lane_nvme_table.h, the table of what lanes check, as C++ has it. */
import "../shared/no-debugger.js";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { laneTableHeader } from "../guest/devices/nvme/queues/lane-table.js";
import { PROJECT_ROOT } from "./vm/environment.js";

writeFileSync(join(PROJECT_ROOT, "native/lane_nvme_table.h"), laneTableHeader());
