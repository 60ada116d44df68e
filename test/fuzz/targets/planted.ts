/**
 * Parsers that are broken on purpose, each in one way: the fuzzer that does not find them is broken itself. All read a
 * stream of {u32 size, u32 count, count bytes} records, as a careless program would.
 */
import assert from "node:assert/strict";
import { eventfd } from "../../../native/index.js";
import { struct } from "../../../shared/struct/struct.js";
import type { Choices } from "../choices.js";
import { spoil } from "../mutate.js";
import type { Context, Instance, Target } from "../target.js";

const Record = struct({ size: "u32", count: "u32" });
const MAX_RECORD = 64;

export type Bug = "exception" | "rejection" | "hang" | "stall" | "crash" | "fds" | "memory" | "answer" | "canary";

const kept: Uint8Array[] = [];

/** Sums the bytes of all records of a stream. */
class Parser {
  /** Bytes behind the first 64 belong to somebody else. */
  readonly scratch = new Uint8Array(MAX_RECORD + 64).fill(0xa5, MAX_RECORD);
  damaged = false;
  sum = 0;

  constructor(readonly bug: Bug) {}

  async parse(bytes: Uint8Array): Promise<void> {
    const view = Record.view();
    const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at + Record.size <= bytes.length; ) {
      const { size, count } = view.at(data, at);
      const fits =
        size >= Record.size && size <= MAX_RECORD && count <= size - Record.size && size <= bytes.length - at;
      if (!fits) {
        await this.#misbehave(size, count);
        return;
      }
      for (let n = 0; n < count; n++) this.sum += bytes[at + Record.size + n];
      at += size;
    }
  }

  /** What a missing check does. */
  async #misbehave(size: number, count: number): Promise<void> {
    switch (this.bug) {
      case "exception":
        setImmediate(() => new Uint8Array(8).set(new Uint8Array(Math.min(count, 64)), 8));
        return;
      case "rejection":
        void Promise.reject(new Error(`a record of ${size} bytes`));
        return;
      case "hang":
        for (let at = 0; size === 0 && at < 1; at += size);
        return;
      case "stall":
        if (size < Record.size) await new Promise<void>((resolve) => setTimeout(resolve, 2 ** 30));
        return;
      case "crash":
        if (count > MAX_RECORD) process.kill(process.pid, "SIGSEGV");
        return;
      case "fds":
        eventfd(0);
        return;
      case "memory":
        kept.push(new Uint8Array(MAX_RECORD * 4096));
        return;
      case "answer":
        this.damaged ||= size > 2 ** 31;
        return;
      case "canary":
        this.scratch.fill(0, 0, Math.min(count, this.scratch.length));
    }
  }
}

function makeStream(random: Choices): Uint8Array {
  const records = Array.from({ length: random.between(1, 8) }, () => {
    const data = random.bytes(random.below(MAX_RECORD - Record.size));
    const record = Buffer.concat([Record.encode({ size: Record.size + data.length, count: data.length }), data]);
    if (random.chance(10)) spoil(random, record, Record);
    return record;
  });
  return Buffer.concat(records);
}

export function planted(bug: Bug): Target {
  return ({ trace }: Context): Instance => {
    const parser = new Parser(bug);
    return {
      async round(random) {
        const stream = makeStream(random);
        trace.note("parse", stream);
        await parser.parse(stream);
        await new Promise((resolve) => setImmediate(resolve));
      },
      async probe() {
        parser.sum = parser.damaged ? 1 : 0;
        await parser.parse(Buffer.concat([Record.encode({ size: 10, count: 2 }), Uint8Array.of(3, 4)]));
        assert.equal(parser.sum, 7, "the sum of a good stream");
        assert.ok(
          parser.scratch.subarray(MAX_RECORD).every((byte) => byte === 0xa5),
          "a canary was written",
        );
      },
      close() {},
    };
  };
}
