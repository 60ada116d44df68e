/**
 * Headers, good and bad, and fds that nobody asked for. A header that makes no sense ends a stream, so the server may
 * close the connection; what it may not do is to wait for ever, to take it for a good one, or to die.
 */
import { Command, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { describe, expectRefusalOrClose } from "../expect.js";
import { commandName, encode, encodeAccess, GET_INFO_BODY, type HeaderFields } from "../messages.js";
import type { CheckerSession } from "../session.js";

const HEADER = { section: vfioUser("Header") };
const { DEVICE_GET_INFO, DMA_READ, DMA_WRITE } = Command;
/** Commands that there are not. */
const NO_COMMANDS = [0, 14, 19, 999, 0xffff];
const ACCESS = encodeAccess({ region: 0, offset: 0, count: 0 });

/** A header alone that claims `size` bytes: refused or closed, in time. */
async function refuseSize(context: Context, size: number): Promise<string> {
  const session = await context.connect();
  await session.send(encode(DEVICE_GET_INFO, undefined, { id: 7, size }));
  const answer = await session.next(`an error or a closed connection after a header with the size ${size}`);
  const note = expectRefusalOrClose(answer, DEVICE_GET_INFO);
  await context.expectNextClient(session);
  return note;
}

/** Sends what is no command, then a command. What comes before that one's reply is for the server to choose. */
async function surviveNonCommand(context: Context, flags: number): Promise<string> {
  const session = await context.connect();
  await session.send(encode(DEVICE_GET_INFO, GET_INFO_BODY, { id: 0x51, flags }));
  await session.send(encode(DEVICE_GET_INFO, GET_INFO_BODY, { id: 0x52 }));
  for (let note = "ignored"; ; ) {
    const message = await session.next("an answer to a command behind it, or a closed connection");
    if (message === undefined) {
      await context.expectNextClient(session);
      return "connection closed";
    }
    if (message.id === 0x52) {
      session.close();
      return note;
    }
    note = expectRefusalOrClose(message, DEVICE_GET_INFO);
  }
}

/** The different notes of a check that is done for each of some numbers. */
async function forEach(from: number, to: number, check: (value: number) => Promise<string>): Promise<string> {
  const notes = new Set<string>();
  for (let value = from; value <= to; value++) notes.add(await check(value));
  return [...notes].join(", ");
}

/** A request that is not to be taken for a good one. */
const refused = (command: number, body: Uint8Array) => async (session: CheckerSession, context: Context) => {
  const note = expectRefusalOrClose(await session.request(command, body), command);
  await context.expectUsable(session);
  return note;
};

/** A GET_INFO that the server may take for a good one or not. */
const survived =
  (fields: HeaderFields, body = GET_INFO_BODY) =>
  async (session: CheckerSession, context: Context) => {
    const note = describe(await session.request(DEVICE_GET_INFO, body, fields));
    await context.expectUsable(session);
    return note;
  };

export const framing = [
  ...topic(HEADER, [
    {
      id: "header-size-small",
      title: "Sizes 0 to 15, less than a header, are refused",
      run: (context) => forEach(0, Header.size - 1, (size) => refuseSize(context, size)),
    },
    ...[0x7fffffff, 0xffffffff].map((size) => ({
      id: `header-size-${size.toString(16)}`,
      title: `A size of 0x${size.toString(16)} is refused`,
      run: (context: Context) => refuseSize(context, size),
    })),
  ]),
  ...topic({ section: vfioUser("Commands"), prefix: "command-" }, [
    ...NO_COMMANDS.map((command) => ({
      id: `${command}`,
      title: `Command ${command}, which there is not, is refused`,
      connected: refused(command, GET_INFO_BODY),
    })),
    ...[DMA_READ, DMA_WRITE].map((command) => ({
      id: commandName(command).toLowerCase().replace("_", "-"),
      title: `${commandName(command)}, which is for the server to send, is refused`,
      connected: refused(command, ACCESS),
    })),
  ]),
  ...topic(HEADER, [
    {
      id: "header-error-bit",
      title: "A command with the error bit and an errno is survived",
      connected: survived({ flags: HeaderFlags.ERROR, errno: 5 }),
    },
    {
      id: "header-errno",
      title: "A command with an errno, which is reserved, is survived",
      connected: survived({ errno: 0xffff_ffff }),
    },
    {
      id: "header-reserved-flags",
      title: "A command with reserved flags is survived",
      connected: survived({ flags: 0xffff_ffc0 }),
    },
    {
      id: "header-long-body",
      title: "A request of 60,000 bytes is survived",
      connected: survived({}, Buffer.concat([GET_INFO_BODY, new Uint8Array(60000)])),
    },
    {
      id: "header-type-reply",
      title: "A reply to nothing is ignored, refused, or ends the connection",
      run: (context) => surviveNonCommand(context, HeaderFlags.TYPE_REPLY),
    },
    {
      id: "header-type-unknown",
      title: "Messages of types 2 to 15 are ignored, refused, or end the connection",
      run: (context) => forEach(2, HeaderFlags.TYPE_MASK, (type) => surviveNonCommand(context, type)),
    },
    {
      id: "fds-superfluous",
      title: "Fds with a command that takes none are survived",
      connected: async (session, context) => {
        const fds = [context.eventfd(), context.memory(4096)];
        const answer = await session.request(DEVICE_GET_INFO, GET_INFO_BODY, { fds });
        if (answer === undefined) await context.expectNextClient(session);
        else await context.expectUsable(session);
        return describe(answer);
      },
    },
    {
      id: "fds-many",
      section: vfioUser("VFIO_USER_VERSION"),
      title: "200 fds, more than any server takes, are survived",
      connected: async (session, context) => {
        const fds = new Array<number>(200).fill(context.eventfd());
        const answer = await session.request(DEVICE_GET_INFO, GET_INFO_BODY, { fds });
        await context.expectNextClient(session);
        return describe(answer);
      },
    },
  ]),
];
