/** A device on a vfio-user socket and its client, for tests: the library's endpoint and local link, nothing faked. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import type { Device } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { close, eventfd, eventfdRead, POLL_READABLE, Poll } from "../../../native/index.js";
import { type Log, quietLog } from "../../../shared/log.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";

/** Serves the device until the test ends; `connect` gives a client that closes by then. */
export async function serve(t: ExecutionContext, device: Device, log: Log = quietLog) {
  const directory = mkdtempSync(join(tmpdir(), "vvu-"));
  const socket = join(directory, "device.sock");
  const link = new LocalLink({ socket, log });
  const endpoint = new DeviceEndpoint(device, link, log);
  await endpoint.start();
  await link.open(endpoint);
  const clients: Client[] = [];
  t.teardown(async () => {
    for (const client of clients) client.close();
    await link.close();
    await endpoint.close();
    rmSync(directory, { recursive: true });
  });
  const connect = async () => {
    const client = await Client.connect(socket);
    clients.push(client);
    return client;
  };
  return { endpoint, socket, connect };
}

/** 32-bit registers of BAR 0, and the bits in the command register that a driver sets. */
export function driver(client: Client) {
  const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  return {
    read: async (offset: number) => Buffer.from(await client.regionRead(Region.BAR0, offset, 4)).readUInt32LE(),
    write: (offset: number, value: number) => client.regionWrite(Region.BAR0, offset, u32(value)),
    enable: () =>
      client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(CommandBits.MEMORY | CommandBits.BUS_MASTER, 0)),
  };
}

/** An eventfd for SET_IRQS, which is closed when the test ends. */
export function interrupt(t: ExecutionContext) {
  const fd = eventfd(0);
  let signals = 0;
  let wake = () => {};
  const poll = new Poll(fd, () => {
    signals += eventfdRead(fd);
    wake();
  });
  poll.start(POLL_READABLE);
  t.teardown(() => {
    poll.close();
    close(fd);
  });
  /** Resolves when a signal is there, and takes all that are. */
  const next = async (): Promise<number> => {
    while (signals === 0) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    const taken = signals;
    signals = 0;
    return taken;
  };
  /** Signals so far that nobody took. */
  const count = () => {
    signals += eventfdRead(fd);
    return signals;
  };
  return { fd, next, count };
}
