/** A device's state moves from one server to another, of any kind, while its client goes on. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import test, { type ExecutionContext } from "ava";
import { createGpio } from "../../../guest/devices/gpio/index.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Feature, Irq, MigrationState, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { driver, interrupt } from "../devices/serve.js";
import { connectDevice } from "../link/machine.js";

const MAIN = fileURLToPath(new URL("../../../guest/main.js", import.meta.url));
const { STOP_COPY, RESUMING, RUNNING, PRE_COPY } = MigrationState;
const INPUT = 0x00;
const OUTPUT = 0x04;
const RISING = 0x08;
const EVENTS = 0x10;

/** A process that serves the device; resolves with a client of it. */
async function startProcess(t: ExecutionContext, ...device: string[]): Promise<Client> {
  const directory = mkdtempSync(join(tmpdir(), "moving-"));
  const socket = join(directory, "device.sock");
  const child = spawn(process.execPath, [MAIN, "run", ...device, "--socket-path", socket], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  t.teardown(() => {
    child.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  });
  let log = "";
  await new Promise<void>((resolve, reject) => {
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      log += text;
      if (log.includes("the device is ready")) resolve();
    });
    child.on("exit", () => reject(new Error(`the device ended:\n${log}`)));
  });
  const client = await Client.connect(socket);
  t.teardown(() => client.close());
  return client;
}

async function startHere(t: ExecutionContext, kind: "local" | "virtio"): Promise<Client> {
  const { client, end } = await connectDevice(kind, createGpio({ inputs: "reads" }));
  t.teardown(async () => {
    const complaints = await end();
    if (complaints.length > 0) throw new Error(complaints.join("\n"));
  });
  return client;
}

/** Uses the pins at one server, moves them, and finds them as they were at the other. */
async function move(t: ExecutionContext, from: Client, to: Client): Promise<void> {
  const [before, after] = [driver(from), driver(to)];
  await before.enable();
  await from.regionWrite(Region.CONFIG, Header.INTERRUPT_LINE, Uint8Array.of(0x2a));
  const first = interrupt(t);
  await from.setIrqs({ index: Irq.MSIX, eventfds: [first.fd] });
  await before.write(OUTPUT, 0x1234);
  for (let n = 0; n < 5; n++) await before.read(INPUT);
  await before.write(RISING, 0b0111);
  await from.migration.setState(PRE_COPY);
  t.is(await before.read(INPUT), 5);
  t.is(await first.next(), 1);
  const early = await from.migration.readAll(100);
  await from.migration.setState(STOP_COPY);
  const rest = await from.migration.readAll(100);

  const second = interrupt(t);
  await to.setIrqs({ index: Irq.MSIX, eventfds: [second.fd] });
  await to.migration.setState(RESUMING);
  await to.migration.writeAll(Buffer.concat([early, rest]), 777);
  await to.migration.setState(RUNNING);
  from.close();
  t.deepEqual(await Promise.all([OUTPUT, RISING, EVENTS].map(after.read)), [0x1234, 0b0111, 0b0010]);
  const command = (await to.regionRead(Region.CONFIG, Header.COMMAND, 1))[0];
  t.is(command, CommandBits.MEMORY | CommandBits.BUS_MASTER);
  t.is((await to.regionRead(Region.CONFIG, Header.INTERRUPT_LINE, 1))[0], 0x2a);
  t.is(second.count(), 0, "what was signalled there is not signalled here again");
  t.is(await after.read(INPUT), 6, "it counts on");
  t.is(await second.next(), 1);
  t.is(await after.read(EVENTS), 0b0011);
  await to.reset();
  t.is(await after.read(OUTPUT), 0);
}

test.serial("from one process to another", async (t) => {
  const [from, to] = await Promise.all([0, 1].map(() => startProcess(t, "gpio", "--inputs", "reads")));
  await move(t, from, to);
});

test.serial("from a device on a socket to one behind a bridge", async (t) => {
  await move(t, await startHere(t, "local"), await startHere(t, "virtio"));
});

test.serial("from a device behind a bridge to one behind another", async (t) => {
  await move(t, await startHere(t, "virtio"), await startHere(t, "virtio"));
});

test.serial("an interrupt that nobody could take goes along", async (t) => {
  const [from, to] = [await startHere(t, "local"), await startHere(t, "local")];
  const [before, irq] = [driver(from), interrupt(t)];
  // MSI-X is enabled, as QEMU does it, with no eventfd for the vector yet.
  await from.setIrqs({ index: Irq.MSIX, start: 0, bools: [false] });
  await before.write(RISING, 1);
  await before.read(INPUT);
  t.is(await before.read(EVENTS), 1);
  await from.migration.setState(STOP_COPY);
  const stream = await from.migration.readAll();
  await to.migration.setState(RESUMING);
  await to.migration.writeAll(stream);
  await to.migration.setState(RUNNING);
  t.is(irq.count(), 0);
  await to.setIrqs({ index: Irq.MSIX, eventfds: [irq.fd] });
  t.is(await irq.next(), 1);
});

test.serial("a device that does not say how it is moved: no such feature, and its writes can be logged", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "moving-"));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const file = join(directory, "disk.img");
  writeFileSync(file, new Uint8Array(1 << 20));
  const client = await startProcess(t, "nvme", "--file", file);
  const { migration } = client;
  t.false(await migration.probe(Feature.MIGRATION));
  t.false(await migration.probe(Feature.MIG_DEVICE_STATE, "get"));
  for (const refused of [
    migration.flags(),
    migration.getState(),
    migration.setState(STOP_COPY),
    client.migDataRead(16),
    client.migDataWrite(Uint8Array.of(1)),
  ]) {
    await t.throwsAsync(refused, { name: "ProtocolError" });
  }
  t.true(await migration.probe(Feature.DMA_LOGGING_START, "set"));
  t.is(await migration.startLogging(4096), 4096);
  t.deepEqual(await migration.report(0, 1 << 20, 4096), new Uint8Array(32));
});
