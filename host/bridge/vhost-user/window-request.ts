/** Requests for the window: what each is, and what of those in flight outlives the bridge. */
import { duplicate } from "../../../native/index.js";
import { inBounds, isAligned } from "../../../shared/bits.js";
import { isSystemError } from "../../../shared/errors.js";
import { PAGE_SIZE } from "../../../shared/limits.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import { WINDOW_SHMID } from "../../../shared/spec/link.js";
import { BackendRequest, ShmemMap, ShmemMapFlags } from "../../../shared/spec/vhost-user.js";
import type { PairValues } from "../state/tables.js";
import type { Connection } from "./connection.js";

/** How long a SET_MEM_TABLE is waited for before the front-end is asked by other means. */
export const TABLE_WAIT_MS = 50;
/** The same where the table has room for the change, so that it only takes long because the machine has much to do. */
export const TABLE_DUE_MS = 1000;

export interface WindowRequest {
  /** One of BackendRequest. */
  readonly request: number;
  fd: number;
  /** The fd is a copy, and this file's to close. */
  ownsFd: boolean;
  /** What it mapped is to be unmapped again, and that is on its way. */
  isUndone: boolean;
  readonly fdOffset: number;
  readonly offset: number;
  readonly size: number;
  resolve(): void;
  reject(error: Error): void;
}

/** Who sends requests of another kind by the same channel, at any time: QEMU survives them. */
export interface ChannelUser {
  /** Those without a reply. */
  readonly inFlight: number;
  /** Their replies, in order. */
  replied(value: number): void;
  /** There will be none. */
  reset(): void;
}

/** Those who wait until nothing is on its way. */
export class Idlers {
  readonly #waiting: (() => void)[] = [];

  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  release(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Never mapped, since it is not page-aligned. */
export const probe: WindowRequest = madeRequest(BackendRequest.SHMEM_UNMAP, 1, 1);

/** One that nobody waits for. */
function madeRequest(request: number, offset: number, size: number): WindowRequest {
  return { request, fd: -1, ownsFd: false, isUndone: false, fdOffset: 0, offset, size, resolve() {}, reject() {} };
}

/** Why a request cannot be for a window of that size; undefined when it can. */
export function wrongPlace(fdOffset: number, offset: number, size: number, windowSize: number): string | undefined {
  if (![fdOffset, offset, size].every((value) => isAligned(value, PAGE_SIZE)) || size === 0) {
    return "a map that is not page-aligned cannot be put into the window";
  }
  return inBounds(offset, size, windowSize) && fdOffset >= 0 ? undefined : "a map outside the window";
}

/** The payload of its message. */
export function encodeRequest({ request, fdOffset, offset, size }: WindowRequest): Uint8Array {
  if (request === BackendRequest.CONFIG_CHANGE_MSG) return new Uint8Array(0);
  const flags = request === BackendRequest.SHMEM_MAP ? ShmemMapFlags.READ_WRITE : 0;
  return ShmemMap.encode({ shmid: WINDOW_SHMID, fdOffset, shmOffset: offset, length: size, flags });
}

/**
 * Whoever has the fd of a request that waits for the end of a pause may close it meanwhile. False when there is none
 * left for a copy: the request is rejected.
 */
export function takeCopy(request: WindowRequest): boolean {
  if (request.fd < 0 || request.ownsFd) return true;
  try {
    request.fd = duplicate(request.fd);
    request.ownsFd = true;
    return true;
  } catch (error) {
    if (!isSystemError(error)) throw error;
    request.reject(error);
    return false;
  }
}

/** It may be the last descriptor of much memory. */
export function closeCopy(request: WindowRequest): void {
  if (request.ownsFd) closePeerFd(request.fd);
  request.ownsFd = false;
}

/** The window as the state keeps it; what is in flight is apart. */
export interface SavedWindow {
  /** The number of the channel's descriptor; 0 when there is none. */
  readonly channel: number;
  readonly permitted: boolean;
  readonly abandoned: number;
  readonly regions: number;
}

export function rejectAll(requests: readonly (WindowRequest | undefined)[], reason: Error): void {
  for (const request of requests) {
    if (request) closeCopy(request);
    request?.reject(reason);
  }
}

/** The pair of the state in which those in flight are. */
export type SavedRequests = PairValues<"windowRequests">;

export function savedRequests(sent: WindowRequest | undefined, committing: WindowRequest | undefined): SavedRequests {
  return {
    ...(sent && { sent: sent.request, sentOffset: sent.offset, sentSize: sent.size }),
    ...(committing && {
      committing: committing.request,
      committingOffset: committing.offset,
      committingSize: committing.size,
    }),
  };
}

/**
 * Those in flight, as another bridge left them; who has the places hears of them by Window.onSettled. One that was not
 * sent on the channel is none: who has its place knows that it is not mapped. A reply that was dealt with is skipped.
 */
export function restoredRequests(saved: SavedRequests | undefined, channel: Connection | undefined) {
  const { sent = 0, sentOffset = 0, sentSize = 0, queued = 0, replied = 0 } = saved ?? {};
  const { committing = 0, committingOffset = 0, committingSize = 0 } = saved ?? {};
  if (saved && channel && ((replied - channel.position) | 0) > 0) channel.skipTo(replied);
  const isSent = sent !== 0 && channel !== undefined && ((channel.sent - queued) | 0) > 0;
  channel?.dropUnsent();
  const waits: Promise<void>[] = [];
  const made = (request: number, offset: number, size: number): WindowRequest => {
    if (request === probe.request && offset === probe.offset) return probe;
    let settle = () => {};
    waits.push(
      new Promise((resolve) => {
        settle = resolve;
      }),
    );
    return { ...madeRequest(request, offset, size), resolve: settle, reject: settle };
  };
  const requests = {
    sent: isSent ? made(sent, sentOffset, sentSize) : undefined,
    committing: committing === 0 ? undefined : made(committing, committingOffset, committingSize),
  };
  return { ...requests, settled: Promise.all(waits) };
}
