/**
 * An access path with a client's socket before it and both rings behind it, in memory: a test plays the client and the
 * device process, and sees what comes up to TypeScript.
 */
import * as native from "../../native/index.js";
import { inBounds } from "../../shared/bits.js";
import { Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import { Share, Turn } from "../../shared/turn.js";
import { AccessPath, Stop } from "../../shared/vfio-user/socket/access-path.js";
import { Connection, type Frame } from "../../shared/vfio-user/socket/connection.js";
import { DeviceQueue, QueueBroken } from "../../shared/virtqueue/device.js";
import { type Buffer as Place, TestRing } from "./front-end-ring.js";

const BASE = 0x10_0000;
const MEMORY_SIZE = 0x4_0000;
const RING_SIZE = 16;
/** Where each ring and its buffers are. */
const TO_DEVICE = { ring: 0, buffers: 0x1_0000 };
const FROM_DEVICE = { ring: 0x1000, buffers: 0x2_0000 };
export const BUFFER_SIZE = 0x1000;
const CALL = 5;

export interface Message {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly body: Buffer;
}

export function encode(id: number, command: number, body: Uint8Array, flags = 0, errno = 0): Buffer<ArrayBuffer> {
  return Buffer.concat([Header.encode({ id, command, size: Header.size + body.length, flags, errno }), body]);
}

/** The messages that bytes are, one behind the other, and what is left. */
export function decode(bytes: Buffer): { messages: Message[]; rest: Buffer } {
  const messages: Message[] = [];
  let rest = bytes;
  while (rest.length >= Header.size) {
    const { id, command, size, flags, errno } = Header.view(new DataView(rest.buffer, rest.byteOffset));
    if (size > rest.length || size < Header.size) break;
    messages.push({ id, command, flags, errno, body: rest.subarray(Header.size, size) });
    rest = rest.subarray(size);
  }
  return { messages, rest };
}

export interface RigOptions {
  readonly eventIndex?: boolean;
  readonly regionSizes: readonly number[];
  readonly postedRegions?: number;
}

export class AccessRig {
  readonly share = new Share();
  readonly path = new AccessPath(this.share);
  readonly memory = new Uint8Array(MEMORY_SIZE);
  readonly toRing: TestRing;
  readonly fromRing: TestRing;
  readonly to: DeviceQueue;
  readonly from: DeviceQueue;
  /** Commands that came up, copied; nothing finishes them but `connection.finish`. */
  readonly commands: Message[] = [];
  /** What the device process sent and the path left in the ring. */
  readonly left: Message[] = [];
  gone: string | undefined;
  readonly connection: Connection;
  readonly client: number;
  readonly call = native.eventfd(0);
  readonly #kick = native.eventfd(0);
  readonly #poll: native.Poll;
  readonly #turn: Turn;
  #received: Buffer = Buffer.alloc(0);
  #nextReply = 0;

  constructor({ eventIndex = false, regionSizes, postedRegions = 0 }: RigOptions) {
    const memory = {
      pieceSize: MEMORY_SIZE,
      locate: (address: number, length: number) =>
        inBounds(address - BASE, length, MEMORY_SIZE) ? address - BASE : -1,
      bytes: () => this.memory,
    };
    const make = (offset: number) => {
      const ring = new TestRing(this.memory.buffer, BASE, offset, RING_SIZE, eventIndex);
      const queue = new DeviceQueue(memory);
      queue.start({ ...ring, base: 0, eventIndex });
      queue.state[CALL] = this.call;
      return [ring, queue] as const;
    };
    [this.toRing, this.to] = make(TO_DEVICE.ring);
    [this.fromRing, this.from] = make(FROM_DEVICE.ring);
    this.path.rings(this.to, this.from);
    this.path.native.memory(Float64Array.of(BASE), [this.memory]);
    this.path.setDevice(regionSizes, postedRegions);
    const [near, far] = native.socketPair();
    this.client = far;
    this.connection = new Connection(
      near,
      {
        command: (frame) => this.#command(frame),
        reply: () => {},
        gone: (reason) => {
          this.gone = reason.message;
        },
      },
      { share: this.share },
    );
    this.#turn = new Turn(this.share, 0, () => this.#kicked(native.POLL_READABLE));
    this.#poll = new native.Poll(this.#kick, (events) => this.#kicked(events), this.path.native);
    this.#poll.start(native.POLL_READABLE);
    this.connection.accessesBy(this.path);
    this.path.start(Stop.DEVICE);
  }

  /** The driver offers buffers for messages to the device process. */
  offer(count = 1, place: Partial<Place> = {}): void {
    for (let n = 0; n < count; n++) {
      const index = this.#nextOffer++ % RING_SIZE;
      const address = BASE + TO_DEVICE.buffers + index * BUFFER_SIZE;
      this.toRing.add(index, { address, length: BUFFER_SIZE, writable: true, ...place });
    }
  }
  #nextOffer = 0;

  /** The next message that reached the device process. */
  take(): Message | undefined {
    const used = this.toRing.take();
    return used && this.at(used);
  }

  /** The message in a buffer of the driver's that was used; undefined when it is none. */
  at({ id, length }: { readonly id: number; readonly length: number }): Message | undefined {
    const from = TO_DEVICE.buffers + id * BUFFER_SIZE;
    return decode(Buffer.from(this.memory.slice(from, from + length))).messages[0];
  }

  /** @throws when something was written where neither rings nor buffers are */
  checkMemory(): void {
    const unused = [FROM_DEVICE.buffers + RING_SIZE * BUFFER_SIZE, MEMORY_SIZE] as const;
    if (this.memory.subarray(...unused).some((byte) => byte !== 0))
      throw new Error("memory that nobody gave was written");
  }

  /** The device process sends bytes, in one buffer, and notifies. */
  reply(bytes: Uint8Array): void {
    const index = this.#nextReply++ % RING_SIZE;
    const at = FROM_DEVICE.buffers + index * BUFFER_SIZE;
    this.memory.set(bytes, at);
    this.fromRing.add(index, { address: BASE + at, length: bytes.length });
    this.kick();
  }

  /** To the answer of a message: the body as it is, or as given. */
  answer({ id, command, body }: Message, reply: Uint8Array = body, errno = 0): void {
    const flags = HeaderFlags.TYPE_REPLY | (errno > 0 ? HeaderFlags.ERROR : 0);
    this.reply(encode(id, command, errno > 0 ? new Uint8Array(0) : reply, flags, errno));
  }

  kick(): void {
    native.eventfdWrite(this.#kick);
  }

  /** The client sends; how many bytes the socket took. */
  send(...messages: Uint8Array[]): number {
    const bytes = Buffer.concat(messages);
    return native.send(this.client, bytes, 0, bytes.length);
  }

  /** What the client has received by now. */
  receive(): Message[] {
    const bytes = Buffer.alloc(0x1_0000);
    for (;;) {
      const count = native.receive(this.client, bytes, 0, bytes.length, new Int32Array(8));
      if (count <= 0) break;
      this.#received = Buffer.concat([this.#received, bytes.subarray(0, count)]);
    }
    const { messages, rest } = decode(this.#received);
    this.#received = rest;
    return messages;
  }

  /** Resolves when `found` finds something, which the event loop brings about. */
  async until<T>(found: () => T | undefined): Promise<T> {
    for (;;) {
      const value = found();
      if (value !== undefined) return value;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  close(): void {
    this.connection.close();
    this.#poll.close();
    this.#turn.close();
    for (const fd of [this.client, this.#kick, this.call]) native.close(fd);
  }

  #command({ id, command, flags, errno, bytes, offset, length }: Frame): void {
    this.commands.push({ id, command, flags, errno, body: Buffer.from(bytes.slice(offset, offset + length)) });
  }

  #kicked(events: number): void {
    if (events & native.POLL_PATH) {
      this.path.endTurn(this.#turn);
      this.path.attend();
    }
    if (!(events & native.POLL_READABLE)) return;
    while (this.#next()) {
      const bytes = Buffer.alloc(this.from.readable);
      this.from.read(0, bytes, 0, bytes.length);
      this.from.complete(0);
      const [message] = decode(bytes).messages;
      if (message && this.path.has(message.id) && this.path.deliver(bytes, 0, bytes.length)) continue;
      this.left.push(message ?? { id: -1, command: -1, flags: 0, errno: 0, body: bytes });
    }
  }

  /** Whether there is something more; a ring that is broken has nothing. */
  #next(): boolean {
    try {
      return this.from.next();
    } catch (error) {
      if (!(error instanceof QueueBroken)) throw error;
      return false;
    }
  }
}
