/** A backend that answers everything at once, remembers what it was asked, and can be told to behave otherwise. */
import { closeSync } from "node:fs";
import { Errno } from "../../../shared/errors.js";
import { Command, RegionAccess, WriteMulti } from "../../../shared/spec/vfio-user.js";
import type {
  Backend,
  ClientMemory,
  ClientVersion,
  DeviceSummary,
  IrqSetRequest,
  MemoryMap,
  PendingCommand,
  UnmapRequest,
} from "../../../shared/vfio-user/backend.js";

export class FakeBackend implements Backend {
  device: DeviceSummary | undefined = {
    regionSizes: [0x2000, 0, 0, 0, 0, 0, 0, 4096, 0],
    postedRegions: 0,
    irqCounts: [1, 0, 300, 1, 1],
  };
  /** What is known while `device` is undefined. */
  awayIrqCounts: readonly number[] | undefined;
  memory: ClientMemory | undefined;
  version: ClientVersion | undefined;
  connects = 0;
  disconnects = 0;
  readonly maps: MemoryMap[] = [];
  readonly irqs: IrqSetRequest[] = [];
  /** Commands handled, with copies of their bodies. */
  readonly commands: { command: number; body: Uint8Array }[] = [];
  /** What is done in place of the usual; undefined for the usual. */
  onConnect: (() => Promise<void>) | undefined;
  onDisconnect: (() => Promise<void>) | undefined;
  onMap: ((map: MemoryMap) => Promise<void>) | undefined;
  onUnmap: ((request: UnmapRequest) => Promise<void>) | undefined;
  onIrqs: ((request: IrqSetRequest) => Promise<void>) | undefined;
  onCommand: ((command: PendingCommand) => void) | undefined;

  get irqCounts(): readonly number[] | undefined {
    return this.device?.irqCounts ?? this.awayIrqCounts;
  }

  async connect(version: ClientVersion, memory: ClientMemory): Promise<void> {
    this.connects++;
    this.version = version;
    this.memory = memory;
    await this.onConnect?.();
  }

  async disconnect(): Promise<void> {
    this.disconnects++;
    await this.onDisconnect?.();
    this.maps.length = 0;
    for (const { eventfds } of this.irqs) for (const fd of eventfds ?? []) if (fd !== -1) closeSync(fd);
    this.irqs.length = 0;
  }

  async map(map: MemoryMap): Promise<void> {
    await this.onMap?.(map);
    this.maps.push(map);
  }

  async unmap(request: UnmapRequest): Promise<void> {
    await this.onUnmap?.(request);
    for (const map of request.maps) {
      const index = this.maps.indexOf(map);
      if (index === -1) throw new Error("unmap of what is not mapped");
      this.maps.splice(index, 1);
    }
  }

  async setIrqs(request: IrqSetRequest): Promise<void> {
    this.irqs.push(request);
    await this.onIrqs?.(request);
  }

  handle(command: PendingCommand): void {
    const body = command.bytes.slice(command.offset, command.offset + command.length);
    this.commands.push({ command: command.command, body });
    if (this.onCommand) this.onCommand(command);
    else answer(command);
  }
}

/** Reads give offset, offset + 1 ...; anything else gives what its fixed part is, or nothing. */
export function answer(command: PendingCommand): void {
  const { bytes, offset, length } = command;
  if (command.command === Command.REGION_READ) {
    const access = RegionAccess.view(command.data, offset);
    command.reserve(RegionAccess.size + access.count);
    command.replyBytes.set(bytes.subarray(offset, offset + RegionAccess.size), command.replyOffset);
    for (let index = 0; index < access.count; index++) {
      command.replyBytes[command.replyOffset + RegionAccess.size + index] = access.offset + index;
    }
    command.reply(RegionAccess.size + access.count);
    return;
  }
  let echo = length;
  if (command.command === Command.REGION_WRITE) echo = RegionAccess.size;
  if (command.command === Command.REGION_WRITE_MULTI) echo = WriteMulti.size;
  command.reserve(echo);
  command.replyBytes.set(bytes.subarray(offset, offset + echo), command.replyOffset);
  command.reply(echo);
}

/** Answers a region read with what DMA from the client's memory at `address` gives. */
export function readThroughDma({ memory }: FakeBackend, command: PendingCommand, address: number): void {
  const { count } = RegionAccess.view(command.data, command.offset);
  const target = new Uint8Array(count);
  const done = () => {
    command.reserve(RegionAccess.size + count);
    const { bytes, offset, replyBytes, replyOffset } = command;
    replyBytes.set(bytes.subarray(offset, offset + RegionAccess.size), replyOffset);
    replyBytes.set(target, replyOffset + RegionAccess.size);
    command.reply(RegionAccess.size + count);
  };
  memory?.read(address, target).then(done, () => command.fail(Errno.EIO));
}
