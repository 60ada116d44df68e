/**
 * Runs a device on a link until it is told to stop or the link is lost: the order in which a device, its endpoint and
 * its link start and end. Meanwhile its state can be inspected.
 */
import { once } from "node:events";
import { startDeadline } from "../shared/deadline.js";
import { UserError } from "../shared/errors.js";
import type { Log } from "../shared/log.js";
import { placeOf } from "./author-error.js";
import type { Device } from "./device.js";
import { DeclarationError } from "./function/declaration.js";
import { DeviceEndpoint } from "./function/endpoint.js";
import type { Link } from "./link/link.js";

/** After so long something that the author's code has not finished is said. */
const SLOW_START_MS = 5000;

/** What a process does in the life of its device. */
export interface Life {
  /** Has the device shown, whenever somebody asks for it, until what it returns is called. */
  show(endpoint: DeviceEndpoint): () => void;
  /** Ends when the first client has gone. */
  readonly once: boolean;
  /** Clients can connect. */
  ready(): void;
  /** It begins to end. */
  ending(): void;
}

/**
 * Resolves when everything is closed: true when `stop` was aborted, or it has served its one client; false when the
 * link was lost. Rejects with what the start threw, everything closed.
 */
export async function runDevice(device: Device, link: Link, log: Log, stop: AbortSignal, life: Life): Promise<boolean> {
  const endpoint = createEndpoint(device, link, log);
  const hide = life.show(endpoint);
  const stopped = whenAborted(stop);
  let isReady = false;
  try {
    if (await Promise.race([stopped, begin(endpoint, link, log)])) return true;
    life.ready();
    isReady = true;
    log.info("the device is ready");
    const ends = [stopped, link.closed.then(() => false)];
    if (life.once) ends.push(endpoint.served.then(() => true));
    return await Promise.race(ends);
  } finally {
    hide();
    life.ending();
    await link.close();
    await endpoint.close();
    if (isReady) log.info("the device has ended");
  }
}

/** What `work` does, with a line in the log when it takes long. */
export async function notSilently<T>(what: string, log: Log, work: Promise<T>, afterMs = SLOW_START_MS): Promise<T> {
  const stop = startDeadline(afterMs, () => {
    log.error(`${what} has not finished after ${afterMs / 1000} seconds: until it has, no driver VM is served`);
  });
  try {
    return await work;
  } finally {
    stop();
  }
}

function createEndpoint(device: Device, link: Link, log: Log): DeviceEndpoint {
  try {
    return new DeviceEndpoint(device, link, log);
  } catch (error) {
    if (!(error instanceof DeclarationError || error instanceof RangeError)) throw error;
    throw new UserError(`the device cannot be: ${error.message}`, 1, { cause: error });
  }
}

/** Resolves with true. */
export async function whenAborted(signal: AbortSignal): Promise<true> {
  if (!signal.aborted) await once(signal, "abort");
  return true;
}

/** Resolves with false, when clients can connect. */
async function begin(endpoint: DeviceEndpoint, link: Link, log: Log): Promise<false> {
  try {
    await notSilently("the device's start()", log, endpoint.start());
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`the device's start() failed: ${placeOf(error)}`, 1, { cause: error });
  }
  await link.open(endpoint);
  return false;
}
