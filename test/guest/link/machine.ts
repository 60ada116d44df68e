/**
 * A whole driver VM's view of a device for tests: a vfio-user client, memory, eventfds; and between them and the device
 * either link, whose difference a device is not to see.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import type { Device, PciCapabilities } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import type { Link } from "../../../guest/link/link.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import {
  addSeals,
  close,
  createMemory,
  eventfd,
  eventfdRead,
  F_SEAL_SHRINK,
  mapFile,
  POLL_READABLE,
  Poll,
  PROT_READ,
  PROT_WRITE,
} from "../../../native/index.js";
import { quietLog } from "../../../shared/log.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { Client, type ClientOptions } from "../../../shared/vfio-user/client/client.js";
import { Commands, CopyDevice, Registers } from "../../fakes/copy-device.js";
import { FrontEnd, type FrontEndOptions } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";

/** "isolated": over the virtio link with no driver-VM memory in the window, but copies made by the bridge. */
export type Kind = "local" | "virtio" | "isolated";

/** Memory as a VMM has it: a sealed memfd. */
export function memory(t: ExecutionContext, size: number) {
  const fd = createMemory("test", size, false);
  addSeals(fd, F_SEAL_SHRINK);
  t.teardown(() => close(fd));
  return { fd, bytes: new Uint8Array(mapFile(fd, 0, size, PROT_READ | PROT_WRITE)) };
}

/** An eventfd and a promise of its next signal. */
export function doorbell(t: ExecutionContext) {
  const fd = eventfd(0);
  let ring = () => {};
  const poll = new Poll(fd, () => {
    if (eventfdRead(fd) > 0) ring();
  });
  poll.start(POLL_READABLE);
  t.teardown(() => {
    poll.close();
    close(fd);
  });
  return {
    fd,
    next: () =>
      new Promise<void>((resolve) => {
        ring = resolve;
      }),
  };
}

interface Transport {
  readonly link: Link;
  /** Where the client connects. */
  readonly socket: string;
  /** Ends all of it. Resolves with what stock QEMU would have died of, or complained of. */
  close(): Promise<string[]>;
}

function localTransport(): Transport {
  const directory = mkdtempSync(join(tmpdir(), "vvu-"));
  const socket = join(directory, "device.sock");
  const link = new LocalLink({ socket, log: quietLog });
  return {
    link,
    socket,
    close: async () => {
      await link.close();
      rmSync(directory, { recursive: true });
      return [];
    },
  };
}

/** The real bridge, and a front-end in place of QEMU and of the device VM's kernel. */
async function virtioTransport(options: FrontEndOptions, isolated: boolean): Promise<Transport> {
  const bridge = await BridgeProcess.start();
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath, options);
  const link = await createVirtioLink(frontEnd, quietLog, isolated);
  return {
    link,
    socket: bridge.socketPath,
    close: async () => {
      await link.close();
      frontEnd.quit();
      await bridge.stop();
      return frontEnd.fatal === undefined ? frontEnd.complaints : [frontEnd.fatal];
    },
  };
}

export interface MachineOptions extends FrontEndOptions {
  readonly capabilities?: PciCapabilities;
  readonly quiesceDeadlineMs?: number;
  /** How long the client may be busy with something else. */
  readonly dmaAnswerMs?: number;
  readonly client?: ClientOptions;
  /** Over the virtio link without event indices, too. */
  readonly withFlags?: boolean;
}

/** A device on a link of that kind, and a client of it. */
export async function connectDevice<D extends Device>(kind: Kind, device: D, options: MachineOptions = {}) {
  const transport = kind === "local" ? localTransport() : await virtioTransport(options, kind === "isolated");
  const { link, socket, close: closeLink } = transport;
  const endpoint = new DeviceEndpoint(device, link, quietLog, options.quiesceDeadlineMs, options.dmaAnswerMs);
  await endpoint.start();
  await link.open(endpoint);
  const client = await Client.connect(socket, options.client);
  const endAll = async () => {
    client.close();
    const complaints = await closeLink();
    await endpoint.close();
    return complaints;
  };
  let ending: Promise<string[]> | undefined;
  const end = () => {
    ending ??= endAll();
    return ending;
  };
  return { kind, link, end, device, endpoint, client, socket };
}

function setUp(t: ExecutionContext, kind: Kind, options: MachineOptions = {}): Promise<Machine> {
  return setUpWith(t, kind, new CopyDevice(options.capabilities), options);
}

/** The same with a device of the test's own, which is like the copy device. */
export async function setUpWith<D extends Device>(
  t: ExecutionContext,
  kind: Kind,
  device: D,
  options: Omit<MachineOptions, "capabilities"> = {},
) {
  const connected = await connectDevice(kind, device, options);
  const { client } = connected;
  const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
  const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
  const write32 = (offset: number, value: number) => client.regionWrite(Region.BAR0, offset, u32(value));
  const read32 = async (offset: number) => Buffer.from(await client.regionRead(Region.BAR0, offset, 4)).readUInt32LE();
  const enable = () =>
    client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(CommandBits.MEMORY | CommandBits.BUS_MASTER));
  const doorbells = [doorbell(t), doorbell(t)];
  const bind = () => client.setIrqs({ index: Irq.MSIX, eventfds: doorbells.map(({ fd }) => fd) });
  /** Copies and resolves with the device's status, when it interrupted. */
  const copy = async (source: number, target: number, length: number, command: number = Commands.COPY) => {
    await client.regionWrite(Region.BAR0, Registers.SOURCE, u64(source));
    await client.regionWrite(Region.BAR0, Registers.TARGET, u64(target));
    await write32(Registers.LENGTH, length);
    const interrupt = Promise.race(doorbells.map(({ next }) => next()));
    await write32(Registers.COMMAND, command);
    await interrupt;
    return read32(Registers.STATUS);
  };
  return { ...connected, write32, read32, enable, bind, copy, doorbells };
}

export type Machine<D extends Device = CopyDevice> = Awaited<ReturnType<typeof setUpWith<D>>>;

type Run = (t: ExecutionContext, machine: Machine) => Promise<void>;

/** A test that runs over both links; one at a time, as each has a bridge of its own, and deadlines. */
export function both(title: string, run: Run, options: MachineOptions = {}): void {
  over(["local", "virtio"], title, run, options);
}

/** The same of a device that does not ask for the memory itself: the bridge may also copy for it. */
export function each(title: string, run: Run, options: MachineOptions = {}): void {
  over(["local", "virtio", "isolated"], title, run, options);
}

export function over(kinds: readonly Kind[], title: string, run: Run, options: MachineOptions = {}): void {
  const variants: [string, Kind, MachineOptions][] = kinds.map((kind) => [kind, kind, options]);
  if (options.withFlags) variants.push(["virtio, no event indices", "virtio", { ...options, eventIndex: false }]);
  for (const [name, kind, variant] of variants) {
    test.serial(`${name}: ${title}`, async (t) => {
      const machine = await setUp(t, kind, variant);
      try {
        await run(t, machine);
      } finally {
        t.deepEqual(await machine.end(), []);
      }
    });
  }
}
