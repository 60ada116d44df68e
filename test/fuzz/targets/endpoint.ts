/**
 * The device's endpoint, called as a link calls it but with bodies that no link has checked; "pci-config" is the same
 * with nothing but accesses to config space. The probe resets the function and looks whether config space is what it
 * was.
 */
import assert from "node:assert/strict";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import type { IrqChange, Link } from "../../../guest/link/link.js";
import { PeerGone, ProtocolError } from "../../../shared/errors.js";
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DeviceInfo,
  Feature,
  FeatureMigDeviceState,
  Header,
  Irq,
  IrqSetFlags,
  MigData,
  MigrationState,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
} from "../../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../../shared/vfio-user/backend.js";
import type { Choices } from "../choices.js";
import { FuzzDevice } from "../device.js";
import { FdPool } from "../fds.js";
import { bend, oddNumber, spoil } from "../mutate.js";
import { turn } from "../peer.js";
import { CANARY, type Context, checkCanary, type Instance, type Target } from "../target.js";
import { hostileCommand } from "../vfio-user-messages.js";

const WINDOW = 0x10_0000;
/** What maps may be of; in front of it and behind it are canaries. */
const MAPPED = { from: 0x4_0000, to: 0x8_0000 };
const GUARD = 32;
const MAX_ERRNO = 4095;

/** A command whose reply has to keep to what was reserved, and to come once. */
class Pending implements PendingCommand {
  readonly position = -1;
  readonly isAgain = false;
  readonly data: DataView;
  readonly length: number;
  replyBytes: Uint8Array<ArrayBuffer> = new Uint8Array(2 * GUARD).fill(CANARY);
  replyData = new DataView(this.replyBytes.buffer);
  readonly replyOffset = GUARD;
  answered: "reply" | "error" | undefined;
  body: Uint8Array = new Uint8Array(0);
  #reserved = 0;

  constructor(
    readonly command: number,
    readonly bytes: Uint8Array,
    readonly offset: number,
  ) {
    this.data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.length = bytes.length - offset;
  }

  get active(): boolean {
    return this.answered === undefined;
  }

  reserve(length: number): void {
    assert.equal(this.answered, undefined, "reserve after the answer");
    this.#reserved = length;
    this.replyBytes = new Uint8Array(length + 2 * GUARD).fill(CANARY);
    this.replyData = new DataView(this.replyBytes.buffer);
  }

  reply(length: number): void {
    assert.equal(this.answered, undefined, "a second answer");
    assert.ok(length <= this.#reserved, `a reply of ${length} bytes, ${this.#reserved} were reserved`);
    checkCanary(this.replyBytes, 0, GUARD, "what is in front of the reply");
    checkCanary(this.replyBytes, GUARD + this.#reserved, this.replyBytes.length, "what is behind the reply");
    this.answered = "reply";
    this.body = this.replyBytes.subarray(GUARD, GUARD + length);
  }

  fail(errno: number): void {
    assert.equal(this.answered, undefined, "a second answer");
    assert.ok(Number.isInteger(errno) && errno > 0 && errno <= MAX_ERRNO, `errno ${errno}`);
    this.answered = "error";
  }
}

function fakeLink(random: () => Choices): { link: Link; window: Uint8Array } {
  const window = new Uint8Array(WINDOW).fill(CANARY);
  const memory = async (bytes: Uint8Array, isRead: boolean) => {
    await turn();
    if (random().chance(20)) throw new ProtocolError("refused");
    if (random().chance(10)) throw new PeerGone("gone");
    if (isRead) random().fill(bytes);
  };
  const link: Link = {
    window: { size: WINDOW, pieceSize: WINDOW, piece: () => window.buffer },
    doorbellsRung: 0,
    allocateMemory: async (_region, areas) => ({
      descriptor: 1,
      areas: areas.map(({ size }) => new Uint8Array(size)),
    }),
    allocateEvents: async (_region, count) => ({ descriptors: Array.from({ length: count }, (_, n) => 2 + n) }),
    shareRegisters: async (size) => new Uint8Array(size),
    open: async () => {},
    trigger: (index, vector) => assert.ok(index < 5 && vector < 2048),
    readMemory: (_address, target) => memory(target, true),
    writeMemory: (_address, source) => memory(source, false),
    abandonMessages: () => {},
    allocate: (length) => new Uint8Array(length),
    closed: new Promise(() => {}),
    close: async () => {},
  };
  return { link, window };
}

function isRefusal(error: unknown): void {
  if (!(error instanceof ProtocolError)) throw error;
}

function configAccess(random: Choices, id: number): Uint8Array {
  const count = random.weighted([
    [8, random.pick([1, 2, 4])],
    [1, random.below(300)],
  ]);
  const data = random.chance(40) ? new Uint8Array(count).fill(0xff) : random.bytes(count);
  const isRead = random.chance(30);
  const body = new Uint8Array(RegionAccess.size + (isRead ? 0 : count));
  // Mostly the header and the capabilities, then the extended ones.
  const offset = random.below(random.chance(60) ? 0x100 : 0x1000);
  body.set(RegionAccess.encode({ offset, region: Region.CONFIG, count }));
  if (!isRead) body.set(data, RegionAccess.size);
  if (random.chance(10)) spoil(random, body, RegionAccess);
  const command = isRead ? Command.REGION_READ : Command.REGION_WRITE;
  const message = new Uint8Array(Header.size + body.length);
  message.set(Header.encode({ id, command, size: message.length }));
  message.set(body, Header.size);
  return message;
}

function irqChange(random: Choices, counts: readonly number[]): IrqChange {
  const index = random.pick([Irq.INTX, Irq.MSI, Irq.MSIX]);
  const start = random.below(Math.max(1, counts[index]));
  const count = counts[index] === 0 ? 0 : random.between(0, counts[index] - start);
  const data = random.pick([IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD, 0, 7]);
  const action = random.pick([IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK, IrqSetFlags.ACTION_TRIGGER, 0, 0x38]);
  const change = { flags: data | action, index, start, count };
  if (data === IrqSetFlags.DATA_BOOL) return { ...change, bools: random.bytes(count).map((byte) => byte & 1) };
  if (data === IrqSetFlags.DATA_EVENTFD) {
    return { ...change, bound: Array.from({ length: count }, () => random.chance(70)) };
  }
  return change;
}

export function endpointTarget(only: "all" | "config"): Target {
  return async ({ trace, log }: Context): Promise<Instance> => {
    let random: Choices;
    const { link, window } = fakeLink(() => random);
    const endpoint = new DeviceEndpoint(new FuzzDevice(), link, log);
    await endpoint.start();
    await endpoint.connected(0x10000, 2);
    const fds = new FdPool();
    const config = () => read(Region.CONFIG, 0, 4096);

    function handle(command: Pending): Pending {
      endpoint.handle(command);
      return command;
    }

    function read(region: number, offset: number, count: number): Uint8Array {
      const body = RegionAccess.encode({ offset, region, count });
      const command = handle(new Pending(Command.REGION_READ, body, 0));
      assert.equal(command.answered, "reply");
      return command.body.slice(RegionAccess.size);
    }

    async function reset(): Promise<void> {
      const command = handle(new Pending(Command.DEVICE_RESET, new Uint8Array(0), 0));
      while (command.answered === undefined) await turn();
      assert.equal(command.answered, "reply");
    }

    async function ask(command: number, ...body: Uint8Array[]): Promise<Pending> {
      const pending = handle(new Pending(command, Buffer.concat(body), 0));
      while (pending.answered === undefined) await turn();
      return pending;
    }

    function setState(deviceState: number): Promise<Pending> {
      const flags = DeviceFeatureFlags.SET | Feature.MIG_DEVICE_STATE;
      const fixed = DeviceFeature.encode({ argsz: DeviceFeature.size + FeatureMigDeviceState.size, flags });
      return ask(Command.DEVICE_FEATURE, fixed, FeatureMigDeviceState.encode({ deviceState }));
    }

    /** The device's own state, bent mostly, is loaded into it. Now and then it is left where it is then. */
    async function moveState(): Promise<void> {
      if (random.chance(30)) await setState(MigrationState.PRE_COPY);
      await setState(MigrationState.STOP_COPY);
      const parts: Uint8Array[] = [];
      const size = random.pick([1000, 5000, 0x10000]);
      for (let last = size; last === size; last = parts.at(-1)?.length ?? 0) {
        const reply = await ask(Command.MIG_DATA_READ, MigData.encode({ argsz: MigData.size + size, size }));
        parts.push(reply.body.subarray(MigData.size));
      }
      let stream: Uint8Array = Buffer.concat(parts);
      for (let n = random.pick([0, 1, 1, 4]); n > 0 && stream.length > 0; n--) stream = bendStream(stream);
      trace.note("move", `${stream.length} bytes`);
      await setState(MigrationState.RESUMING);
      for (let at = 0; at < stream.length; at += size) {
        const data = stream.subarray(at, at + size);
        const argsz = MigData.size + data.length;
        await ask(Command.MIG_DATA_WRITE, MigData.encode({ argsz, size: data.length }), data);
      }
      await setState(random.pick([MigrationState.RUNNING, MigrationState.RUNNING, MigrationState.STOP]));
      if (random.chance(80)) await reset();
    }

    /** Mostly in the header and the sections' headers, which lie in front of their data. */
    function bendStream(stream: Uint8Array): Uint8Array {
      const at = random.chance(30) ? 4 * random.below(10) : random.below(stream.length);
      if (random.chance(20)) return stream.slice(0, at);
      const changed = stream.slice();
      const room = Math.min(4, stream.length - at);
      const value = oddNumber(random, 4);
      for (let n = 0; n < room; n++) changed[at + n] = value >>> (8 * n);
      return changed;
    }

    async function step(): Promise<Pending | undefined> {
      const kind = only === "config" ? 0 : random.below(20);
      if (kind === 16) {
        await moveState();
        return undefined;
      }
      if (kind === 17) {
        const windowed = random.chance(70);
        const size = 4096 * random.between(1, 8);
        const windowOffset = windowed
          ? MAPPED.from + 4096 * random.below((MAPPED.to - MAPPED.from - size) / 4096 + 1)
          : -1;
        const address = random.chance(80) ? 0x1_0000 * random.below(64) : oddNumber(random, 8);
        const map = { address, size: random.chance(90) ? size : oddNumber(random, 8), readable: true, writable: true };
        if (windowed && map.size > size) map.size = size;
        trace.note("map", JSON.stringify({ ...map, windowOffset }));
        const isCopied = !windowed && random.chance(50);
        try {
          endpoint.map({ ...map, readable: random.chance(90), writable: random.chance(90), windowOffset, isCopied });
        } catch (error) {
          isRefusal(error);
        }
        return undefined;
      }
      if (kind === 18) {
        trace.note("unmap");
        await (async () => endpoint.unmap(0x1_0000 * random.below(64), 4096 * random.between(1, 8)))().catch(isRefusal);
        return undefined;
      }
      if (kind === 19) {
        const change = irqChange(random, endpoint.summary.irqCounts);
        trace.note("irqs", JSON.stringify(change));
        try {
          endpoint.setIrqs(change);
        } catch (error) {
          isRefusal(error);
        }
        return undefined;
      }
      const id = random.below(100);
      let message = only === "config" ? configAccess(random, id) : hostileCommand(random, id, fds).bytes;
      if (message.length < Header.size) return undefined;
      if (random.chance(5))
        message = Buffer.concat([message.subarray(0, Header.size), bend(random, message.subarray(Header.size))]);
      trace.note("command", message);
      const { command } = Header.view(new DataView(message.buffer, message.byteOffset, message.length));
      return handle(new Pending(command, message, Header.size));
    }

    await reset();
    const pristine = config();
    return {
      async round(choices) {
        random = choices;
        const pending: Pending[] = [];
        for (let n = random.pick([4, 40, 200]); n > 0; n--) {
          const command = await step();
          if (command) pending.push(command);
        }
        while (pending.some((command) => command.answered === undefined)) await turn();
        const now = config();
        for (const range of [
          [0, 4],
          [8, 0x0c],
          [0x2c, 0x30],
          [0x34, 0x3c],
        ]) {
          assert.deepEqual(
            now.subarray(...range),
            pristine.subarray(...range),
            `config bytes from ${range[0]} on are read-only`,
          );
        }
        await endpoint.disconnected();
        await endpoint.connected(0x10000, 2);
        fds.endRound();
        checkCanary(window, 0, MAPPED.from, "the window in front of what is mapped");
        checkCanary(window, MAPPED.to, WINDOW, "the window behind what is mapped");
      },
      async probe() {
        await reset();
        assert.deepEqual(config(), pristine, "config space after a reset");
        const info = handle(new Pending(Command.DEVICE_GET_INFO, DeviceInfo.encode({ argsz: 16 }), 0));
        assert.equal(info.answered, "reply");
        assert.equal(DeviceInfo.view(new DataView(info.body.slice().buffer)).numRegions, NUM_PCI_REGIONS + 3);
      },
      async close() {
        await endpoint.close();
        fds.close();
      },
    };
  };
}
