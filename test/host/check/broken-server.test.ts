/**
 * The checker can fail: servers that do one thing wrong each, and exactly the checks that find it. A good server stands
 * behind a meddler, so what is wrong is wrong on the wire.
 */
import test from "ava";
import { Errno } from "../../../shared/errors.js";
import {
  Command,
  DeviceFeature,
  DmaMap,
  DmaUnmap,
  Header,
  HeaderFlags,
  IrqSet,
  IrqSetFlags,
  RegionAccess,
  RegionCap,
  RegionCapHeader,
  RegionInfo,
  RegionType,
  Version,
} from "../../../shared/spec/vfio-user.js";
import { check, expectFailures, withServer } from "./fixture.js";
import { OWN_REGION } from "./full-device.js";
import type { Meddling, Passing } from "./meddler.js";

interface Case {
  readonly name: string;
  readonly meddling: Meddling;
  readonly fails: readonly string[];
  /** For those that do not answer. */
  readonly timeoutMs?: number;
}

const isError = (message: Passing) => (message.flags & HeaderFlags.ERROR) !== 0;

function succeed(reply: Passing, body: Uint8Array = new Uint8Array(0)): void {
  reply.flags = HeaderFlags.TYPE_REPLY;
  reply.errno = 0;
  reply.body = Buffer.from(body);
}

/** A success in place of the error that `wrong` recognises. */
function accept(
  command: number,
  body: (request: Passing) => Uint8Array,
  wrong: (request: Passing, errno: number) => boolean = () => true,
): Meddling {
  return {
    reply: (reply, request) => {
      if (request.command !== command || !isError(reply) || !wrong(request, reply.errno)) return false;
      succeed(reply, body(request));
      return false;
    },
  };
}

function change(command: number, change: (reply: Passing, request: Passing) => void): Meddling {
  return {
    reply: (reply, request) => {
      if (request.command === command && !isError(reply)) change(reply, request);
      return false;
    },
  };
}

function versionJson(reply: Passing): { capabilities: Record<string, unknown> } {
  return JSON.parse(reply.body.subarray(4, -1).toString());
}

function setVersionJson(reply: Passing, json: unknown, end = "\0"): void {
  reply.body = Buffer.concat([reply.body.subarray(0, 4), Buffer.from(JSON.stringify(json) + end)]);
}

/** The maps with an fd that a client leaves behind are in the next one's way. */
function earlierMaps(): Meddling {
  let mapped = 0;
  let left = 0;
  return {
    request: ({ command, body }, answer) => {
      if (command === Command.VERSION) [left, mapped] = [left + mapped, 0];
      if (command !== Command.DMA_MAP || left === 0 || body.readUInt32LE(DmaMap.offsets.address) !== 0x1000)
        return false;
      left = 0;
      answer({ flags: HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno: Errno.EEXIST });
      return true;
    },
    reply: (reply, { command, fds }) => {
      if (command === Command.DMA_MAP && !isError(reply) && fds.length > 0) mapped++;
      if (command === Command.DMA_UNMAP && !isError(reply)) mapped = 0;
      return false;
    },
  };
}

/**
 * The reply about the region of the device's own, changed; it has a TYPE capability and behind it a SPARSE_MMAP one.
 */
function changeOwnRegion(change: (reply: Passing) => void): Meddling {
  return {
    reply: (reply, { command }) => {
      const isIt = command === Command.DEVICE_GET_REGION_INFO && !isError(reply) && reply.body.length > SPARSE_AT;
      if (isIt && reply.body.readUInt32LE(RegionInfo.offsets.index) === OWN_REGION) change(reply);
      return false;
    },
  };
}
const TYPE_AT = RegionInfo.size;
const SPARSE_AT = TYPE_AT + RegionCapHeader.size + RegionType.size;
const { next: NEXT, version: VERSION } = RegionCapHeader.offsets;
/** Those that walk the list of a region's capabilities. */
const CHAIN_CHECKS = [
  "region-info-capabilities",
  "region-info-capability-versions",
  "region-info-type",
  "region-info-areas",
  "region-info-mmap",
];
const chain = (name: string, change: (body: Buffer) => void, fails: readonly string[] = CHAIN_CHECKS): Case => ({
  name: `capabilities: ${name}`,
  meddling: changeOwnRegion(({ body }) => change(body)),
  fails,
});
const BAD_CHAINS: readonly Case[] = [
  chain("in the fixed part", (body) => body.writeUInt32LE(8, RegionInfo.offsets.capOffset)),
  chain("none, in spite of the flag", (body) => body.writeUInt32LE(0, RegionInfo.offsets.capOffset)),
  chain("behind the reply", (body) => body.writeUInt32LE(body.length, TYPE_AT + NEXT)),
  chain("a header that is cut by the reply's end", (body) => body.writeUInt32LE(body.length - 4, TYPE_AT + NEXT)),
  chain("one at an odd place", (body) => body.writeUInt32LE(SPARSE_AT + 1, TYPE_AT + NEXT)),
  chain("one in another", (body) => body.writeUInt32LE(TYPE_AT + 4, TYPE_AT + NEXT)),
  chain("one after itself", (body) => body.writeUInt32LE(SPARSE_AT, SPARSE_AT + NEXT)),
  chain("the first after the last", (body) => body.writeUInt32LE(TYPE_AT, SPARSE_AT + NEXT)),
  chain("a type of another version", (body) => body.writeUInt16LE(2, TYPE_AT + VERSION), [
    "region-info-capability-versions",
  ]),
  chain("no type, but areas twice", (body) => body.writeUInt16LE(RegionCap.SPARSE_MMAP, TYPE_AT), [
    "region-info-capability-versions",
    "region-info-type",
    "region-info-areas",
    "region-info-mmap",
  ]),
  {
    name: "capabilities: a type that is cut by the reply's end",
    meddling: changeOwnRegion((reply) => {
      reply.body = reply.body.subarray(0, SPARSE_AT - 4);
      reply.body.writeUInt32LE(reply.body.length, 0);
      reply.body.writeUInt32LE(0, TYPE_AT + NEXT);
    }),
    fails: ["region-info-type", "region-info-argsz-growth"],
  },
  chain("more areas than there is room for", (body) => body.writeUInt32LE(3, SPARSE_AT + RegionCapHeader.size), [
    "region-info-areas",
    "region-info-mmap",
  ]),
  chain("an area behind the region's end", (body) => body.writeUInt32LE(0x4000, SPARSE_AT + 16), ["region-info-areas"]),
  {
    name: "capabilities: more than the argsz in the reply",
    meddling: changeOwnRegion((reply) => {
      reply.body = Buffer.concat([reply.body, Buffer.alloc(8)]);
    }),
    fails: ["region-info", "region-info-argsz-growth"],
  },
];

const region = ({ body }: Passing) => body.readUInt32LE(RegionAccess.offsets.region);
const offset = ({ body }: Passing) => body.readUInt32LE(RegionAccess.offsets.offset);
const echo = (size: number) => (request: Passing) => request.body.subarray(0, size);
const MAP_OVERLAPS = ["same", "inside", "around", "begin", "end"].map((each) => `dma-map-overlap-${each}`);
const INDEX_CHECKS = ["region-info-index", "region-info-index-max"];

const CASES: readonly Case[] = [
  ...BAD_CHAINS,
  {
    name: "another id in replies",
    meddling: change(Command.DEVICE_GET_IRQ_INFO, (reply) => {
      reply.id ^= 1;
    }),
    fails: ["reply-id"],
  },
  {
    name: "another command in replies",
    meddling: change(Command.DEVICE_GET_REGION_IO_FDS, (reply) => {
      reply.command = Command.DEVICE_GET_INFO;
    }),
    fails: ["reply-command"],
  },
  {
    name: "error replies with a body",
    meddling: {
      reply: (reply, { command }) => {
        if (isError(reply) && command === Command.REGION_WRITE) reply.body = Buffer.alloc(16);
        return false;
      },
    },
    fails: ["reply-error-alone"],
  },
  {
    name: "error replies with fds",
    meddling: {
      reply: (reply, { command }) => {
        if (isError(reply) && command === Command.DEVICE_GET_IRQ_INFO) reply.fds = [0];
        return false;
      },
    },
    fails: ["reply-error-fds"],
  },
  {
    name: "messages of a type that there is not",
    meddling: {
      reply: (_reply, { command }, send) => {
        if (command === Command.DEVICE_RESET) send({ flags: 3 });
        return false;
      },
    },
    fails: ["reply-type"],
  },
  {
    name: "commands that only a client sends",
    meddling: {
      reply: (_reply, { command }, send) => {
        if (command === Command.DEVICE_RESET) send({ command: Command.DEVICE_GET_INFO, flags: 0 });
        return false;
      },
    },
    fails: ["server-commands"],
  },
  {
    name: "a minor version above the client's",
    meddling: change(Command.VERSION, (reply, request) => {
      if (request.body.readUInt16LE(2) === 1) reply.body.writeUInt16LE(2, 2);
    }),
    fails: ["version-minor-1"],
  },
  {
    name: "another major version",
    meddling: {
      reply: (reply, { body, command }, send) => {
        if (command !== Command.VERSION || !isError(reply) || body.length < 4 || body.readUInt16LE(0) !== 999)
          return false;
        send({ flags: HeaderFlags.TYPE_REPLY, errno: 0, body: Buffer.from(Version.encode({ major: 999 })) });
        return true;
      },
    },
    fails: ["version-major"],
  },
  {
    name: "version data without a NUL",
    meddling: change(Command.VERSION, (reply) => setVersionJson(reply, versionJson(reply), "")),
    fails: ["version-reply-data"],
  },
  {
    name: "capabilities of a wrong type",
    meddling: change(Command.VERSION, (reply) => {
      setVersionJson(reply, { capabilities: { ...versionJson(reply).capabilities, max_msg_fds: "16" } });
    }),
    fails: ["version-reply-data"],
  },
  {
    name: "a twin socket, unasked and with the index of no fd",
    meddling: change(Command.VERSION, (reply) => {
      const twin = { twin_socket: { supported: true, fd_index: 1 } };
      setVersionJson(reply, { capabilities: { ...versionJson(reply).capabilities, ...twin } });
    }),
    fails: ["version-reply-subset", "version-twin-socket"],
  },
  {
    name: "commands before VERSION are answered",
    meddling: {
      reply: (reply, { command }, send) => {
        if (command !== Command.DEVICE_GET_INFO || reply.errno !== Errno.EINVAL || reply.body.length > 0) return false;
        send({ flags: HeaderFlags.TYPE_REPLY, errno: 0, body: Buffer.alloc(16) });
        return true;
      },
    },
    fails: [
      "version-missing",
      "device-info-no-body",
      "device-info-short",
      "device-info-argsz-zero",
      "device-info-argsz-small",
    ],
  },
  {
    name: "any region index is described",
    meddling: accept(Command.DEVICE_GET_REGION_INFO, ({ body }) =>
      Buffer.concat([body, RegionInfo.encode({})]).subarray(0, 32),
    ),
    fails: [...INDEX_CHECKS, "region-info-no-body", "region-info-short"],
  },
  {
    name: "the connection ends with a bad region index",
    meddling: {
      reply: (reply, request) =>
        request.command === Command.DEVICE_GET_REGION_INFO && isError(reply) && request.body.length === RegionInfo.size,
    },
    fails: [...INDEX_CHECKS, "region-info-argsz-zero", "region-info-argsz-small", "pipeline-after-error"],
  },
  {
    name: "reads across the end of a region are done",
    meddling: accept(
      Command.REGION_READ,
      ({ body }) => Buffer.concat([body, Buffer.alloc(body.readUInt32LE(12))]),
      (request) => {
        const { length } = request.body;
        if (length !== RegionAccess.size || request.body.readUInt32LE(4) !== 0) return false;
        return (
          offset(request) < [0x4000, 0, 0, 0, 0, 0, 0, 256, 0, 0x4000][region(request)] &&
          request.body.readUInt32LE(12) === 4
        );
      },
    ),
    fails: ["region-read-straddle", "region-read-straddle-other"],
  },
  {
    name: "reads echo another offset",
    meddling: change(Command.REGION_READ, (reply) => {
      reply.body.writeUInt32LE(0x40, RegionAccess.offsets.offset);
    }),
    fails: ["region-read", "region-read-config-whole", "region-write"],
  },
  {
    name: "writes with less data than announced are done",
    meddling: accept(Command.REGION_WRITE, echo(RegionAccess.size), (request) => {
      const { length } = request.body;
      return length >= RegionAccess.size && length < RegionAccess.size + request.body.readUInt32LE(12);
    }),
    fails: ["region-write-data-none", "region-write-data-short", "region-write-count-max"],
  },
  {
    name: "the reply to a write has its data",
    meddling: change(Command.REGION_WRITE, (reply, request) => {
      reply.body = request.body;
    }),
    fails: ["region-write"],
  },
  {
    name: "one write fewer than were done is reported",
    meddling: change(Command.REGION_WRITE_MULTI, (reply) => {
      reply.body.writeUInt8(reply.body.readUInt8(0) - 1, 0);
    }),
    fails: ["write-multi"],
  },
  {
    name: "maps may overlap",
    meddling: accept(
      Command.DMA_MAP,
      () => new Uint8Array(0),
      (_request, errno) => errno === Errno.EEXIST,
    ),
    fails: MAP_OVERLAPS,
  },
  {
    name: "maps that overlap are refused with EINVAL",
    meddling: {
      reply: (reply) => {
        if (isError(reply) && reply.errno === Errno.EEXIST) reply.errno = Errno.EINVAL;
        return false;
      },
    },
    fails: MAP_OVERLAPS,
  },
  {
    name: "the maps of an earlier client stay",
    meddling: earlierMaps(),
    fails: ["dma-map-disconnect"],
  },
  {
    name: "the reply to a map has a body",
    meddling: change(Command.DMA_MAP, (reply) => {
      reply.body = Buffer.alloc(32);
    }),
    fails: [
      "dma-map",
      "dma-map-fd",
      "dma-map-read-only",
      "dma-map-adjacent",
      "dma-map-address-0",
      "dma-map-again",
      "dma-map-disconnect",
      ...MAP_OVERLAPS,
      ...["all", "refused-keeps", "begin", "end", "around", "size-0", "two", "twice", "short"].map(
        (id) => `dma-unmap-${id}`,
      ),
      ...["apart", "half-of-two", "huge"].map((id) => `dma-unmap-${id}`),
      ...["argsz-0", "flags-unknown", "bitmap", "all-with-range"].map((id) => `dma-unmap-${id}`),
      ...["dirty", "dirty-unlogged"].map((id) => `dma-unmap-${id}`),
      ...["", "-ranges", "-report-sizes", "-disconnect"].map((id) => `dma-logging${id}`),
      ...["-start-twice", "-report-page-size", "-report-page-size-0", "-report-short"].map((id) => `dma-logging${id}`),
    ],
  },
  {
    name: "anything can be unmapped",
    meddling: accept(Command.DMA_UNMAP, echo(DmaUnmap.size), ({ body }) => body.length === DmaUnmap.size),
    fails: ["begin", "end", "size-0", "half-of-two", "wrap"].map((id) => `dma-unmap-${id}`),
  },
  {
    name: "an unmap that is refused unmaps",
    meddling: {
      request: (request) => {
        const { command, body } = request;
        const isPart =
          command === Command.DMA_UNMAP && body.length === DmaUnmap.size && body.readUInt32LE(16) === 0x2000;
        if (isPart) body.writeUInt32LE(0x4000, 16);
        return false;
      },
    },
    fails: ["dma-unmap-half-of-two", "dma-unmap-refused-keeps", "dma-unmap-begin"],
  },
  {
    name: "triggers do nothing",
    meddling: {
      request: ({ command, body }, answer) => {
        if (command !== Command.DEVICE_SET_IRQS || body.length !== IrqSet.size) return false;
        const isTrigger = body.readUInt32LE(4) === (IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER);
        const isGood = body.readUInt32LE(0) === 20 && body.readUInt32LE(8) === 2 && body.readUInt32LE(16) === 1;
        if (!isTrigger || !isGood || body.readUInt32LE(12) > 1) return false;
        answer({});
        return true;
      },
    },
    fails: ["irq-trigger-none", "irq-trigger-start", "irq-rebind"],
    timeoutMs: 1500,
  },
  {
    name: "two kinds of interrupt data at once are taken",
    meddling: accept(
      Command.DEVICE_SET_IRQS,
      () => new Uint8Array(0),
      ({ body }) => body.length > 20 && (body.readUInt32LE(4) & 3) === 3,
    ),
    fails: ["set-irqs-two-data", "set-irqs-all-data"],
  },
  {
    name: "NO_REPLY is not looked at",
    meddling: {
      request: (request) => {
        request.flags &= ~HeaderFlags.NO_REPLY;
        return false;
      },
    },
    fails: ["no-reply", "no-reply-error"],
  },
  {
    name: "every feature is said to be there",
    meddling: accept(
      Command.DEVICE_FEATURE,
      ({ body }) => body,
      ({ body }) => body.length >= DeviceFeature.size && (body.readUInt32LE(4) & 0x4ffff) === 0x4abcd,
    ),
    fails: ["feature-probe-unknown"],
  },
  {
    name: "unknown commands succeed",
    meddling: {
      reply: (reply, { command }) => {
        if (command === 999 && isError(reply)) succeed(reply);
        return false;
      },
    },
    fails: ["command-999"],
  },
  {
    name: "a message must arrive in one piece",
    meddling: {
      received: (bytes) => {
        const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        let at = 0;
        while (bytes.length - at >= Header.size) at += Math.max(data.getUint32(at + 4, true), Header.size);
        // Longer than the socket's buffer: those arrive in pieces whatever the client does.
        return at !== bytes.length && at < 0x10000;
      },
    },
    fails: ["stream-split", "stream-byte-by-byte", "stream-one-and-a-half"],
  },
  {
    name: "a reset is never answered",
    meddling: { request: ({ command }) => command === Command.DEVICE_RESET },
    fails: ["device-reset", "device-reset-body", "migration-resume-cut"],
    timeoutMs: 1500,
  },
];

for (const { name, meddling, fails, timeoutMs = 5000 } of CASES) {
  test.serial(name, async (t) => {
    const results = await withServer({ meddling }, (path) => check(path, { timeoutMs, only: /^(?!dma-map-many)/ }));
    expectFailures(t, results, fails);
  });
}
