/** Messages on a stream: split, joined, many at once, with ids of the client's choice, and without a reply. */
import { setTimeout as sleep } from "node:timers/promises";
import { Command, HeaderFlags, IrqInfo } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import { describe, expectEqual, expectReply, expectSuccess, expectThat, Failure } from "../expect.js";
import { commandName, encode, encodeRegionInfo, GET_INFO_BODY } from "../messages.js";
import type { CheckerSession } from "../session.js";

const HEADER = vfioUser("Header");
const CONCURRENCY = vfioUser("Command Concurrency");
const { DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO } = Command;
const NO_REGION = encodeRegionInfo(0xffff);
/** Long enough that two sends become two receive calls, on a machine that is not too busy. */
const BETWEEN_SENDS_MS = 1;

const getInfo = (id: number) => encode(DEVICE_GET_INFO, GET_INFO_BODY, { id });

async function expectInfo(session: CheckerSession, id: number): Promise<void> {
  expectSuccess(await session.answer(id, DEVICE_GET_INFO), DEVICE_GET_INFO);
}

/** Sends all at once and expects as many replies with these ids, in any order. */
const pipeline = (ids: readonly number[]) => async (session: CheckerSession) => {
  await session.send(Buffer.concat(ids.map(getInfo)));
  const came: number[] = [];
  for (const id of ids) {
    const message = await session.next(`${ids.length} replies, and number ${came.length + 1} of them`);
    expectThat(message !== undefined, `${ids.length} replies`, `${came.length}, then a closed connection`);
    const { id: found } = expectSuccess(message, DEVICE_GET_INFO);
    // An id that the server made up is the business of the check of ids.
    came.push(ids.includes(found) ? found : id);
  }
  expectEqual("replies with the ids", came.sort().join(" "), [...ids].sort().join(" "));
  return undefined;
};

/** The request with NO_REPLY, then one of another kind: the first reply must be to that. */
const noReply = (command: number, body: Uint8Array) => async (session: CheckerSession) => {
  const silent = encode(command, body, { id: 0xa1, flags: HeaderFlags.NO_REPLY });
  const next = encode(DEVICE_GET_IRQ_INFO, IrqInfo.encode({ argsz: IrqInfo.size }), { id: 0xa2 });
  await session.send(Buffer.concat([silent, next]));
  const message = await session.next("a reply to the next command");
  if (message === undefined) throw new Failure("a reply to the next command", "a closed connection");
  const came = `a reply to ${commandName(message.command)}: ${describe(message)}`;
  expectThat(message.command === DEVICE_GET_IRQ_INFO, `no reply to ${commandName(command)} with NO_REPLY`, came);
  return undefined;
};

export const pipelining = topic({ section: HEADER }, [
  {
    id: "stream-split",
    title: "A message may arrive in two pieces, split at any byte",
    connected: async (first, context) => {
      const message = getInfo(0x61);
      const failed: number[] = [];
      let session = first;
      for (let at = 1; at < message.length; at++) {
        await session.send(message.subarray(0, at));
        await sleep(BETWEEN_SENDS_MS);
        await session.send(message.subarray(at));
        if (describe(await session.answer(0x61, DEVICE_GET_INFO)) === "accepted") continue;
        failed.push(at);
        session.close();
        session = await context.connect();
      }
      const where = failed.length === message.length - 1 ? "every byte" : `bytes ${failed.join(", ")}`;
      const came = `none when it is split at ${where}`;
      expectThat(failed.length === 0, "an answer wherever the message is split", came);
    },
  },
  {
    id: "stream-byte-by-byte",
    title: "A message may arrive byte by byte",
    connected: async (session) => {
      for (const byte of getInfo(0x62)) {
        await session.send(Uint8Array.of(byte));
        await sleep(BETWEEN_SENDS_MS);
      }
      await expectInfo(session, 0x62);
    },
  },
  {
    id: "stream-together",
    section: CONCURRENCY,
    title: "Several messages may arrive in one piece",
    connected: pipeline([0x71, 0x72, 0x73, 0x74, 0x75, 0x76]),
  },
  {
    id: "stream-one-and-a-half",
    section: CONCURRENCY,
    title: "A message may arrive together with the beginning of the next",
    connected: async (session) => {
      const [first, second] = [getInfo(0x77), getInfo(0x78)];
      await session.send(Buffer.concat([first, second.subarray(0, 20)]));
      await expectInfo(session, 0x77);
      await session.send(second.subarray(20));
      await expectInfo(session, 0x78);
    },
  },
  {
    id: "pipeline-same-id",
    title: "Ids may be used again while a request is in flight",
    connected: pipeline([0x81, 0x81, 0x81, 0x81]),
  },
  {
    id: "pipeline-64",
    section: CONCURRENCY,
    title: "64 requests may be sent before a reply is read",
    connected: pipeline(Array.from({ length: 64 }, (_, index) => 0x100 + index)),
  },
  { id: "pipeline-ids-0-and-ffff", title: "Ids 0 and 0xffff are ids like any other", connected: pipeline([0, 0xffff]) },
  {
    id: "pipeline-after-error",
    section: CONCURRENCY,
    title: "A request that is refused does not stop those behind it",
    connected: async (session) => {
      const bad = encode(DEVICE_GET_REGION_INFO, NO_REGION, { id: 0x91 });
      await session.send(Buffer.concat([bad, getInfo(0x92)]));
      expectReply(await session.answer(0x91, DEVICE_GET_REGION_INFO), DEVICE_GET_REGION_INFO);
      await expectInfo(session, 0x92);
    },
  },
  {
    id: "no-reply",
    title: "A command with NO_REPLY is not answered",
    connected: noReply(DEVICE_GET_INFO, GET_INFO_BODY),
  },
  {
    id: "no-reply-error",
    title: "A command with NO_REPLY that is wrong is not answered either",
    connected: noReply(DEVICE_GET_REGION_INFO, NO_REGION),
  },
]);
