/**
 * Two devices that are the same: one is accessed by DeviceAccess, in C++, the other by commands of its endpoint. For
 * every message the two must agree, byte by byte, on the reply and on what came to the device.
 */
import assert from "node:assert/strict";
import { DeviceEndpoint } from "../../guest/function/endpoint.js";
import type { Link } from "../../guest/link/link.js";
import { ProtocolError } from "../../shared/errors.js";
import { quietLog } from "../../shared/log.js";
import type { Area } from "../../shared/memory-file.js";
import { Header, HeaderFlags } from "../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import { checkBody, checkRequest } from "../../shared/vfio-user/checks.js";
import { DeviceAccess } from "../../shared/vfio-user/device-access.js";
import { type RegisterArea, RegisterMemory } from "../../shared/vfio-user/register-memory.js";
import { decode, encode } from "./access-rig.js";
import { RegionsDevice } from "./regions-device.js";

const REPLY_OFFSET = 16;
const MAX_REPLY = 64;

class Pending implements PendingCommand {
  readonly position = -1;
  readonly isAgain = false;
  active = true;
  readonly offset = Header.size;
  readonly data: DataView;
  readonly length: number;
  replyBytes = new Uint8Array(0);
  replyData = new DataView(this.replyBytes.buffer);
  readonly replyOffset = REPLY_OFFSET;
  /** The whole reply; empty where none is wanted. */
  answer: Buffer = Buffer.alloc(0);

  constructor(
    readonly id: number,
    readonly command: number,
    readonly flags: number,
    readonly bytes: Uint8Array<ArrayBuffer>,
  ) {
    this.data = new DataView(bytes.buffer, bytes.byteOffset);
    this.length = bytes.length - Header.size;
  }

  reserve(length: number): void {
    this.replyBytes = new Uint8Array(REPLY_OFFSET + length);
    this.replyData = new DataView(this.replyBytes.buffer);
  }

  reply(length: number): void {
    this.#end(this.replyBytes.subarray(REPLY_OFFSET, REPLY_OFFSET + length), 0);
  }

  fail(errno: number): void {
    this.#end(new Uint8Array(0), errno);
  }

  #end(body: Uint8Array, errno: number): void {
    this.active = false;
    if ((this.flags & HeaderFlags.NO_REPLY) !== 0) return;
    const flags = HeaderFlags.TYPE_REPLY | (errno > 0 ? HeaderFlags.ERROR : 0);
    this.answer = encode(this.id, this.command, body, flags, errno);
  }
}

class Twin {
  readonly device = new RegionsDevice();
  readonly endpoint: DeviceEndpoint;
  registers: RegisterMemory | undefined;

  constructor() {
    const link = {
      window: { size: 4096, pieceSize: 4096, piece: () => new ArrayBuffer(4096) },
      allocateMemory: async (_region: number, areas: readonly Area[]) => ({
        descriptor: -1,
        areas: areas.map(({ size }) => new Uint8Array(size)),
      }),
      allocateEvents: async (_region: number, count: number) => ({ descriptors: new Array(count).fill(-1) }),
      shareRegisters: async (size: number, areas: readonly RegisterArea[]) => {
        const bytes = new Uint8Array(size);
        this.registers = new RegisterMemory(bytes, areas);
        return bytes;
      },
      abandonMessages: () => {},
      trigger: () => {},
      doorbellsRung: 0,
    } as unknown as Link;
    this.endpoint = new DeviceEndpoint(this.device, link, quietLog);
  }

  handle(bytes: Uint8Array<ArrayBuffer>): Buffer {
    const { id, command, flags } = Header.view(new DataView(bytes.buffer, bytes.byteOffset));
    const pending = new Pending(id, command, flags, bytes);
    this.endpoint.handle(pending);
    return pending.answer;
  }

  /** What accesses have done to it. */
  get state(): unknown {
    return [this.device.accesses, this.device.events, this.endpoint.inspect(), this.registers?.bytes];
  }
}

export class AccessTwins {
  readonly native = new Twin();
  readonly plain = new Twin();
  #access: DeviceAccess | undefined;

  /** To be awaited first. `counts`: as on the virtio link. */
  async start(): Promise<void> {
    await this.native.endpoint.start();
    await this.plain.endpoint.start();
    this.#access = new DeviceAccess(this.native.endpoint.words, this.native.endpoint.summary, false);
    this.#access.shareRegisters(this.native.registers, true);
  }

  /** The same to both. */
  each(change: (twin: Twin) => void): void {
    change(this.native);
    change(this.plain);
  }

  /** Whether C++ deals with a message. @throws AssertionError when it does otherwise than the endpoint */
  compare(bytes: Uint8Array<ArrayBuffer>): boolean {
    const reply = new Uint8Array(MAX_REPLY);
    const length = this.#access?.native.answer(bytes, reply) ?? -1;
    const isValid = this.#passes(bytes);
    if (length >= 0) {
      assert.ok(isValid, "an access that checks.ts refuses");
      assert.deepEqual(Buffer.from(reply.subarray(0, length)), this.plain.handle(bytes));
    } else if (isValid) {
      assert.deepEqual(this.native.handle(bytes), this.plain.handle(bytes));
    }
    assert.deepEqual(this.native.state, this.plain.state);
    return length >= 0;
  }

  /** Whether checks.ts lets a message pass that is an access. */
  #passes(bytes: Uint8Array<ArrayBuffer>): boolean {
    const { messages, rest } = decode(Buffer.from(bytes));
    if (messages.length !== 1 || rest.length > 0) return false;
    const [{ id, command, flags, body }] = messages;
    if (!ACCESSES.includes(command) || (flags & HeaderFlags.TYPE_MASK) !== HeaderFlags.TYPE_COMMAND) return false;
    const data = new DataView(bytes.buffer, bytes.byteOffset);
    const frame = {
      id,
      command,
      flags,
      errno: 0,
      bytes,
      data,
      offset: Header.size,
      length: body.length,
      fds: [],
      position: 0,
      isAgain: false,
    };
    try {
      checkBody(command, body.length, 0);
      checkRequest(frame, this.plain.endpoint.summary);
      return true;
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      return false;
    }
  }
}

/** REGION_READ, REGION_WRITE, REGION_WRITE_MULTI. */
const ACCESSES: readonly number[] = [9, 10, 15];
