/**
 * The real bridge in a process of its own, with two sessions: the first is attacked, the second has a device VM and a
 * client that have to be served all the time.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { close, eventfd, eventfdRead } from "../../native/index.js";
import { Irq, Region } from "../../shared/spec/vfio-user.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../fakes/front-end.js";
import { TestDevice } from "../fakes/front-end-device.js";
import { tellsBug } from "./target.js";
import type { Trace } from "./trace.js";

const MAIN = fileURLToPath(new URL("../../host/bridge/main.js", import.meta.url));
const LOG_TAIL = 8 * 1024;
const PATIENCE_MS = 10_000;
const SETTLE_MS = 200;
/** Rounds between two looks at whether the attacked session serves honest peers. */
const FULL_PROBE_INTERVAL = 4;

/** @throws when `work` takes too long */
export async function inTime<T>(what: string, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing in ${PATIENCE_MS} ms`)), PATIENCE_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

export class FuzzedBridge {
  readonly directory = mkdtempSync(join(tmpdir(), "fuzz-"));
  readonly #process: ChildProcess;
  readonly #doorbell = eventfd(0);
  #log = "";
  #bug: string | undefined;
  #idleFds = 0;
  #probes = 0;
  #healthy: { frontEnd: FrontEnd; device: TestDevice; client: Client } | undefined;

  private constructor(trace: Trace) {
    const pairs = [0, 1].flatMap((n) => [
      ...["--socket-path", this.path("vfio-user", n)],
      ...["--vhost-user-socket-path", this.path("vhost-user", n)],
    ]);
    this.#process = spawn(
      process.execPath,
      ["--unhandled-rejections=throw", MAIN, ...pairs, "--window-size", "64M", "--log-level", "info"],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    trace.process = this.#process.pid ?? 0;
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#log = (this.#log + text).slice(-LOG_TAIL);
      if (tellsBug(text)) this.#bug ??= text;
    });
  }

  static async start(trace: Trace): Promise<FuzzedBridge> {
    const bridge = new FuzzedBridge(trace);
    // The last socket that it makes.
    while (!existsSync(bridge.path("vfio-user", 1))) {
      bridge.check();
      await delay(10);
    }
    const frontEnd = new FrontEnd(bridge.path("vhost-user", 1));
    const device = new TestDevice(frontEnd);
    await device.startAndGreet();
    const client = await Client.connect(bridge.path("vfio-user", 1));
    bridge.#healthy = { frontEnd, device, client };
    await bridge.#probeHealthy();
    // What is opened at first use, such as the relay, is there then.
    await bridge.#probeAttacked();
    await delay(SETTLE_MS);
    bridge.#idleFds = bridge.fds();
    return bridge;
  }

  path(kind: "vfio-user" | "vhost-user", session: number): string {
    return join(this.directory, `${kind}-${session}.sock`);
  }

  /** @throws when the process ended, or logged a bug of its own */
  check(): void {
    const { exitCode, signalCode } = this.#process;
    assert.ok(exitCode === null && signalCode === null, `the bridge ended: ${signalCode ?? exitCode}\n${this.#log}`);
    assert.equal(this.#bug, undefined, `the bridge logged a bug:\n${this.#bug}`);
  }

  fds(): number {
    return readdirSync(`/proc/${this.#process.pid}/fd`).length;
  }

  /** Bytes of its own memory. */
  memory(): number {
    const status = readFileSync(`/proc/${this.#process.pid}/status`, "utf8");
    return Number(/^RssAnon:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
  }

  /** Waits until nobody is connected to the attacked session any more. */
  async idle(): Promise<void> {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
      this.check();
      const fds = this.fds();
      if (fds <= this.#idleFds) return;
      if (Date.now() > end) throw new Error(`the bridge has ${fds} fds, ${this.#idleFds} when idle\n${this.#log}`);
      await delay(2);
    }
  }

  /** The other session goes on; and now and then: the attacked one serves honest peers. */
  async probe(): Promise<void> {
    await this.idle();
    await this.#probeHealthy();
    if (this.#probes++ % FULL_PROBE_INTERVAL === 0) {
      await this.#probeAttacked();
      await this.idle();
    }
  }

  async stop(): Promise<void> {
    this.#healthy?.client.close();
    this.#healthy?.frontEnd.quit();
    const exit = once(this.#process, "exit");
    this.#process.kill("SIGTERM");
    await exit;
    assert.equal(this.#process.exitCode, 0, `the bridge did not end well\n${this.#log}`);
    close(this.#doorbell);
    rmSync(this.directory, { recursive: true, force: true });
  }

  async #probeHealthy(): Promise<void> {
    assert.ok(this.#healthy);
    const { frontEnd, device, client } = this.#healthy;
    device.received.length = 0;
    frontEnd.sent.length = 0;
    device.bar[0] = (device.bar[0] + 1) & 0xff;
    const read = await inTime("a read in the other session", client.regionRead(Region.BAR0, 0, 1));
    assert.equal(read[0], device.bar[0], "the other session's device answers");
    assert.equal(frontEnd.fatal, undefined, "the other session's QEMU");
  }

  async #probeAttacked(): Promise<void> {
    const frontEnd = new FrontEnd(this.path("vhost-user", 0));
    const device = new TestDevice(frontEnd);
    await inTime("HELLO", device.startAndGreet());
    const client = await inTime("VERSION", Client.connect(this.path("vfio-user", 0)));
    device.bar[5] = 0x77;
    assert.equal((await client.regionRead(Region.BAR0, 5, 1))[0], 0x77);
    await client.regionWrite(Region.BAR0, 6, Uint8Array.of(0x88));
    await client.regionRead(Region.BAR0, 5, 1);
    assert.equal(device.bar[6], 0x88);
    await client.setIrqs({ index: Irq.MSIX, eventfds: [this.#doorbell] });
    device.ring(0);
    // The relay's thread may take its time.
    const rung = async () => {
      while (eventfdRead(this.#doorbell) === 0) await delay(1);
    };
    await inTime("an interrupt", rung());
    client.close();
    await client.closed;
    assert.equal(frontEnd.fatal, undefined);
    frontEnd.quit();
  }
}
