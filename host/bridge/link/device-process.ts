/**
 * What the device process says: HELLO, what it allocates before it, its DMA by messages, QUIESCE, and replies that give
 * the client fds. Each command is one that its state permits, or it has broken the rules.
 */
import { Errno, isSystemError, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_DATA_XFER_SIZE } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { LinkCommand } from "../../../shared/spec/link.js";
import { Command, Header } from "../../../shared/spec/vfio-user.js";
import type { ClientMemory, ClientVersion, DeviceSummary, PendingCommand } from "../../../shared/vfio-user/backend.js";
import { type RegisterArea, RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import { bytesAt, copyBytes, MISSING } from "../../../shared/virtqueue/memory.js";
import type { ControlState } from "../state/control-state.js";
import { StateError } from "../state/state-bytes.js";
import type { DeviceVmMemory } from "../vhost-user/memory.js";
import { parseHello, parseShareRegisters } from "./bodies.js";
import type { Changes } from "./changes.js";
import type { DeviceState } from "./device-state.js";
import type { ClientMaps } from "./dma-maps.js";
import type { DmaRelay } from "./dma-relay.js";
import { Inspection } from "./inspection.js";
import type { DeviceMessages, RequestChannel } from "./request-channel.js";
import type { Sharing } from "./sharing.js";
import type { WindowAllocation } from "./window-allocation.js";

/** The client, as far as the device process has to do with it. */
export interface DeviceClient {
  readonly version: ClientVersion;
  readonly memory: ClientMemory;
  /** Its VERSION was answered: it understands commands. */
  readonly isServed: boolean;
}

/** What a device process said, as the state keeps it. */
export interface SavedProcess {
  readonly summary: DeviceSummary | null;
  readonly isolated: boolean;
  readonly hellos: number;
  readonly registers: { readonly address: number; readonly size: number; readonly areas: RegisterArea[] } | null;
  readonly owed: OwedReply | null;
}

/** A command of the device process's that takes a while, and whose reply it waits for. */
interface OwedReply {
  readonly id: number;
  readonly command: number;
  /** Its body. */
  readonly body: number[];
}

export interface DeviceProcessParts {
  readonly state: DeviceState;
  readonly changes: Changes;
  readonly requests: RequestChannel;
  readonly allocation: WindowAllocation;
  readonly maps: ClientMaps;
  readonly sharing: Sharing;
  readonly dma: DmaRelay;
  /** The device VM's. */
  readonly memory: DeviceVmMemory;
  readonly control: ControlState;
  readonly log: Log;
}

export class DeviceProcess implements DeviceMessages {
  /** What the last HELLO said; kept while the process is away. */
  summary: DeviceSummary | undefined;
  hellos = 0;
  /** From which reads of its registers are answered; undefined where it does not share them. */
  registers: RegisterMemory | undefined;
  client: DeviceClient | undefined;
  readonly #parts: DeviceProcessParts;
  readonly #state: DeviceState;
  readonly #requests: RequestChannel;
  /** What it says of itself. */
  readonly inspection: Inspection;
  /** The generation whose ALLOCATE_* is not answered yet. */
  #allocating = -1;
  /** SHARE_REGISTERS whose memory is being asked for. */
  #sharing: { id: number; generation: number; registers: NonNullable<SavedProcess["registers"]> } | undefined;
  /** Where its registers are. */
  #shared: SavedProcess["registers"] = null;
  #owed: OwedReply | null = null;

  constructor(parts: DeviceProcessParts) {
    this.#parts = parts;
    this.#state = parts.state;
    this.#requests = parts.requests;
    this.inspection = new Inspection(parts.state, parts.requests);
    parts.requests.listen(this);
  }

  save(): SavedProcess {
    const { summary = null, hellos, registers } = this;
    const { isolated } = this.#parts.maps.placement;
    return { summary, isolated, hellos, registers: registers ? this.#shared : null, owed: this.#owed };
  }

  /** Goes on with the process that another bridge had. @throws StateError */
  restore({ summary, isolated, hellos, registers, owed }: SavedProcess): void {
    this.summary = summary ?? undefined;
    this.hellos = hellos;
    this.#parts.maps.placement.isolated = isolated;
    if (registers !== null) {
      const { memory } = this.#parts;
      const bytes = bytesAt(memory, registers.address, registers.size);
      // Behind an IOMMU it would have to be asked for: reads go to the process, until it starts again.
      if (bytes === undefined && !memory.translates) throw new StateError("the device's registers are not in memory");
      if (bytes !== undefined) this.#share(registers, bytes);
    }
    if (owed === null) return;
    const body = Uint8Array.from(owed.body);
    this.#parts.sharing.withdraw(owed.command, new DataView(body.buffer));
    this.#carryOut(owed.id, owed.command, new DataView(body.buffer), 0, body.length);
  }

  #share(registers: NonNullable<SavedProcess["registers"]>, bytes: Uint8Array): void {
    this.#shared = registers;
    this.registers = new RegisterMemory(bytes, registers.areas);
    this.#parts.memory.iotlb.keep(this, [{ address: registers.address, length: registers.size }]);
  }

  /** See DeviceMessages. */
  command(id: number, command: number, flags: number, bytes: Uint8Array, data: DataView, length: number): void {
    this.#parts.control.touch();
    switch (command) {
      case LinkCommand.HELLO:
        this.#hello(id, data, length);
        return;
      case LinkCommand.SHARE_REGISTERS:
        this.#shareRegisters(id, data, length);
        return;
      case LinkCommand.ALLOCATE_MEMORY:
      case LinkCommand.ALLOCATE_EVENTS:
        this.#check("allocate", "ALLOCATE_*");
        this.#carryOut(id, command, data, Header.size, length - Header.size);
        return;
      case LinkCommand.QUIESCE:
        this.#check("quiesce", "QUIESCE");
        this.#carryOut(id, command, data, Header.size, 0);
        return;
      case Command.DMA_READ:
      case Command.DMA_WRITE: {
        const { name } = this.#state;
        if (name === "absent" || name === "preparing") throw new ProtocolError("DMA before HELLO");
        const isAllowed = name === "ready" || name === "connected";
        const client = isAllowed && this.client?.isServed ? this.client : undefined;
        const most = Math.min(MAX_DATA_XFER_SIZE, client?.version.maxDataXferSize ?? 0);
        this.#parts.dma.relay(id, command, flags, bytes, data, length, client?.memory, most);
        return;
      }
      default:
        throw new ProtocolError(`command ${command}, which is not one of a device process`);
    }
  }

  /** See DeviceMessages. What is wrong with the handles costs the client an error only. */
  replyWithHandles(command: PendingCommand, body: Uint8Array<ArrayBuffer>, handles: readonly number[]): void {
    try {
      const most = this.client?.version.maxMessageFds ?? 0;
      if (!this.summary || handles.length > most) throw new ProtocolError(`${handles.length} fds for the client`);
      const fds = this.#parts.sharing.handles.resolve(command.command, body, handles, this.summary);
      command.reserve(body.length);
      copyBytes(body, 0, command.replyBytes, command.replyOffset, body.length);
      command.reply(body.length, fds.length > 0 ? fds : undefined);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#parts.log.warn(
        { command: command.command, reason: error.message },
        "refused a reply of the device process",
      );
      command.fail(Errno.EIO);
    }
  }

  /** Takes out of the window all that the client has to do with. Never rejects. */
  async clearWindow(): Promise<void> {
    await this.#parts.maps.takeOutAll(false);
    await this.#parts.sharing.takeOut();
  }

  /** It is memory of the device VM's own: nothing of the client's is in it, and the window is not touched. */
  #shareRegisters(id: number, data: DataView, length: number): void {
    if (!this.#state.accepts("hello") && this.#state.name !== "quiescing")
      throw new ProtocolError("SHARE_REGISTERS after HELLO");
    const registers = parseShareRegisters(data, Header.size, length - Header.size);
    this.#sharing = { id, generation: this.#state.generation, registers };
    this.memoryChanged();
  }

  /** Memory of the device VM's has come or gone: what SHARE_REGISTERS waited for may be there. */
  memoryChanged(): void {
    if (this.#sharing === undefined) return;
    const { memory } = this.#parts;
    const { id, generation, registers } = this.#sharing;
    const { address, size } = registers;
    if (generation === this.#state.generation && memory.locate(address, size) === MISSING) return;
    this.#sharing = undefined;
    if (generation !== this.#state.generation) return;
    this.#parts.control.touch();
    const bytes = bytesAt(memory, address, size);
    if (bytes === undefined) {
      this.#requests.refuse(id, LinkCommand.SHARE_REGISTERS, Errno.EFAULT);
      return;
    }
    this.#share(registers, bytes);
    this.#requests.answer(id, LinkCommand.SHARE_REGISTERS);
  }

  /** Whether the register memory is where it was shared; what is not is asked for. */
  get hasRegisters(): boolean {
    return this.#shared !== null && this.#parts.memory.locate(this.#shared.address, this.#shared.size) >= 0;
  }

  /** Begins with what takes a while, now or for another bridge, whose reply was not sent. */
  #carryOut(id: number, command: number, data: DataView, offset: number, length: number): void {
    const body = [...new Uint8Array(data.buffer, data.byteOffset + offset, length)];
    if (command === LinkCommand.QUIESCE) this.#quiesce(id);
    else this.#allocate(id, command, data, offset, length);
    this.#owed = { id, command, body };
  }

  /** Of #owed: sent, or nobody waits for it. */
  #answered(): void {
    this.#owed = null;
    this.#parts.control.touch();
  }

  /** The device process is gone, or has said QUIESCE, and no reply is sent any more. */
  left(): void {
    this.#answered();
  }

  /** From the first of ALLOCATE_* on the window may be changed. */
  #allocate(id: number, command: number, data: DataView, offset: number, length: number): void {
    const allocation = this.#parts.sharing.parse(command, data, offset, length);
    this.#state.raise("allocate");
    const { generation } = this.#state;
    this.#allocating = generation;
    this.#parts.changes.background(async () => {
      if (generation !== this.#state.generation) return;
      this.#parts.allocation.window.permit();
      let body: Uint8Array | undefined;
      let errno = 0;
      try {
        body = await allocation();
      } catch (error) {
        if (error instanceof PeerGone) return;
        if (!(error instanceof ProtocolError) && !isSystemError(error)) throw error;
        this.#parts.log.warn({ reason: error.message }, "the device process does not get what it wants to share");
        errno = error.errno;
      }
      if (generation !== this.#state.generation) return;
      this.#allocating = -1;
      if (errno === 0) this.#requests.answer(id, command, body);
      else this.#requests.refuse(id, command, errno);
      this.#answered();
    });
  }

  #hello(id: number, data: DataView, length: number): void {
    this.#check("hello", "HELLO");
    if (this.#sharing?.generation === this.#state.generation)
      throw new ProtocolError("HELLO before the reply to SHARE_REGISTERS");
    try {
      const { summary, isolated } = parseHello(data, Header.size, length - Header.size);
      this.summary = summary;
      this.#parts.maps.placement.isolated = isolated;
      this.#parts.sharing.checkAgainst(summary);
      if (this.registers?.fits(summary.regionSizes) === false)
        throw new ProtocolError("registers outside of their region");
    } catch (error) {
      this.#requests.refuse(id, LinkCommand.HELLO, (error as ProtocolError).errno);
      throw error;
    }
    this.hellos++;
    this.#state.raise("hello");
    this.#requests.answer(id, LinkCommand.HELLO);
  }

  #quiesce(id: number): void {
    const reason = "the device process is about to reset the device";
    this.#state.raise("quiesce", reason);
    // After the reply it may reset the device, and then no request for the window may be in flight.
    const { generation } = this.#state;
    const isWanted = () => generation === this.#state.generation;
    this.#parts.changes.background(async () => {
      if (isWanted()) await this.clearWindow();
      if (isWanted()) await this.#parts.allocation.window.idle();
      if (!isWanted()) return;
      this.#parts.allocation.window.forbid(reason);
      this.#state.raise("quiesced");
      this.#requests.answer(id, LinkCommand.QUIESCE);
      this.#answered();
    });
  }

  /** @throws ProtocolError for a command that the process may not send now */
  #check(event: "hello" | "allocate" | "quiesce", command: string): void {
    const { name, generation } = this.#state;
    if (!this.#state.accepts(event)) throw new ProtocolError(`${command} of a device process that is ${name}`);
    if (this.#allocating === generation && event !== "quiesce")
      throw new ProtocolError(`${command} before the reply to ALLOCATE_*`);
  }
}
