/** An NVMe device on a vfio-user socket, by the library's endpoint and local link, and drivers' transports to it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import type { Device } from "../../../../guest/device.js";
import { DeviceEndpoint } from "../../../../guest/function/endpoint.js";
import { LocalLink } from "../../../../guest/link/local/local.js";
import { VfioUserNvme } from "../../../../scripts/drivers/nvme-over-vfio-user.js";
import { MiB } from "../../../../shared/limits.js";
import { quietLog } from "../../../../shared/log.js";

/** Bytes of each transport's memory. */
export const MEMORY = 8 * MiB;

/** Puts the device on a socket, until the test ends; what is returned connects to it. */
export async function serve(t: ExecutionContext, device: Device, trustUnsealedMemory = false) {
  const directory = await mkdtemp(join(tmpdir(), "nvme-"));
  const socket = join(directory, "nvme.sock");
  const link = new LocalLink({ socket, log: quietLog, trustUnsealedMemory });
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  const transports: VfioUserNvme[] = [];
  t.teardown(async () => {
    for (const transport of transports) transport.close();
    await link.close();
    await endpoint.close();
    await rm(directory, { recursive: true });
  });
  return async (): Promise<VfioUserNvme> => {
    const transport = await VfioUserNvme.connect(socket, MEMORY);
    transports.push(transport);
    return transport;
  };
}
