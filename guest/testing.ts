/// <reference types="node" preserve="true" />
/**
 * What `virtio-vfio-user/testing` is: a device in the test's own process, served as `vfio-user-device` serves it on a
 * socket, and clients for it that play the driver VM. Left out: a bridge and a device VM; a device cannot tell.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Log, quietLog } from "../shared/log.js";
import { Client, type ClientOptions } from "../shared/vfio-user/client/client.js";
import type { Device } from "./device.js";
import { DeviceEndpoint } from "./function/endpoint.js";
import { LocalLink } from "./link/local/local.js";

export interface ServedDevice {
  /** A new client; the one before has to be closed first, since a device has one driver VM. `close` closes it, too. */
  connect(options?: ClientOptions): Promise<Client>;
  /** What SIGUSR1 has `vfio-user-device` write down: registers by name, interrupts, DMA maps. */
  inspect(): unknown;
  /** Closes the clients and the device, and leaves nothing behind. */
  close(): Promise<void>;
}

/** Starts a device and serves it. Rejects with what is wrong in its declaration, or with what its `start` threw. */
export async function serveDevice(device: Device, { log = quietLog }: { log?: Log } = {}): Promise<ServedDevice> {
  const directory = await mkdtemp(join(tmpdir(), "vfio-user-testing-"));
  const clients: Client[] = [];
  const ends: (() => Promise<unknown>)[] = [() => rm(directory, { recursive: true })];
  const close = async () => {
    for (const client of clients) client.close();
    for (const end of ends.splice(0).reverse()) await end();
  };
  try {
    const link = new LocalLink({ socket: join(directory, "device.sock"), log });
    const endpoint = new DeviceEndpoint(device, link, log);
    ends.push(() => endpoint.close());
    await endpoint.start();
    ends.push(() => link.close());
    await link.open(endpoint);
    const connect = async (options?: ClientOptions) => {
      const client = await Client.connect(join(directory, "device.sock"), options);
      clients.push(client);
      return client;
    };
    return { connect, inspect: () => endpoint.inspect(), close };
  } catch (error) {
    await close();
    throw error;
  }
}
