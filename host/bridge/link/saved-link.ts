/** The bridge's half of a link as the state keeps it, and how another bridge goes on with it. */

import { eventfdWrite } from "../../../native/index.js";
import { Queue } from "../../../shared/spec/link.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { SavedProcess } from "./device-process.js";
import type { SavedDeviceState, State } from "./device-state.js";
import type { RestoredMap } from "./dma-maps.js";
import type { SavedDoorbells } from "./doorbells.js";
import type { SavedInterrupts } from "./interrupts.js";
import type { ClientEnds, Introduction, SavedIntroduction } from "./introduction.js";
import type { LinkParts } from "./link-parts.js";
import type { SavedSharing } from "./sharing.js";
import type { SavedAllocation } from "./window-allocation.js";

export interface SavedLink {
  readonly state: SavedDeviceState;
  readonly process: SavedProcess;
  readonly introduction: SavedIntroduction;
  readonly interrupts: SavedInterrupts;
  readonly doorbells: SavedDoorbells;
  readonly sharing: SavedSharing;
  readonly allocation: SavedAllocation;
  readonly config: { readonly generation: number; readonly status: number };
}

/** A client that is there, if any, and all maps that are noted, those too that a client gave up. */
export interface RestoredClient {
  readonly ends: ClientEnds | undefined;
  readonly maps: readonly RestoredMap[];
}

export function saveLink(parts: LinkParts, introduction: Introduction): SavedLink {
  const { state, process, interrupts, doorbells, sharing, allocation, config } = parts;
  return {
    state: state.save(),
    process: process.save(),
    introduction: introduction.save(),
    interrupts: interrupts.save(),
    doorbells: doorbells.save(),
    sharing: sharing.save(),
    allocation: allocation.save(),
    config: config.save(),
  };
}

/** The rings' memory is there, and doorbells are attached where a device has them. @throws StateError */
export function restoreLink(
  parts: LinkParts,
  introduction: Introduction,
  saved: SavedLink,
  client: RestoredClient,
): void {
  const { state, process, interrupts, doorbells, sharing, allocation, maps, config } = parts;
  state.restore(saved.state);
  config.restore(saved.config);
  allocation.restore(saved.allocation);
  sharing.restore(saved.sharing);
  maps.restore(client.ends?.memory, client.maps, saved.introduction.announcement);
  doorbells.restore(saved.doorbells, state.isPaused);
  interrupts.restore(saved.interrupts);
  introduction.restore(saved.introduction, client.ends);
  process.restore(saved.process);
}

/** Whether a device in that state has doorbells. */
export function hasDoorbells(state: State): boolean {
  return state === "ready" || state === "connected" || state === "paused";
}

/** What is in the window becomes as it is known, when the front-end has answered what the bridge before asked it. */
export async function repairWindow({ window, maps, sharing }: LinkParts): Promise<void> {
  await window.restored;
  maps.placement.freeUnmapped();
  await sharing.memories.repair();
}

/** What the driver kicked for, and the bridge before had begun to look at, is looked at; and the driver looks, too. */
export function signalAll(backEnd: BackEnd): void {
  for (const queue of [Queue.TO_DEVICE, Queue.FROM_DEVICE, Queue.COPY]) {
    backEnd.call(queue);
    const kick = backEnd.kickFd(queue);
    if (kick >= 0) eventfdWrite(kick);
  }
}
