/**
 * A machine with a controller over a storage in memory, and the driver on it: machine (a driver VM in miniature) and
 * storage (in memory, with faults). Other tests have loop (block devices), on-socket (a device on a vfio-user socket),
 * and random (by a seed).
 */
import type { ExecutionContext } from "ava";
import { type ControllerChoices, createController, type NamedStorage } from "../../../../guest/devices/nvme/index.js";
import { openMemory } from "../../../../guest/devices/nvme/storage/open-storage.js";
import type { DirectAccess } from "../../../../guest/devices/nvme/storage/storage.js";
import { NvmeDriver, type NvmeDriverOptions } from "../../../../scripts/drivers/nvme.js";
import { type CompletionFields, QueuePair } from "../../../../scripts/drivers/nvme-queue.js";
import { type Log, quietLog } from "../../../../shared/log.js";
import { FakeStorage } from "./fake-storage.js";
import { Machine, MEMORY_ADDRESS } from "./machine.js";

const [CC, CSTS, AQA, ASQ, ACQ] = [0x14, 0x1c, 0x24, 0x28, 0x30];

export interface Setup {
  readonly machine: Machine;
  /** Of namespace 1. */
  readonly storage: FakeStorage;
  /** Of all namespaces. */
  readonly storages: readonly FakeStorage[];
}

export interface SetupOptions extends Partial<ControllerChoices> {
  /** Bytes of the disk. */
  readonly size?: number;
  /** Bytes of the disks of further namespaces. */
  readonly moreSizes?: readonly number[];
  /** How the bytes of the first disk can be had at once. */
  readonly direct?: DirectAccess;
  /** Where the device logs to. */
  readonly log?: Log;
}

/** Threads do not keep the process from ending, as a device's socket does: until the test ends this does. */
function stayAlive(t: ExecutionContext): void {
  const timer = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(timer));
}

/** A controller as after power-on. It is stopped when the test ends. */
export async function powerOn(t: ExecutionContext, options: SetupOptions = {}): Promise<Setup> {
  const storages = [options.size ?? 1024 * 1024, ...(options.moreSizes ?? [])].map((size) => new FakeStorage(size));
  storages[0].direct = options.direct;
  const named = storages.map((storage) => ({ name: "a disk", storage }));
  const device = createController(named, { serial: "S1", lanes: 0, ...options });
  stayAlive(t);
  const machine = await Machine.start(device, undefined, options.log);
  t.teardown(async () => {
    for (const storage of storages) storage.release();
    await machine.stop();
  });
  return { machine, storage: storages[0], storages };
}

/** A disk that is memory of the process's own, which the controller copies from and to by itself. */
export async function memoryDisk(
  t: ExecutionContext,
  options: Partial<ControllerChoices> &
    NvmeDriverOptions & {
      readonly size?: number;
      readonly mapped?: boolean;
      /** Whether lanes reach the driver VM's memory; if not, all queues are TypeScript's. */
      readonly inLanes?: boolean;
    } = {},
): Promise<{ readonly machine: Machine; readonly driver: NvmeDriver }> {
  const { size = 1024 * 1024, mapped = false, inLanes = true, ...rest } = options;
  const disk: NamedStorage = { name: "a disk", storage: openMemory(size) };
  const { queues, ...choices } = rest;
  stayAlive(t);
  const machine = await Machine.start(
    createController([disk], { serial: "S1", lanes: 0, ...choices }),
    undefined,
    quietLog,
    inLanes,
  );
  t.teardown(() => machine.stop());
  if (mapped) machine.doorbells = machine.shared?.words;
  return { machine, driver: await NvmeDriver.open(machine, { queues: queues ?? 1, ...rest }) };
}

/** The same with the driver up. */
export async function bringUp(
  t: ExecutionContext,
  options: SetupOptions & NvmeDriverOptions & { readonly controllerQueues?: number } = {},
): Promise<Setup & { readonly driver: NvmeDriver }> {
  const { queues, controllerQueues, ...rest } = options;
  const setup = await powerOn(t, controllerQueues === undefined ? rest : { ...rest, queues: controllerQueues });
  return { ...setup, driver: await NvmeDriver.open(setup.machine, { queues: queues ?? 1, ...rest }) };
}

/**
 * A place in the upper half of the memory, which the driver's queues do not reach; use it without the driver's read and
 * write.
 */
export function scratch(machine: Machine, page = 0): { readonly address: number; readonly offset: number } {
  const offset = machine.memory.bytes.length / 2 + page * 4096;
  return { address: MEMORY_ADDRESS + offset, offset };
}

/** Lets everything happen that is about to, without time passing: a few turns of the event loop. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** A controller reset, to its end. */
export async function disable(machine: Machine): Promise<void> {
  machine.write(CC, 0);
  while (machine.read(CSTS) !== 0) await settle();
}

/** Enables the controller with admin queues of 16 entries at a place of their own. */
export function enable(machine: Machine, stride?: number): QueuePair {
  const [submission, completion] = [scratch(machine, 4), scratch(machine, 5)];
  machine.write(AQA, 0x000f_000f);
  for (const [register, { address }] of [
    [ASQ, submission],
    [ACQ, completion],
  ] as const) {
    machine.write(register, address % 2 ** 32);
    machine.write(register + 4, Math.floor(address / 2 ** 32));
  }
  machine.write(CC, 0x0046_0001);
  return new QueuePair(machine, 0, 16, submission.offset, completion.offset, 0, stride);
}

/** Sends a Keep Alive, the least of all commands, through admin queues that have no driver. */
export async function keepAlive(machine: Machine, admin: QueuePair): Promise<CompletionFields> {
  const sent = admin.submit({ opcode: 0x18 });
  await machine.interrupts.wait(0);
  await admin.reap();
  return sent;
}

/** Commands that have ended, in a completion queue in its first round. */
export function completed(machine: Machine, completion: number): number {
  let count = 0;
  while (machine.memory.data.getUint16(completion + count * 16 + 14, true) & 1) count++;
  return count;
}

export async function untilCompleted(machine: Machine, completion: number, count: number): Promise<void> {
  while (completed(machine, completion) < count) await settle();
}
