/** The checker on servers that are good, on one that is not there, and on one that goes away. */
import { mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import type { Device } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import type { Link } from "../../../guest/link/link.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { ALL_CHECKS } from "../../../host/check/topics/index.js";
import { UserError } from "../../../shared/errors.js";
import { quietLog } from "../../../shared/log.js";
import { Command, DmaAccess, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { MigratableDevice } from "../../fakes/migratable-device.js";
import { RegionsDevice } from "../../fakes/regions-device.js";
import { check, idsOf, only, withServer } from "./fixture.js";
import type { Meddling } from "./meddler.js";

/** What a device with everything has not: it can be reset. */
const NOT_FOR_FULL = ["device-reset-unannounced", "config-extended-capabilities"];

/** What this device of ours does not have: regions to map, MSI. */
const NOT_FOR_OURS = [
  ...NOT_FOR_FULL,
  "region-info-type",
  "region-info-argsz-growth",
  "region-info-capability-versions",
  "region-info-capabilities",
  "region-info-areas",
  "region-info-mmap",
  "config-msi",
];

test("ids are unique, and there are more than 60 kinds of bad request", (t) => {
  const ids = ALL_CHECKS.map(({ id }) => id);
  t.is(new Set(ids).size, ids.length);
  t.true(ALL_CHECKS.filter(({ title }) => /refused|survived|cannot be/.test(title)).length > 60);
});

test("a server with a device that has everything passes every check that applies", async (t) => {
  const results = await withServer({}, (path) => check(path));
  t.deepEqual(
    results.filter(({ outcome }) => outcome === "fail"),
    [],
  );
  t.deepEqual(idsOf(results, "skip").sort(), [...NOT_FOR_FULL].sort());
});

test("a meddler that does nothing changes nothing", async (t) => {
  const results = await withServer({ meddling: {} }, (path) => check(path));
  t.deepEqual(
    results.filter(({ outcome }) => outcome === "fail"),
    [],
  );
});

/** Runs the checker on a device behind a link. */
async function checkDevice(link: Link, socketPath: string, device: Device = new MigratableDevice()) {
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  try {
    return await check(socketPath);
  } finally {
    await link.close();
    await endpoint.close();
  }
}

test("a device on a socket passes", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "vfio-user-check-"));
  const socket = join(directory, "socket");
  const results = await checkDevice(new LocalLink({ socket, log: quietLog }), socket);
  rmSync(directory, { recursive: true, force: true });
  t.deepEqual(
    results.filter(({ outcome }) => outcome === "fail"),
    [],
  );
  t.deepEqual(idsOf(results, "skip").sort(), [...NOT_FOR_OURS].sort());
});

/** The same with the bridge and a fake QEMU in between. */
async function checkBehindBridge(device?: Device) {
  const bridge = await BridgeProcess.start();
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath);
  const results = await checkDevice(await createVirtioLink(frontEnd, quietLog), bridge.socketPath, device);
  frontEnd.quit();
  await bridge.stop();
  return results;
}

test("a device behind the bridge passes", async (t) => {
  const results = await checkBehindBridge();
  t.deepEqual(
    results.filter(({ outcome }) => outcome === "fail"),
    [],
  );
  t.deepEqual(idsOf(results, "skip").sort(), [...NOT_FOR_OURS].sort());
});

test("a device with regions of its own passes, on a socket and behind the bridge", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "vfio-user-check-"));
  const socket = join(directory, "socket");
  const local = await checkDevice(new LocalLink({ socket, log: quietLog }), socket, new RegionsDevice());
  rmSync(directory, { recursive: true, force: true });
  for (const results of [local, await checkBehindBridge(new RegionsDevice())]) {
    t.deepEqual(
      results.filter(({ outcome }) => outcome === "fail"),
      [],
    );
    const passed = idsOf(results, "pass").filter((id) => id.startsWith("region-info"));
    for (const id of ["type", "argsz-growth", "capabilities", "capability-versions", "areas", "mmap"]) {
      t.true(passed.includes(`region-info-${id}`), id);
    }
  }
});

test("without --destructive nothing is written to the device but the interrupt line's own value", async (t) => {
  const written: { command: number; body: Buffer }[] = [];
  const meddling = {
    request: ({ command, body }: { command: number; body: Buffer }) => {
      if (command === Command.REGION_WRITE || command === Command.REGION_WRITE_MULTI) written.push({ command, body });
      if (command === Command.DEVICE_RESET) t.fail("a reset");
      return false;
    },
    reply: (reply: { flags: number }, request: { command: number; body: Buffer }) => {
      // Those that were refused did nothing.
      if (request.command === Command.REGION_WRITE && reply.flags & 0x20) {
        const index = written.findIndex(({ body }) => body.equals(request.body));
        if (index !== -1) written.splice(index, 1);
      }
      return false;
    },
  };
  const results = await withServer({ meddling }, (path) => check(path, { destructive: false }));
  t.deepEqual(idsOf(results, "fail"), []);
  const destructive = ALL_CHECKS.filter((each) => each.destructive).map(({ id }) => id);
  t.deepEqual(idsOf(results, "skip").sort(), [...new Set([...destructive, ...NOT_FOR_FULL])].sort());
  for (const { command, body } of written) {
    if (command !== Command.REGION_WRITE) continue;
    const [offset, region, count] = [body.readUInt32LE(0), body.readUInt32LE(8), body.readUInt32LE(12)];
    t.true(count === 0 || (region === 7 && offset === 0x3c && count === 1 && body[16] === 0), `${region} ${offset}`);
  }
});

test("no server: an error that says so", async (t) => {
  const error = await t.throwsAsync(check("/nonexistent/socket", { timeoutMs: 30 }), { instanceOf: UserError });
  t.regex(error?.message ?? "", /cannot connect to \/nonexistent\/socket: there is no such file/);
});

test("a server that goes away: one failure, and the rest is skipped with the reason", async (t) => {
  const results = await withServer({}, (path) =>
    check(path, {
      timeoutMs: 200,
      only: only("device-info", "dma-map", "reconnect"),
      onResult: ({ id }) => {
        if (id === "device-info") renameSync(path, `${path}-gone`);
      },
    }),
  );
  t.deepEqual(
    results.map(({ outcome }) => outcome),
    ["pass", "fail", "skip"],
  );
  t.regex(results[1].came ?? "", /ENOENT from connect/);
  t.is(results[2].reason, "the server accepts no connections since dma-map");
});

test("a reply that does not come is one failure, and the run goes on", async (t) => {
  const meddling = { request: ({ command }: { command: number }) => command === Command.DEVICE_RESET };
  const results = await withServer({ meddling }, (path) =>
    check(path, { timeoutMs: 1000, only: only("device-reset", "device-reset-body", "region-info") }),
  );
  t.deepEqual(idsOf(results, "fail"), ["device-reset", "device-reset-body"]);
  t.is(results[0].came, "none within 1000 ms");
  t.deepEqual(idsOf(results, "pass"), ["region-info"]);
});

test("the server's DMA_READ and DMA_WRITE are answered in between", async (t) => {
  const access = (count: number, data = 0) =>
    Buffer.concat([DmaAccess.encode({ address: 0x1000, count }), Buffer.alloc(data, 0xff)]);
  const replies: { id: number; command: number; flags: number; body: Buffer }[] = [];
  const meddling: Meddling = {
    reply: (_reply, request, send) => {
      if (request.command !== Command.DEVICE_RESET) return false;
      send({ id: 1, command: Command.DMA_READ, flags: 0, body: access(16) });
      send({ id: 2, command: Command.DMA_WRITE, flags: 0, body: access(16, 16) });
      send({ id: 3, command: Command.DMA_READ, flags: 0, body: access(2 ** 40) });
      send({ id: 4, command: Command.DMA_READ, flags: 0, body: Buffer.alloc(3) });
      send({ id: 5, command: Command.DMA_READ, flags: HeaderFlags.NO_REPLY, body: access(16) });
      return false;
    },
    clientReply: ({ id, command, flags, body }) => replies.push({ id, command, flags, body }),
  };
  const results = await withServer({ meddling }, (path) => check(path, { only: only("device-reset", "reply-id") }));
  t.deepEqual(idsOf(results, "pass"), ["device-reset", "reply-id"]);
  const { TYPE_REPLY, ERROR } = HeaderFlags;
  t.deepEqual(replies, [
    { id: 1, command: Command.DMA_READ, flags: TYPE_REPLY, body: Buffer.concat([access(16), Buffer.alloc(16)]) },
    { id: 2, command: Command.DMA_WRITE, flags: TYPE_REPLY, body: access(16) },
    { id: 3, command: Command.DMA_READ, flags: TYPE_REPLY | ERROR, body: Buffer.alloc(0) },
    { id: 4, command: Command.DMA_READ, flags: TYPE_REPLY | ERROR, body: Buffer.alloc(0) },
  ]);
});
