/**
 * All checks, a file for each topic, in the order in which they run: what later ones rely on comes first, judgement on
 * all replies last. negotiation; device and its regions (regions, region-io-fds); interrupts (irqs, set-irqs); region
 * accesses (access, write-multi), config-space; DMA maps (dma); DEVICE_FEATURE (features, dma-logging, migration);
 * messages on the stream (framing, pipelining); clients that come and go (lifecycle); replies.
 */
import type { Check } from "../check.js";
import { access } from "./access.js";
import { configSpace } from "./config-space.js";
import { device } from "./device.js";
import { dmaMap, dmaUnmap } from "./dma.js";
import { dmaLogging } from "./dma-logging.js";
import { features } from "./features.js";
import { framing } from "./framing.js";
import { irqs } from "./irqs.js";
import { lifecycle } from "./lifecycle.js";
import { migration } from "./migration.js";
import { negotiation } from "./negotiation.js";
import { pipelining } from "./pipelining.js";
import { regionIoFds } from "./region-io-fds.js";
import { regions } from "./regions.js";
import { replies } from "./replies.js";
import { setIrqs } from "./set-irqs.js";
import { writeMulti } from "./write-multi.js";

export const ALL_CHECKS: readonly Check[] = [
  negotiation,
  device,
  regions,
  regionIoFds,
  irqs,
  setIrqs,
  access,
  writeMulti,
  configSpace,
  dmaMap,
  dmaUnmap,
  features,
  dmaLogging,
  migration,
  framing,
  pipelining,
  lifecycle,
  replies,
].flat();
