/** A server on a socket of its own with a fake backend, all taken away at the end of the test. */
import { fstatSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import { Client, type ClientOptions } from "../../../shared/vfio-user/client/client.js";
import { Server, type ServerOptions } from "../../../shared/vfio-user/server.js";
import { FakeBackend } from "./fake-backend.js";
import { RawClient } from "./raw-client.js";

export class Fixture {
  readonly directory = mkdtempSync(join(tmpdir(), "vfio-user-"));
  readonly path = join(this.directory, "socket");
  readonly backend = new FakeBackend();
  readonly server: Server;
  readonly #raw: RawClient[] = [];
  readonly #clients: Client[] = [];

  constructor(t: ExecutionContext, options: Partial<ServerOptions> = {}) {
    this.server = new Server({ backend: this.backend, socket: this.path, ...options });
    this.server.open();
    t.teardown(() => this.close());
  }

  async connect(options: ClientOptions = {}): Promise<Client> {
    const client = await Client.connect(this.path, options);
    this.#clients.push(client);
    return client;
  }

  /** Connected, no VERSION yet. */
  connectRaw(): RawClient {
    const raw = new RawClient(this.path);
    this.#raw.push(raw);
    return raw;
  }

  async negotiatedRaw(): Promise<RawClient> {
    const raw = this.connectRaw();
    await raw.negotiate();
    return raw;
  }

  async close(): Promise<void> {
    for (const client of this.#clients) client.close();
    for (const raw of this.#raw) raw.close();
    await this.server.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Resolves when `condition` holds, looked at after each turn of the event loop. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** What tells an open memfd, socket or eventfd from all others; undefined for what may be open elsewhere as well. */
function identity(fd: number): string | undefined {
  const target = readlinkSync(`/proc/self/fd/${fd}`);
  if (target === "anon_inode:[eventfd]") {
    return /eventfd-id:.*/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[0];
  }
  return /^(\/memfd:|socket:)/.test(target) ? `inode ${fstatSync(fd).ino}` : undefined;
}

/** How many fds of this process are the same memfd, socket or eventfd as `fd`; 1 when nobody kept one. */
export function copies(fd: number): number {
  const wanted = identity(fd);
  if (wanted === undefined) return 1;
  let count = 0;
  for (const name of readdirSync("/proc/self/fd")) {
    try {
      if (identity(Number(name)) === wanted) count++;
    } catch {
      // Closed meanwhile, the directory's own fd at least.
    }
  }
  return count;
}
