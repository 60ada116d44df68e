/** Messages on a stream: split, joined, many at once, with ids of the client's choice, and without a reply. */
import { setTimeout as sleep } from "node:timers/promises";
import { Command, DeviceInfo, HeaderFlags, IrqInfo, RegionInfo } from "../../../shared/spec/vfio-user.js";
import { type Check, vfioUser } from "../check.js";
import { commandName } from "../conduct.js";
import type { Context } from "../context.js";
import { describe, expectEqual, expectReply, expectSuccess, expectThat } from "../expect.js";
import type { Session } from "../session.js";
import { Failure } from "../verdict.js";
import { encode } from "../wire.js";

const HEADER = vfioUser("Header");
const CONCURRENCY = vfioUser("Command Concurrency");
const GET_INFO = Command.DEVICE_GET_INFO;
const INFO = DeviceInfo.encode({ argsz: DeviceInfo.size });
/** Long enough that two sends become two receive calls, on a machine that is not too busy. */
const BETWEEN_SENDS_MS = 1;

const stream: Check[] = [
  {
    id: "stream-split",
    section: HEADER,
    title: "A message may arrive in two pieces, split at any byte",
    run: async (context) => {
      const message = encode(GET_INFO, INFO, { id: 0x61 });
      let session = await context.connect();
      const failed: number[] = [];
      for (let at = 1; at < message.length; at++) {
        await session.send(message.subarray(0, at));
        await sleep(BETWEEN_SENDS_MS);
        await session.send(message.subarray(at));
        const answer = await session.answer(0x61, GET_INFO);
        if (describe(answer) === "accepted") continue;
        failed.push(at);
        session.close();
        session = await context.connect();
      }
      if (failed.length > 0) {
        const where = failed.length === message.length - 1 ? "every byte" : `bytes ${failed.join(", ")}`;
        throw new Failure("an answer wherever the message is split", `none when it is split at ${where}`);
      }
      return undefined;
    },
  },
  {
    id: "stream-byte-by-byte",
    section: HEADER,
    title: "A message may arrive byte by byte",
    run: async (context) => {
      const session = await context.connect();
      for (const byte of encode(GET_INFO, INFO, { id: 0x62 })) {
        await session.send(Uint8Array.of(byte));
        await sleep(BETWEEN_SENDS_MS);
      }
      expectSuccess(await session.answer(0x62, GET_INFO), GET_INFO);
      return undefined;
    },
  },
  {
    id: "stream-together",
    section: CONCURRENCY,
    title: "Several messages may arrive in one piece",
    run: async (context) => pipeline(await context.connect(), [0x71, 0x72, 0x73, 0x74, 0x75, 0x76]),
  },
  {
    id: "stream-one-and-a-half",
    section: CONCURRENCY,
    title: "A message may arrive together with the beginning of the next",
    run: async (context) => {
      const session = await context.connect();
      const first = encode(GET_INFO, INFO, { id: 0x77 });
      const second = encode(GET_INFO, INFO, { id: 0x78 });
      await session.send(Buffer.concat([first, second.subarray(0, 20)]));
      expectSuccess(await session.answer(0x77, GET_INFO), GET_INFO);
      await session.send(second.subarray(20));
      expectSuccess(await session.answer(0x78, GET_INFO), GET_INFO);
      return undefined;
    },
  },
];

/** Sends all at once and expects as many replies with these ids, in any order. */
async function pipeline(session: Session, ids: readonly number[]): Promise<undefined> {
  await session.send(Buffer.concat(ids.map((id) => encode(GET_INFO, INFO, { id }))));
  const came: number[] = [];
  for (const id of ids) {
    const message = await session.next();
    if (typeof message === "string") {
      const what = message === "closed" ? "a closed connection" : `nothing within ${session.timeoutMs} ms`;
      throw new Failure(`${ids.length} replies`, `${came.length}, then ${what}`);
    }
    expectSuccess(message, GET_INFO);
    // An id that the server made up is the business of the check of ids.
    came.push(ids.includes(message.id) ? message.id : id);
  }
  expectEqual("replies with the ids", came.sort().join(" "), [...ids].sort().join(" "));
  return undefined;
}

const ids: Check[] = [
  {
    id: "pipeline-same-id",
    section: HEADER,
    title: "Ids may be used again while a request is under way",
    run: async (context) => pipeline(await context.connect(), [0x81, 0x81, 0x81, 0x81]),
  },
  {
    id: "pipeline-64",
    section: CONCURRENCY,
    title: "64 requests may be sent before a reply is read",
    run: async (context) =>
      pipeline(
        await context.connect(),
        Array.from({ length: 64 }, (_, index) => 0x100 + index),
      ),
  },
  {
    id: "pipeline-ids-0-and-ffff",
    section: HEADER,
    title: "Ids 0 and 0xffff are ids like any other",
    run: async (context) => pipeline(await context.connect(), [0, 0xffff]),
  },
  {
    id: "pipeline-after-error",
    section: CONCURRENCY,
    title: "A request that is refused does not stop those behind it",
    run: async (context) => {
      const session = await context.connect();
      const bad = encode(Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: 32, index: 0xffff }), { id: 0x91 });
      await session.send(Buffer.concat([bad, encode(GET_INFO, INFO, { id: 0x92 })]));
      expectReply(await session.answer(0x91, Command.DEVICE_GET_REGION_INFO), Command.DEVICE_GET_REGION_INFO);
      expectSuccess(await session.answer(0x92, GET_INFO), GET_INFO);
      return undefined;
    },
  },
];

/** The request with NO_REPLY, then one of another kind: the first reply must be to that. */
async function expectNoReply(context: Context, command: number, body: Uint8Array): Promise<undefined> {
  const session = await context.connect();
  const fence = Command.DEVICE_GET_IRQ_INFO;
  const silent = encode(command, body, { id: 0xa1, flags: HeaderFlags.NO_REPLY });
  await session.send(Buffer.concat([silent, encode(fence, IrqInfo.encode({ argsz: IrqInfo.size }), { id: 0xa2 })]));
  const message = await session.next();
  if (message === "silent") throw new Failure("a reply to the next command", `nothing in ${context.timeoutMs} ms`);
  if (message === "closed") throw new Failure("a reply to the next command", "a closed connection");
  expectThat(
    message.command === fence,
    `no reply to ${commandName(command)} with NO_REPLY`,
    `a reply to ${commandName(message.command)}: ${describe(message)}`,
  );
  return undefined;
}

const noReply: Check[] = [
  {
    id: "no-reply",
    section: HEADER,
    title: "A command with NO_REPLY is not answered",
    run: (context) => expectNoReply(context, GET_INFO, INFO),
  },
  {
    id: "no-reply-error",
    section: HEADER,
    title: "A command with NO_REPLY that is wrong is not answered either",
    run: (context) =>
      expectNoReply(context, Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: 32, index: 0xffff })),
  },
];

export const pipelining: readonly Check[] = [...stream, ...ids, ...noReply];
