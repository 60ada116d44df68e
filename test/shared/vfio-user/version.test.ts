/** VERSION's body, read and written. */
import test from "ava";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import {
  MAX_DATA_XFER_SIZE,
  MAX_DIRTY_BITMAP_SIZE,
  MAX_DMA_MAPS,
  MAX_MESSAGE_FDS,
  MAX_VERSION_JSON_SIZE,
} from "../../../shared/limits.js";
import {
  DEFAULT_CAPABILITIES,
  encodeVersion,
  encodeVersionReply,
  parseVersion,
} from "../../../shared/vfio-user/version.js";
import { versionBody } from "./raw-client.js";

const QEMU =
  '{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,' +
  '"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}';

const parse = (body: Uint8Array) => parseVersion(body, 0, body.length);

test("what stock QEMU sends", (t) => {
  t.deepEqual(parse(versionBody(QEMU, { major: 0, minor: 0 })), {
    major: 0,
    minor: 0,
    capabilities: {
      maxMsgFds: 16,
      maxDataXferSize: 1048576,
      maxDmaMaps: 65535,
      pgsizes: 4096,
      writeMultiple: true,
      twinSocket: false,
      twinSocketFd: -1,
      migration: { pgsize: 4096, maxBitmapSize: 268435456 },
    },
  });
});

test("what is left out has the specification's defaults", (t) => {
  for (const body of [Buffer.from([0, 0, 1, 0]), versionBody("{}"), versionBody('{"capabilities":{}}')]) {
    t.deepEqual(parse(body).capabilities, DEFAULT_CAPABILITIES);
  }
});

test("unknown capabilities are ignored, names of Object's own are none", (t) => {
  const json =
    '{"capabilities":{"future":{"x":[1]},"__proto__":{"max_msg_fds":7},"twin_socket":{"supported":true}},"y":1}';
  t.deepEqual(parse(versionBody(json)).capabilities, { ...DEFAULT_CAPABILITIES, twinSocket: true });
});

test("the body may be anywhere in a buffer", (t) => {
  const body = versionBody('{"capabilities":{"max_msg_fds":3}}');
  const buffer = Buffer.concat([Buffer.alloc(7, 0xff), body, Buffer.alloc(9, 0xff)]);
  t.is(parseVersion(buffer, 7, body.length).capabilities.maxMsgFds, 3);
});

test("it says again what was said", (t) => {
  const capabilities = {
    maxMsgFds: 9,
    maxDataXferSize: 4096,
    maxDmaMaps: 5,
    pgsizes: 0x1000,
    writeMultiple: true,
    twinSocket: false,
    twinSocketFd: -1,
    migration: { pgsize: 4096, maxBitmapSize: 64 },
  };
  for (const [twinSocket, twinSocketFd] of [
    [false, -1],
    [true, -1],
    [true, 3],
  ] as const) {
    const said = { ...capabilities, twinSocket, twinSocketFd };
    t.deepEqual(parse(encodeVersion(1, said)), { major: 0, minor: 1, capabilities: said });
  }
});

test("the server's reply: the lower minor version; write_multiple and migration only when the client has them", (t) => {
  const reply = (minor: number, json: string) =>
    Buffer.from(encodeVersionReply(parse(versionBody(json, { major: 0, minor })))).toString("latin1");
  const json = (write: boolean, more = "") =>
    '{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,' +
    `"write_multiple":${write}${more}}}\0`;
  const migration = (size: number) => `,"migration":{"pgsize":4096,"max_bitmap_size":${size}}`;
  t.is(reply(0, QEMU), `\0\0\0\0${json(true, migration(MAX_DIRTY_BITMAP_SIZE))}`);
  const lower = '{"capabilities":{"migration":{"pgsize":8192,"max_bitmap_size":64}}}';
  t.is(reply(0, lower), `\0\0\0\0${json(false, migration(64))}`);
  t.is(reply(2, "{}"), `\0\0\x02\0${json(false)}`);
  t.is(reply(77, "{}"), `\0\0\x02\0${json(false)}`);
  const twin = Buffer.from(encodeVersionReply(parse(versionBody("{}")), 0)).toString("latin1");
  t.true(twin.endsWith(',"write_multiple":false,"twin_socket":{"supported":true,"fd_index":0}}}\0'));
});

const BAD: readonly [string, Uint8Array][] = [
  ["no body", Buffer.alloc(0)],
  ["a cut body", Buffer.alloc(3)],
  ["major version 1", versionBody("{}", { major: 1, minor: 0 })],
  ["no NUL", versionBody().subarray(0, -1)],
  ["too much JSON", versionBody(`{"x":"${"y".repeat(MAX_VERSION_JSON_SIZE)}"}`)],
  ["not UTF-8", Buffer.concat([Buffer.alloc(4), Buffer.from([0x22, 0xff, 0xfe, 0x22, 0])])],
  ...[
    "",
    "{",
    "[]",
    "null",
    "7",
    '"text"',
    '{"capabilities":[]}',
    '{"capabilities":null}',
    '{"capabilities":7}',
    '{"capabilities":{"max_msg_fds":"16"}}',
    '{"capabilities":{"max_msg_fds":-1}}',
    '{"capabilities":{"max_msg_fds":1.5}}',
    '{"capabilities":{"max_msg_fds":null}}',
    '{"capabilities":{"max_data_xfer_size":0}}',
    '{"capabilities":{"max_data_xfer_size":true}}',
    '{"capabilities":{"max_dma_maps":[1]}}',
    '{"capabilities":{"pgsizes":"4096"}}',
    '{"capabilities":{"write_multiple":1}}',
    '{"capabilities":{"twin_socket":true}}',
    '{"capabilities":{"twin_socket":{"supported":"yes"}}}',
    '{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}',
    '{"capabilities":{"twin_socket":{"supported":true,"fd_index":"0"}}}',
    '{"capabilities":{"migration":4096}}',
    '{"capabilities":{"migration":{"pgsize":"big"}}}',
  ].map((json): [string, Uint8Array] => [json, versionBody(json)]),
];

for (const [name, body] of BAD) {
  test(`refused: ${name.slice(0, 80) || "empty JSON"}`, (t) => {
    t.like(
      t.throws(() => parse(body), { instanceOf: ProtocolError }),
      { errno: Errno.EINVAL },
    );
  });
}

test("what is announced above what we have use for is taken for that", (t) => {
  const most = 2 ** 53;
  const announced = {
    max_msg_fds: most,
    max_data_xfer_size: 2 ** 32,
    max_dma_maps: 1e300,
    pgsizes: 1e300,
    twin_socket: { supported: true, fd_index: most },
    migration: { pgsize: 1e300, max_bitmap_size: most },
  };
  const body = versionBody(JSON.stringify({ capabilities: announced }));
  t.like(parseVersion(body, 0, body.length).capabilities, {
    maxMsgFds: MAX_MESSAGE_FDS,
    maxDataXferSize: MAX_DATA_XFER_SIZE,
    maxDmaMaps: MAX_DMA_MAPS,
    pgsizes: Number.MAX_SAFE_INTEGER,
    twinSocketFd: MAX_MESSAGE_FDS,
    migration: { pgsize: Number.MAX_SAFE_INTEGER, maxBitmapSize: 2 ** 32 - 1 },
  });
});
