/**
 * The device process as the bridge sees it: the states of the specification's table (docs/virtio-vfio-user.md, "Device
 * operation"), the commands that bring it from one to the next, and what it has of the bridge: doorbells, DMA messages, copies,
 * shared memory. All of that is dropped when it stops.
 */

import type { CopiedMemory } from "../../shared/copied-memory.js";
import { Errno, isSystemError, PeerGone, ProtocolError } from "../../shared/errors.js";
import { MAX_DATA_XFER_SIZE } from "../../shared/limits.js";
import type { Log } from "../../shared/log.js";
import { LinkCommand, Queue } from "../../shared/spec/link.js";
import { Command, Header } from "../../shared/spec/vfio-user.js";
import type { Share } from "../../shared/turn.js";
import type { ClientMemory, ClientVersion, DeviceSummary } from "../../shared/vfio-user/backend.js";
import { RegisterMemory } from "../../shared/vfio-user/register-memory.js";
import { bytesAt } from "../../shared/virtqueue/memory.js";
import type { BackEnd } from "../vhost-user/back-end.js";
import type { Window } from "../vhost-user/window.js";
import { parseHello, parseShareRegisters } from "./checks.js";
import { Conversation } from "./conversation.js";
import { Copies } from "./copies.js";
import { DmaRelay } from "./dma.js";
import { Doorbells } from "./doorbells.js";
import type { Serial } from "./serial.js";
import type { Sharing } from "./sharing.js";

/** "broken" is "absent until it resets". */
export type State = "absent" | "preparing" | "ready" | "connected" | "quiesced" | "broken";

/** The client's side, as far as the device process touches it. */
export interface ProcessOwner {
  readonly client: { readonly version: ClientVersion; readonly memory: ClientMemory } | undefined;
  /** It said HELLO: the client can be shown to it. */
  ready(): void;
  /** It is not waited for any more. */
  left(): void;
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

export class DeviceProcess {
  state: State = "absent";
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
    if (!backEnd) return;
    if (index === Queue.COPY && this.state !== "broken") this.copies.start(backEnd);
    if (channel.open || index >= Queue.COPY) return;
    if (!backEnd.queue(Queue.TO_DEVICE)?.running || !backEnd.queue(Queue.FROM_DEVICE)?.running) return;
    this.state = "absent";
    channel.start(backEnd);
  }

  /** The device stops. */
  stop(reason: string): void {
    this.#leave("absent", reason);
    this.conversation.channel.stop();
    this.copies.stop();
  }

  /** The device process broke the rules: it is absent until it resets the device, and has no driver-VM memory. */
  break(reason: string): void {
    if (this.state === "broken") return;
    this.#log.warn({ reason }, "the device process broke the link");
    this.#leave("broken", reason);
    this.conversation.channel.stop();
    this.copies.stop();
    this.#serial.background(() => this.#owner.takeBack());
  }

  /** It is no longer waited for: what waits for it is answered as by a device that is not there. */
  #leave(state: State, reason: string): void {
    const was = this.state;
    this.state = state;
    this.#era++;
    this.#allocating = false;
    this.registers = undefined;
    this.dma.drop();
    this.doorbells.detach();
    this.#sharing.left(this.#owner.client !== undefined);
    // After QUIESCE the channel stays.
    this.conversation.drop(reason, state === "quiesced");
    this.#owner.left();
    if (was === "ready" || was === "connected") this.#log.info({ reason, state }, "the device process left");
  }

  #command(id: number, command: number, flags: number, bytes: Uint8Array, data: DataView, length: number): void {
    if (command === LinkCommand.HELLO) {
      this.#hello(id, data, length);
    } else if (command === LinkCommand.SHARE_REGISTERS) {
      this.#shareRegisters(id, data, length);
    } else if (command === LinkCommand.ALLOCATE_MEMORY || command === LinkCommand.ALLOCATE_EVENTS) {
      this.#allocate(id, command, data, length);
    } else if (this.state === "absent") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === LinkCommand.QUIESCE) {
      this.#quiesce(id);
    } else if (this.state === "preparing") {
      throw new ProtocolError(`command ${command} before HELLO`);
    } else if (command === Command.DMA_READ || command === Command.DMA_WRITE) {
      const { client } = this.#owner;
      const most = Math.min(MAX_DATA_XFER_SIZE, client?.version.maxDataXferSize ?? 0);
      this.dma.relay(id, command, flags, bytes, data, length, client?.memory, most);
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
    if (this.state === "ready" || this.state === "connected") throw new ProtocolError("SHARE_REGISTERS after HELLO");
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
    if (this.state === "ready" || this.state === "connected") throw new ProtocolError("ALLOCATE_* after HELLO");
    if (this.#allocating) throw new ProtocolError("ALLOCATE_* before the reply to the one before");
    const allocation = this.#sharing.parse(command, data, Header.size, length - Header.size);
    this.state = "preparing";
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
    if (this.state === "ready" || this.state === "connected") throw new ProtocolError("a second HELLO");
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
    this.state = "ready";
    this.hellos++;
    this.#window.permit();
    const doorbells = this.doorbellQueues;
    this.doorbells.attach(doorbells, (queue) => backEnd.kickFd(queue));
    this.conversation.answer(id, LinkCommand.HELLO);
    this.#log.info({ doorbells, isolated: this.isolated }, "the device process is ready");
    this.#owner.ready();
  }

  #quiesce(id: number): void {
    this.#leave("quiesced", "the device process is about to reset the device");
    // After the reply it may reset the device, and then no request for the window may be on its way.
    this.#serial.background(async () => {
      if (this.state !== "quiesced") return;
      await this.#owner.takeBack();
      await this.#window.idle();
      this.#window.forbid("the device process is about to reset the device");
      this.conversation.answer(id, LinkCommand.QUIESCE);
    });
  }
}
