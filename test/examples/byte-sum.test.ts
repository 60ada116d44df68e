/**
 * The README's example: what is printed there is this file, and it does what is said of it, run by the program as a
 * user would.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { MiB } from "../../shared/limits.js";
import { Irq } from "../../shared/spec/vfio-user.js";
import { Client } from "../../shared/vfio-user/client/client.js";
import { driver, interrupt } from "../guest/devices/serve.js";
import { memory } from "../guest/link/machine.js";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const MAX_LINES = 60;
const BASE = 0x2_0000_0000;
const [ADDRESS_LOW, ADDRESS_HIGH, LENGTH, START, SUM] = [0, 4, 8, 12, 16];

test("the README's code is the file's, and short", (t) => {
  const source = readFileSync(join(ROOT, "test/examples/byte-sum.ts"), "utf8");
  const blocks = [...readFileSync(join(ROOT, "README.md"), "utf8").matchAll(/^```ts\n(.*?)^```$/gms)];
  t.deepEqual(
    blocks.map(([, code]) => code),
    [source],
  );
  t.true(source.split("\n").length - 1 <= MAX_LINES);
});

/** `vfio-user-device run`, and a client with memory and the interrupt bound. */
async function setUp(t: ExecutionContext) {
  const directory = mkdtempSync(join(tmpdir(), "byte-sum-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const socket = join(directory, "sum.sock");
  const device = join(ROOT, "build/test/examples/byte-sum.js");
  const args = [join(ROOT, "build/guest/main.js"), "run", device, "--socket-path", socket];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  t.teardown(() => child.kill("SIGKILL"));
  const reader = createInterface({ input: child.stderr });
  const lines = reader[Symbol.asyncIterator]();
  /** The next line of the log that says so. */
  const logged = async (message: string): Promise<Record<string, unknown>> => {
    for (;;) {
      const { value, done } = await lines.next();
      if (done) throw new Error(`it ended without saying "${message}"`);
      const line = JSON.parse(value);
      if (line.msg === message) return line;
    }
  };
  await logged("the device is ready");
  const client = await Client.connect(socket);
  t.teardown(() => client.close());
  const { fd, bytes } = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  const done = interrupt(t);
  await client.setIrqs({ index: Irq.MSIX, eventfds: [done.fd] });
  return { child, client, bytes, done, logged, ...driver(client) };
}

test("it sums driver-VM memory by DMA, and interrupts", async (t) => {
  const { child, bytes, done, read, write, enable } = await setUp(t);
  await enable();
  for (let n = 0; n < 1000; n++) bytes[0x123 + n] = n;
  await write(ADDRESS_LOW, 0x123);
  await write(ADDRESS_HIGH, BASE / 2 ** 32);
  await write(LENGTH, 1000);
  await write(START, 1);
  t.is(await done.next(), 1);
  t.is(
    await read(SUM),
    bytes.subarray(0x123, 0x123 + 1000).reduce((sum, byte) => sum + byte, 0),
  );
  await write(LENGTH, 0xffff_ffff);
  t.is(await read(LENGTH), MiB);
  child.kill("SIGTERM");
  t.deepEqual(await once(child, "exit"), [0, null]);
});

test("an address that is not mapped is told to the log, no interrupt comes, and it goes on", async (t) => {
  const { bytes, done, logged, read, write, enable } = await setUp(t);
  await enable();
  await write(ADDRESS_LOW, 0x1000);
  await write(LENGTH, 4);
  await write(START, 1);
  t.is((await logged("the driver VM gave an address that the device cannot reach")).level, 40);
  t.is(done.count(), 0);
  bytes.set([1, 2, 3, 4], 0x1000);
  await write(ADDRESS_HIGH, BASE / 2 ** 32);
  await write(START, 1);
  await done.next();
  t.is(await read(SUM), 10);
});

test("SIGUSR1 shows its registers by name, its interrupts and its maps", async (t) => {
  const { child, logged, write } = await setUp(t);
  await write(LENGTH, 77);
  child.kill("SIGUSR1");
  const { state } = await logged("state");
  t.like(state, {
    registers: { 0: { ADDRESS_LOW: "0x0", LENGTH: "0x4d", SUM: "0x0" } },
    interrupts: { msix: true, bound: [[], [], [0], [], []] },
    dma: { busMaster: false, maps: [{ address: "0x200000000", size: MiB }] },
    config: { vendorId: "0xfff4" },
  });
});
