/**
 * Runs a device on a link until it is told to stop or the link is lost: the order in which a device, its endpoint and its
 * link start and end. Meanwhile SIGUSR1 shows its state.
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
  const show = () => showState(endpoint, log);
  process.on("SIGUSR1", show);
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
    process.off("SIGUSR1", show);
    await link.close();
    await endpoint.close();
    log.info("the device has ended");
  }
}

/** Writes the state as a line of JSON like the log's to fd 2, whatever the log's level: it was asked for. */
function showState(endpoint: DeviceEndpoint, log: Log): void {
  try {
    const line = { time: Date.now(), msg: "state", state: endpoint.inspect() };
    const text = JSON.stringify(line, (_, value) => (typeof value === "bigint" ? `0x${value.toString(16)}` : value));
    process.stderr.write(`${text}\n`);
  } catch (error) {
    log.error({ err: error }, "the device's inspect failed");
  }
}
