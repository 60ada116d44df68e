/**
 * Runs a device on a link until it is told to stop or the link is lost: the order in which a device, its endpoint and its
 * link start and end.
 */
import type { Log } from "../shared/log.js";
import type { Device } from "./device.js";
import { DeviceEndpoint } from "./endpoint.js";
import type { Link } from "./link/link.js";

/**
 * Resolves when everything is closed: true when `stop` was aborted, false when the link was lost. Rejects with what the
 * start threw, everything closed.
 */
export async function runDevice(device: Device, link: Link, log: Log, stop: AbortSignal): Promise<boolean> {
  const endpoint = new DeviceEndpoint(device, link, log);
  try {
    await endpoint.start();
    await link.open(endpoint);
    log.info("the device is ready");
    const stopped = new Promise<boolean>((resolve) => {
      if (stop.aborted) resolve(true);
      stop.addEventListener("abort", () => resolve(true), { once: true });
    });
    return await Promise.race([stopped, link.closed.then(() => false)]);
  } finally {
    await link.close();
    await endpoint.close();
    log.info("the device has ended");
  }
}
