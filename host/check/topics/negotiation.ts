/**
 * VERSION: what is agreed on, and what a server makes of a bad proposal. A refusal is an error reply or a closed
 * connection.
 *
 * Left out: that the capabilities in the reply are a subset of those proposed, as far as it concerns limits
 * (max_msg_fds and so on). Read literally the specification demands it, but a limit in the reply is the server's own,
 * and every server we know announces its limits unasked. The subset is demanded of what switches something on:
 * twin_socket and write_multiple.
 */
import { fileStatus } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { KiB } from "../../../shared/limits.js";
import { Command, Version } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { type Capabilities, parseCapabilities } from "../device.js";
import { describe, expectEqual, expectRefusalOrClose, expectSuccess, expectThat, Failure } from "../expect.js";
import { encodeVersion, GET_INFO_BODY, isError, type Message, NO_BYTES, OUR_CAPABILITIES } from "../messages.js";

const { VERSION } = Command;
const capabilitiesJson = (capabilities: object) => JSON.stringify({ capabilities });
const OURS = capabilitiesJson(OUR_CAPABILITIES);
const json = (text: string) => encodeVersion({ json: text });

/** A proposal that must be taken. */
async function propose(context: Context, body: Uint8Array): Promise<Message> {
  const { session, answer } = await context.first(VERSION, body);
  const reply = expectSuccess(answer, VERSION);
  expectThat(reply.body.length >= Version.size, "a reply with a version", `${reply.body.length} bytes`);
  await context.expectUsable(session);
  session.close();
  return reply;
}

interface Proposal {
  readonly id: string;
  readonly title: string;
  readonly minor?: number;
  readonly json?: string;
}

const GOOD_PROPOSALS: readonly Proposal[] = [
  { id: "minor-0", title: "Version 0.0 is agreed on", json: OURS },
  { id: "minor-1", title: "Version 0.1 is answered with 0.1 or less", minor: 1, json: OURS },
  { id: "minor-2", title: "Version 0.2 is answered with 0.2 or less", minor: 2, json: OURS },
  {
    id: "minor-newer",
    title: "A newer minor version is answered with one that the server has",
    minor: 999,
    json: OURS,
  },
  { id: "no-data", title: "The version data is optional" },
  { id: "empty-object", title: "The capabilities are optional", json: "{}" },
  { id: "empty-capabilities", title: "Each capability is optional", json: capabilitiesJson({}) },
  {
    id: "unknown-capability",
    title: "Capabilities that the server does not know are ignored",
    json: JSON.stringify({ x_unknown: [1], capabilities: { ...OUR_CAPABILITIES, x_unknown: { a: [null, "b"] } } }),
  },
];

interface BadProposal {
  readonly id: string;
  readonly title: string;
  readonly body: Uint8Array;
}

const REFUSED: readonly BadProposal[] = [
  {
    id: "major",
    title: "A major version that the server does not have",
    body: encodeVersion({ major: 999, json: OURS }),
  },
  { id: "no-body", title: "A VERSION without a body", body: NO_BYTES },
  { id: "short-body", title: "A VERSION of 3 bytes", body: new Uint8Array(3) },
  { id: "json-unterminated", title: "Version data without its NUL", body: json("{}").slice(0, -1) },
  { id: "json-brace", title: "JSON that ends too early", body: json('{"capabilities":{') },
  { id: "json-quote", title: "JSON with an open string", body: json('"') },
  { id: "json-garbage", title: "Version data that is no JSON", body: json("vfio") },
  {
    id: "json-utf8",
    title: "Version data that is not UTF-8",
    body: Buffer.concat([json('{"capabilities":"').slice(0, -1), Uint8Array.of(0xff, 0xfe, 34, 125, 0)]),
  },
];

/** The specification does not say that these are to be refused. */
const SURVIVED: readonly BadProposal[] = [
  { id: "json-array", title: "Version data that is an array", body: json("[]") },
  { id: "json-null", title: "Version data that is null", body: json("null") },
  { id: "json-deep", title: "JSON with 2000 levels", body: json(`{"x":${"[".repeat(2000)}${"]".repeat(2000)}}`) },
  { id: "json-large", title: "Version data of 512 KiB", body: json(`${OURS}${" ".repeat(512 * KiB)}`) },
];

/** Values of a wrong type or range for one capability. */
const WRONG_CAPABILITIES = [
  ["max-msg-fds-type", "max_msg_fds that is a string", { max_msg_fds: "foo" }],
  ["max-msg-fds-negative", "max_msg_fds of -1", { max_msg_fds: -1 }],
  ["max-msg-fds-huge", "max_msg_fds of 2^40", { max_msg_fds: 2 ** 40 }],
  ["max-data-type", "max_data_xfer_size that is a string", { max_data_xfer_size: "1" }],
  ["max-data-negative", "max_data_xfer_size of -1", { max_data_xfer_size: -1 }],
  ["max-data-zero", "max_data_xfer_size of 0", { max_data_xfer_size: 0 }],
  ["max-dma-maps-type", "max_dma_maps that is an object", { max_dma_maps: {} }],
  ["pgsizes-type", "pgsizes that is a string", { pgsizes: "4k" }],
  ["pgsizes-zero", "pgsizes of 0", { pgsizes: 0 }],
  ["twin-socket-type", "twin_socket that is a number", { twin_socket: 1 }],
  ["twin-socket-supported-type", "twin_socket.supported that is a string", { twin_socket: { supported: "yes" } }],
  ["write-multiple-type", "write_multiple that is a number", { write_multiple: 1 }],
] as const;

const refused = ({ id, title, body }: BadProposal) =>
  badProposal(id, `${title} is refused`, body, expectRefusalOrClose);
const survived = ({ id, title, body }: BadProposal) => badProposal(id, `${title} is survived`, body, describe);

function badProposal(id: string, title: string, body: Uint8Array, judge: typeof expectRefusalOrClose) {
  return {
    id,
    title,
    run: async (context: Context) => {
      const { session, answer } = await context.first(VERSION, body);
      const note = judge(answer, VERSION);
      await context.expectNextClient(session);
      return note;
    },
  };
}

/** The capabilities of a reply, with the strictness that the others leave out. */
function strictCapabilities(reply: Message): Capabilities {
  const text = Buffer.from(reply.body.subarray(Version.size));
  if (text.length === 0) return {};
  expectEqual("the last byte of the version data to be", text[text.length - 1], 0);
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text.subarray(0, -1)));
  } catch {
    throw new Failure("version data in JSON, followed by one NUL", JSON.stringify(text.toString("latin1")));
  }
  const isObject = (value: unknown) => typeof value === "object" && value !== null && !Array.isArray(value);
  expectThat(isObject(parsed), "version data that is an object", JSON.stringify(parsed));
  const { capabilities = {} } = parsed as { capabilities?: unknown };
  expectThat(isObject(capabilities), "capabilities that are an object", JSON.stringify(capabilities));
  return capabilities as Capabilities;
}

const CAPABILITY_TYPES: Readonly<Record<string, string>> = {
  max_msg_fds: "number",
  max_data_xfer_size: "number",
  max_dma_maps: "number",
  pgsizes: "number",
  twin_socket: "object",
  write_multiple: "boolean",
};

export const negotiation = topic({ section: vfioUser("VFIO_USER_VERSION"), prefix: "version-" }, [
  ...GOOD_PROPOSALS.map(({ id, title, minor = 0, json }) => ({
    id,
    title,
    run: async (context: Context) => {
      const reply = await propose(context, encodeVersion({ minor, json }));
      const version = Version.view(reply.data);
      expectEqual("the major version", version.major, 0);
      expectThat(version.minor <= minor, `a minor version of at most ${minor}`, version.minor);
      return `0.${version.minor}`;
    },
  })),
  {
    id: "reply-data",
    title: "The reply's version data is NUL-terminated JSON with capabilities of the right types",
    run: async (context) => {
      const capabilities = strictCapabilities(await propose(context, json(OURS)));
      for (const [name, type] of Object.entries(CAPABILITY_TYPES)) {
        const value = capabilities[name];
        if (value === undefined) continue;
        expectThat(typeof value === type && value !== null, `${name} to be a ${type}`, JSON.stringify(value));
        const fits = type !== "number" || (Number.isSafeInteger(value) && (value as number) >= 0);
        expectThat(fits, `${name} to be a whole number from 0 on`, JSON.stringify(value));
      }
      return JSON.stringify(capabilities);
    },
  },
  {
    id: "reply-subset",
    title: "The reply switches nothing on that was not proposed",
    run: async (context) => {
      const reply = await propose(context, json(capabilitiesJson({ max_msg_fds: 8 })));
      const capabilities = parseCapabilities(reply.body);
      const twin = capabilities.twin_socket as { supported?: unknown } | undefined;
      expectThat(twin?.supported !== true, "no twin socket, as none was proposed", JSON.stringify(twin));
      expectThat(capabilities.write_multiple !== true, "no write_multiple, as it was not proposed", "true");
      expectThat(reply.fds.length === 0, "no fds with the reply", reply.fds.length);
      expectThat(!Object.hasOwn(capabilities, "x_unknown"), "no capability x_unknown", "one");
    },
  },
  {
    id: "twin-socket",
    title: "A proposed twin socket is declined, or comes as a socket at fd_index",
    run: async (context) => {
      const body = json(capabilitiesJson({ ...OUR_CAPABILITIES, twin_socket: { supported: true } }));
      const reply = await propose(context, body);
      const twin = parseCapabilities(reply.body).twin_socket as { supported?: unknown; fd_index?: unknown } | undefined;
      if (twin?.supported !== true) return "declined";
      const index = Number(twin.fd_index);
      const came = `${twin.fd_index} of ${reply.fds.length}`;
      expectThat(reply.fds[index] !== undefined, "fd_index to be that of an fd of the reply", came);
      // The reply's fds are closed with the session, which `propose` did; so a session of its own looks at the fd.
      const again = expectSuccess((await context.first(VERSION, body)).answer, VERSION);
      expectEqual("the fd at fd_index to be a", fileStatus(again.fds[index]).kind, "socket");
      return "enabled";
    },
  },
  ...REFUSED.map(refused),
  ...SURVIVED.map(survived),
  refused({ id: "capabilities-type", title: "Capabilities that are a string", body: json('{"capabilities":"23"}') }),
  ...WRONG_CAPABILITIES.map(([id, title, wrong]) =>
    survived({ id, title, body: json(capabilitiesJson({ ...OUR_CAPABILITIES, ...wrong })) }),
  ),
  {
    id: "missing",
    title: "A first command other than VERSION is refused",
    run: async (context) => {
      const { session, answer } = await context.first(Command.DEVICE_GET_INFO, GET_INFO_BODY);
      const note = expectRefusalOrClose(answer, Command.DEVICE_GET_INFO);
      await context.expectNextClient(session);
      return note;
    },
  },
  {
    id: "twice",
    title: "A second VERSION is survived",
    connected: async (session, context) => {
      const answer = await session.request(VERSION, json(OURS));
      if (answer === undefined || isError(answer)) await context.expectNextClient(session);
      else await context.expectUsable(session);
      return describe(answer);
    },
  },
  {
    id: "fds",
    title: "Fds that come with VERSION are survived",
    run: async (context) => {
      const { session, answer } = await context.first(VERSION, json(OURS), [context.eventfd(), context.memory(4096)]);
      await context.expectNextClient(session);
      return describe(answer);
    },
  },
  {
    id: "refused-then-good",
    title: "After a refusal a new connection is negotiated afresh",
    run: async (context) => {
      const bad = await context.connectRaw();
      await bad.request(VERSION, encodeVersion({ major: Errno.EINVAL, json: OURS }));
      bad.close();
      await context.expectConnectionKept(await context.connect());
    },
  },
]);
