/**
 * Headers, good and bad, and fds that nobody asked for. A header that makes no sense ends a stream, so the server may
 * close the connection; what it may not do is to wait for ever, to take it for a good one, or to die.
 */
import { Command, DeviceInfo, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { encodeAccess } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { commandName } from "../conduct.js";
import type { Context } from "../context.js";
import { describe, expectRefusalOrClose } from "../expect.js";
import { Failure } from "../verdict.js";
import { encode, type HeaderFields } from "../wire.js";

const HEADER = vfioUser("Header");
const COMMANDS = vfioUser("Commands");
const GET_INFO = Command.DEVICE_GET_INFO;
const INFO = DeviceInfo.encode({ argsz: DeviceInfo.size });

/** A header alone that claims `size` bytes: refused or closed, in time. */
async function refuseSize(context: Context, size: number): Promise<string> {
  const session = await context.connect();
  await session.send(encode(GET_INFO, undefined, { id: 7, size }));
  const message = await session.next();
  session.close();
  if (message === "silent") {
    throw new Failure(
      `an error or a closed connection after a header with the size ${size}`,
      `nothing within ${context.timeoutMs} ms`,
    );
  }
  const note = expectRefusalOrClose(message === "closed" ? undefined : message, GET_INFO);
  await context.expectUsable();
  return note;
}

const sizes: Check[] = [
  {
    id: "header-size-small",
    section: HEADER,
    title: "Sizes 0 to 15, less than a header, are refused",
    run: async (context) => {
      const notes = new Set<string>();
      for (let size = 0; size < Header.size; size++) notes.add(await refuseSize(context, size));
      return [...notes].join(", ");
    },
  },
  ...[0x7fffffff, 0xffffffff].map((size) => ({
    id: `header-size-${size.toString(16)}`,
    section: HEADER,
    title: `A size of 0x${size.toString(16)} is refused`,
    run: (context: Context) => refuseSize(context, size),
  })),
];

interface OddMessage {
  readonly id: string;
  readonly title: string;
  readonly section?: string;
  readonly command?: number;
  readonly body?: Uint8Array;
  readonly fields?: HeaderFields;
  /** Not to be taken for a good command. */
  readonly refuse?: boolean;
}

const ACCESS = encodeAccess({ region: 0, offset: 0, count: 0 });

const ODD_MESSAGES: readonly OddMessage[] = [
  ...[0, 14, 19, 999, 0xffff].map((command) => ({
    id: `command-${command}`,
    title: `Command ${command}, which there is not, is refused`,
    section: COMMANDS,
    command,
    refuse: true,
  })),
  ...[Command.DMA_READ, Command.DMA_WRITE].map((command) => ({
    id: `command-${commandName(command).toLowerCase().replace("_", "-")}`,
    title: `${commandName(command)}, which is for the server to send, is refused`,
    section: COMMANDS,
    command,
    body: ACCESS,
    refuse: true,
  })),
  {
    id: "header-error-bit",
    title: "A command with the error bit and an errno is survived",
    fields: { flags: HeaderFlags.ERROR, errno: 5 },
  },
  {
    id: "header-errno",
    title: "A command with an errno, which is reserved, is survived",
    fields: { errno: 0xffff_ffff },
  },
  { id: "header-reserved-flags", title: "A command with reserved flags is survived", fields: { flags: 0xffff_ffc0 } },
  {
    id: "header-long-body",
    title: "A request of 60,000 bytes is survived",
    body: Buffer.concat([INFO, new Uint8Array(60000)]),
  },
];

const oddMessages: Check[] = ODD_MESSAGES.map(
  ({ id, title, section = HEADER, command = GET_INFO, body, fields, refuse }) => ({
    id,
    section,
    title,
    run: async (context) => {
      const session = await context.connect();
      const answer = await session.request(command, body ?? INFO, fields);
      const note = refuse ? expectRefusalOrClose(answer, command) : describe(answer);
      await context.expectUsable(session);
      return note;
    },
  }),
);

/** Sends what is no command, then a command. What comes before that one's reply is for the server to choose. */
async function surviveNonCommand(context: Context, flags: number): Promise<string> {
  const session = await context.connect();
  await session.send(encode(GET_INFO, INFO, { id: 0x51, flags }));
  await session.send(encode(GET_INFO, INFO, { id: 0x52 }));
  let note = "ignored";
  for (;;) {
    const message = await session.next();
    if (message === "silent") {
      throw new Failure(
        "an answer to a command behind it, or a closed connection",
        `nothing in ${context.timeoutMs} ms`,
      );
    }
    if (message === "closed") {
      session.close();
      await context.expectUsable();
      return "connection closed";
    }
    if (message.id === 0x52) {
      session.close();
      return note;
    }
    note = expectRefusalOrClose(message, GET_INFO);
  }
}

const nonCommands: Check[] = [
  {
    id: "header-type-reply",
    section: HEADER,
    title: "A reply to nothing is ignored, refused, or ends the connection",
    run: (context) => surviveNonCommand(context, HeaderFlags.TYPE_REPLY),
  },
  {
    id: "header-type-unknown",
    section: HEADER,
    title: "Messages of types 2 to 15 are ignored, refused, or end the connection",
    run: async (context) => {
      const notes = new Set<string>();
      for (let type = 2; type <= HeaderFlags.TYPE_MASK; type++) notes.add(await surviveNonCommand(context, type));
      return [...notes].join(", ");
    },
  },
];

const fds: Check[] = [
  {
    id: "fds-superfluous",
    section: HEADER,
    title: "Fds with a command that takes none are survived",
    run: async (context) => {
      const session = await context.connect();
      const fds = [context.eventfd(), context.memory(4096)];
      const answer = await session.request(GET_INFO, INFO, { fds });
      await context.expectUsable(answer === undefined ? undefined : session);
      return describe(answer);
    },
  },
  {
    id: "fds-many",
    section: vfioUser("VFIO_USER_VERSION"),
    title: "200 fds, more than any server takes, are survived",
    run: async (context) => {
      const session = await context.connect();
      const fd = context.eventfd();
      const answer = await session.request(GET_INFO, INFO, { fds: new Array<number>(200).fill(fd) });
      session.close();
      await context.expectUsable();
      return describe(answer);
    },
  },
];

export const framing: readonly Check[] = [...sizes, ...oddMessages, ...nonCommands, ...fds];
