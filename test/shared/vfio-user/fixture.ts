/** A server on a socket of its own with a fake backend, all taken away at the end of the test. */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import { Client, type ClientOptions } from "../../../shared/vfio-user/client.js";
import { Server, type ServerOptions } from "../../../shared/vfio-user/server.js";
import { FakeBackend } from "./fake-backend.js";
import { RawClient } from "./raw-client.js";

export class Fixture {
  readonly directory = mkdtempSync(join(tmpdir(), "vfio-user-"));
  readonly path = join(this.directory, "socket");
  readonly backend = new FakeBackend();
  readonly server: Server;
  private readonly raw: RawClient[] = [];
  private readonly clients: Client[] = [];

  constructor(t: ExecutionContext, options: Partial<ServerOptions> = {}) {
    this.server = new Server({ backend: this.backend, socket: this.path, ...options });
    this.server.open();
    t.teardown(() => this.close());
  }

  async connect(options: ClientOptions = {}): Promise<Client> {
    const client = await Client.connect(this.path, options);
    this.clients.push(client);
    return client;
  }

  /** Connected, no VERSION yet. */
  connectRaw(): RawClient {
    const raw = new RawClient(this.path);
    this.raw.push(raw);
    return raw;
  }

  async negotiatedRaw(): Promise<RawClient> {
    const raw = this.connectRaw();
    await raw.negotiate();
    return raw;
  }

  async close(): Promise<void> {
    for (const client of this.clients) client.close();
    for (const raw of this.raw) raw.close();
    await this.server.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Resolves when `condition` holds, looked at after each turn of the event loop. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** Open fds of this process. */
export function openFds(): number {
  return readdirSync("/proc/self/fd").length;
}
