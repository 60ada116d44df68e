/**
 * The device process as the bridge sees it: what brings its state (device-state.ts) from one to the next, and what it
 * has of the bridge: doorbells, DMA messages, copies, shared memory. All of that is dropped when it is reset, and kept
 * while its VM is paused.
 */

import type { CopiedMemory } from "../../../shared/copied-memory.js";
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, isSystemError, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { MAX_DATA_XFER_SIZE, PAUSE_GRACE_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { LinkCommand, Queue } from "../../../shared/spec/link.js";
import { Command, Header } from "../../../shared/spec/vfio-user.js";
import type { Share } from "../../../shared/turn.js";
import type { ClientMemory, ClientVersion, DeviceSummary } from "../../../shared/vfio-user/backend.js";
import { RegisterMemory } from "../../../shared/vfio-user/register-memory.js";
import { bytesAt } from "../../../shared/virtqueue/memory.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { parseHello, parseShareRegisters } from "./checks.js";
import { Conversation } from "./conversation.js";
import { Copies } from "./copies.js";
import { type Cause, DeviceState, type State } from "./device-state.js";
import { DmaRelay } from "./dma.js";
import { Doorbells } from "./doorbells.js";
import type { Serial } from "./serial.js";
import type { Sharing } from "./sharing.js";

/** The client's side, as far as the device process touches it. */
export interface ProcessOwner {
  readonly client:
    | {
        readonly version: ClientVersion;
        readonly memory: ClientMemory;
        /** Undefined when its VERSION was answered. */
        readonly introduced: object | undefined;
      }
    | undefined;
  /** The client can be introduced to it, or what changed meanwhile made up for. */
  ready(): void;
  /** It is not waited for any more. */
  left(): void;
  /** Its VM is paused; and has been for longer than a command may wait. */
  paused(): void;
  pausedLong(): void;
  /** It is to let go of the client: "silent", or "failed". */
  gaveUp(cause: Cause): void;
  /** Whether config space is to tell the driver that it must reset the device. */
  needsReset(needsReset: boolean): void;
  /** It takes messages again. */
  drained(): void;
  /** Takes out of the window all that the client has to do with. Never rejects. */
  takeBack(): Promise<void>;
}

export interface ProcessOptions {
  readonly owner: ProcessOwner;
  readonly window: Window;
  readonly copied: CopiedMemory;
  readonly sharing: Sharing;
  readonly serial: Serial;
  readonly log: Log;
  readonly share: Share;
}

/** What begins or ends something at the bridge, and waits there for what came before. */
const BEGINNINGS: ReadonlySet<number> = new Set([
  LinkCommand.HELLO,
  LinkCommand.ALLOCATE_MEMORY,
  LinkCommand.ALLOCATE_EVENTS,
  LinkCommand.QUIESCE,
]);

export class DeviceProcess {
  readonly state = new DeviceState();
  /** A pause has lasted longer than a command may wait for its end. */
  isPausedLong = false;
  /** What the last HELLO said; kept while the process is away. */
  summary: DeviceSummary | undefined;
  /** It said that it wants no driver-VM memory in its window. */
  isolated = false;
  hellos = 0;
  /** From which reads of its registers are answered; undefined where it does not share them. */
  registers: RegisterMemory | undefined;
  readonly conversation: Conversation;
  readonly doorbells = new Doorbells();
  readonly dma: DmaRelay;
  readonly copies: Copies;
  readonly #owner: ProcessOwner;
  readonly #window: Window;
  readonly #sharing: Sharing;
  readonly #serial: Serial;
  readonly #log: Log;
  #backEnd: BackEnd | undefined;
  /** Changes when the process does. */
  #era = 0;
  /** An ALLOCATE_* is under way. */
  #allocating = false;
  /** A QUIESCE is. */
  #quiescing = false;
  #stopGrace = () => {};
  /** Why it was given up last; undefined once it has the client. */
  #gaveUpFor: string | undefined;

  constructor({ owner, window, copied, sharing, serial, log, share }: ProcessOptions) {
    this.#owner = owner;
    this.#window = window;
    this.#sharing = sharing;
    this.#serial = serial;
    this.#log = log;
    this.conversation = new Conversation(
      {
        command: (id, command, flags, bytes, data, length) => this.#command(id, command, flags, bytes, data, length),
        fds: (command, body, handles) => this.#fds(command, body, handles),
        drained: () => {
          this.dma.resume();
          owner.drained();
        },
        silent: (reason) => this.giveUp("silent", reason),
        isPaused: () => this.state.name === "paused",
        broken: (reason) => this.break(reason),
      },
      log,
      share,
    );
    this.dma = new DmaRelay(this.conversation.channel);
    this.copies = new Copies(copied, share, (reason) => this.break(reason));
  }

  /** Doorbell queues of the device. */
  get doorbellQueues(): number {
    return Math.max(0, (this.#backEnd?.queues ?? 0) - Queue.FIRST_DOORBELL);
  }

  attach(backEnd: BackEnd): void {
    this.#backEnd = backEnd;
  }

  detach(): void {
    this.#backEnd = undefined;
  }

  /** A queue of the device was enabled. */
  enabled(index: number): void {
    const backEnd = this.#backEnd;
    const { channel } = this.conversation;
    // While rings go on after a pause, nothing begins.
    if (!backEnd || this.state.name === "paused") return;
    if (index === Queue.COPY && this.state.name !== "broken") this.copies.start(backEnd);
    if (channel.open || index >= Queue.COPY) return;
    if (!backEnd.queue(Queue.TO_DEVICE)?.running || !backEnd.queue(Queue.FROM_DEVICE)?.running) return;
    this.state.on("start");
    channel.start(backEnd);
  }

  /** The rings stand still, and may go on. To be called before the first of them stops. */
  pause(): void {
    this.doorbells.halt();
    this.copies.stop();
    this.conversation.channel.halt();
    if (!this.state.on("pause")) return;
    this.#log.info("the device VM is paused, or the device was reset");
    this.isPausedLong = false;
    this.#stopGrace = startDeadline(PAUSE_GRACE_MS, () => {
      this.isPausedLong = true;
      this.#owner.pausedLong();
    });
    this.#owner.paused();
  }

  /** The rings go on where they were. */
  resume(): void {
    if (!this.state.on("resume")) return;
    this.#stopGrace();
    this.isPausedLong = false;
    this.#log.info({ state: this.state.name }, "the device VM goes on");
    const backEnd = this.#backEnd;
    if (!backEnd || !this.conversation.channel.open) return;
    this.copies.start(backEnd);
    this.conversation.channel.goOn();
    // Interrupts of the time before the start may be lost.
    for (const queue of [Queue.TO_DEVICE, Queue.FROM_DEVICE, Queue.COPY]) backEnd.call(queue);
    try {
      this.doorbells.goOn();
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#log.error({ err: error }, "the device's interrupts cannot be relayed");
      this.giveUp("failed", error.message);
    }
    if (this.state.name === "ready") this.#owner.ready();
  }

  /** The device was reset, or its front-end is gone: the device process of before is no more. */
  reset(reason: string): void {
    const was = this.state.name;
    this.state.on("reset");
    this.#leave(reason, was);
    this.conversation.drop(reason, false);
    this.conversation.channel.stop();
    this.copies.stop();
    this.#owner.needsReset(false);
  }

  /** The device process broke the rules: it is absent until it resets the device, and has no driver-VM memory. */
  break(reason: string): void {
    const isQuiet = this.#isQuiesced() && !this.#quiescing;
    const was = this.state.name;
    if (!this.state.on("violated")) return;
    this.#log.warn({ reason }, "the device process broke the link");
    this.#leave(reason, was);
    this.conversation.drop(reason, false);
    this.conversation.channel.stop();
    this.copies.stop();
    // After QUIESCE's reply it resets the device by itself, and nothing may be on its way to QEMU.
    if (isQuiet) return;
    this.#window.permit();
    this.#serial.background(async () => {
      await this.#owner.takeBack();
      if (this.state.cause !== "violated") return;
      // Last of all: when it hears of this it resets the device, and then nothing may be on its way to QEMU.
      this.#owner.needsReset(true);
      await this.#window.configChanged();
      this.#window.forbid(reason);
    });
  }

  /**
   * It is not waited for any more, and may be there all the same: it has no driver-VM memory until it has let go of the
   * client. What it was asked and was not given yet it is not asked any more.
   */
  giveUp(cause: "silent" | "failed", reason: string): void {
    const was = this.state.name;
    if (!this.state.on(cause)) return;
    const isNews = this.#gaveUpFor !== reason;
    this.#gaveUpFor = reason;
    if (isNews) this.#log.warn({ reason }, "gave up on the device process until it has let go of the client");
    this.#leave(reason, was, isNews);
    this.#sharing.stop();
    this.conversation.abandon(reason);
    this.#owner.gaveUp(cause);
  }

  /** It has let go of the client, after `giveUp`. */
  letGo(): void {
    const backEnd = this.#backEnd;
    if (!backEnd || !this.state.on("letGo")) return;
    this.#attachDoorbells(backEnd);
    this.#owner.ready();
  }

  /** It knows the client. */
  introduced(): void {
    this.#gaveUpFor = undefined;
    this.state.on("introduced");
  }

  /** The client has gone. */
  clientGone(): void {
    this.state.on("clientGone");
    this.dma.drop();
  }

  /** It is no longer waited for. */
  #leave(reason: string, was: State, isNews = true): void {
    this.#stopGrace();
    this.isPausedLong = false;
    this.#era++;
    this.#allocating = false;
    this.#quiescing = false;
    this.dma.drop();
    this.doorbells.detach();
    const { name, cause } = this.state;
    if (cause === undefined || cause === "violated") {
      this.registers = undefined;
      this.#sharing.left(this.#owner.client !== undefined);
    }
    this.#owner.left();
    if (isNews && (was === "ready" || was === "connected" || was === "paused"))
      this.#log.info({ reason, state: name }, "the device process left");
  }

  #attachDoorbells(backEnd: BackEnd): void {
    this.doorbells.attach(this.doorbellQueues, (queue) => backEnd.kickFd(queue));
  }

  #command(id: number, command: number, flags: number, bytes: Uint8Array, data: DataView, length: number): void {
    if (this.#quiescing && BEGINNINGS.has(command)) {
      throw new ProtocolError(`command ${command} before the reply to QUIESCE`);
    } else if (command === LinkCommand.HELLO) {
      this.#hello(id, data, length);
    } else if (command === LinkCommand.SHARE_REGISTERS) {
      this.#shareRegisters(id, data, length);
    } else if (command === LinkCommand.ALLOCATE_MEMORY || command === LinkCommand.ALLOCATE_EVENTS) {
      this.#allocate(id, command, data, length);
    } else if (this.state.name === "absent") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === LinkCommand.QUIESCE) {
      this.#quiesce(id);
    } else if (this.state.name === "preparing") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === Command.DMA_READ || command === Command.DMA_WRITE) {
      const client = this.state.name === "broken" ? undefined : this.#owner.client;
      const most = Math.min(MAX_DATA_XFER_SIZE, client?.version.maxDataXferSize ?? 0);
      // A client that has no reply to VERSION yet understands no command, and after QUIESCE nothing is to happen.
      const memory = this.state.name === "quiesced" || client?.introduced !== undefined ? undefined : client?.memory;
      this.dma.relay(id, command, flags, bytes, data, length, memory, most);
    } else {
      throw new ProtocolError(`command ${command}, which is not one of a device process`);
    }
  }

  #fds(command: number, body: Uint8Array<ArrayBuffer>, handles: readonly number[]): readonly number[] {
    const most = this.#owner.client?.version.maxMessageFds ?? 0;
    if (!this.summary || handles.length > most) throw new ProtocolError(`${handles.length} fds for the client`);
    return this.#sharing.resolve(command, body, handles, this.summary);
  }

  /** It is memory of the device VM's own: nothing of the client's is in it, and the window is not touched. */
  #shareRegisters(id: number, data: DataView, length: number): void {
    if (!this.state.takes("hello")) throw new ProtocolError("SHARE_REGISTERS after HELLO");
    const { address, size, areas } = parseShareRegisters(data, Header.size, length - Header.size);
    const memory = this.#backEnd?.queue(Queue.TO_DEVICE)?.memory;
    const bytes = memory && bytesAt(memory, address, size);
    if (bytes === undefined) {
      this.conversation.refuse(id, LinkCommand.SHARE_REGISTERS, Errno.EFAULT);
      return;
    }
    this.registers = new RegisterMemory(bytes, areas);
    this.conversation.answer(id, LinkCommand.SHARE_REGISTERS);
  }

  /** From the first of ALLOCATE_* on the window may be changed. */
  #allocate(id: number, command: number, data: DataView, length: number): void {
    if (!this.state.takes("allocate")) throw new ProtocolError("ALLOCATE_* after HELLO");
    if (this.#allocating) throw new ProtocolError("ALLOCATE_* before the reply to the one before");
    const allocation = this.#sharing.parse(command, data, Header.size, length - Header.size);
    this.state.on("allocate");
    this.#allocating = true;
    const era = this.#era;
    this.#serial.background(async () => {
      if (era !== this.#era) return;
      this.#window.permit();
      let body: Uint8Array | undefined;
      let errno = 0;
      try {
        body = await allocation(this.#owner.client !== undefined);
      } catch (error) {
        if (error instanceof PeerGone) return;
        if (!(error instanceof ProtocolError) && !isSystemError(error)) throw error;
        this.#log.warn({ reason: error.message }, "the device process does not get what it wants to share");
        errno = error.errno;
      }
      if (era !== this.#era) return;
      this.#allocating = false;
      if (errno === 0) this.conversation.answer(id, command, body);
      else this.conversation.refuse(id, command, errno);
    });
  }

  #hello(id: number, data: DataView, length: number): void {
    if (!this.state.takes("hello")) throw new ProtocolError("a second HELLO");
    if (this.#allocating) throw new ProtocolError("HELLO before the reply to ALLOCATE_*");
    try {
      const { summary, isolated } = parseHello(data, Header.size, length - Header.size);
      this.summary = summary;
      this.isolated = isolated;
      this.#sharing.checkAgainst(summary);
      if (this.registers?.fits(summary.regionSizes) === false)
        throw new ProtocolError("registers outside of their region");
    } catch (error) {
      this.conversation.refuse(id, LinkCommand.HELLO, (error as ProtocolError).errno);
      throw error;
    }
    const backEnd = this.#backEnd;
    if (!backEnd) return;
    this.state.on("hello");
    this.hellos++;
    this.#window.permit();
    this.#attachDoorbells(backEnd);
    this.conversation.answer(id, LinkCommand.HELLO);
    this.#log.info({ doorbells: this.doorbellQueues, isolated: this.isolated }, "the device process is ready");
    this.#owner.ready();
  }

  #quiesce(id: number): void {
    const reason = "the device process is about to reset the device";
    const was = this.state.name;
    this.state.on("quiesce");
    this.#leave(reason, was);
    this.#quiescing = true;
    // The channel stays.
    this.conversation.drop(reason, true);
    // After the reply it may reset the device, and then no request for the window may be on its way.
    const era = this.#era;
    const isWanted = () => era === this.#era && this.#isQuiesced();
    this.#serial.background(async () => {
      if (isWanted()) await this.#owner.takeBack();
      if (isWanted()) await this.#window.idle();
      if (!isWanted()) return;
      this.#quiescing = false;
      this.#window.forbid(reason);
      this.conversation.answer(id, LinkCommand.QUIESCE);
    });
  }

  #isQuiesced(): boolean {
    return this.state.name === "quiesced";
  }
}
