/** All checks, in the order in which they run: what later ones rely on comes first, judgement on all replies last. */
import type { Check } from "./check.js";
import { access } from "./topics/access.js";
import { configSpace } from "./topics/config-space.js";
import { deviceChecks } from "./topics/device.js";
import { dmaLogging } from "./topics/dma-logging.js";
import { dmaMap } from "./topics/dma-map.js";
import { dmaUnmap } from "./topics/dma-unmap.js";
import { features } from "./topics/features.js";
import { framing } from "./topics/framing.js";
import { irqs } from "./topics/irqs.js";
import { lifecycle } from "./topics/lifecycle.js";
import { migrationChecks } from "./topics/migration.js";
import { negotiation } from "./topics/negotiation.js";
import { pipelining } from "./topics/pipelining.js";
import { regionIoFds } from "./topics/region-io-fds.js";
import { regions } from "./topics/regions.js";
import { replies } from "./topics/replies.js";
import { setIrqs } from "./topics/set-irqs.js";
import { writeMulti } from "./topics/write-multi.js";

export const ALL_CHECKS: readonly Check[] = [
  ...negotiation,
  ...deviceChecks,
  ...regions,
  ...regionIoFds,
  ...irqs,
  ...setIrqs,
  ...access,
  ...writeMulti,
  ...configSpace,
  ...dmaMap,
  ...dmaUnmap,
  ...features,
  ...dmaLogging,
  ...migrationChecks,
  ...framing,
  ...pipelining,
  ...lifecycle,
  ...replies,
];
