/** DEVICE_FEATURE's rules, and the log of what the device writes to driver-VM memory. */
import type { ExecutionContext } from "ava";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  Feature,
  MigrationFlags,
  MigrationState,
} from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { Commands, Statuses } from "../../fakes/copy-device.js";
import { type Machine, memory } from "./machine.js";
import { both, refuses } from "./migratable.js";

const { GET, SET, PROBE } = DeviceFeatureFlags;
const BASE = 0x1_0000_0000;
const SIZE = 4 * MiB;

/** A request with argsz as it should be, unless told otherwise. */
function request(flags: number, payload: Uint8Array = new Uint8Array(0), argsz = 4096): Uint8Array {
  return Buffer.concat([DeviceFeature.encode({ argsz, flags: flags >>> 0 }), payload]);
}

/** Memory in the window, and above it memory without an fd; the device may write to both. */
async function mapped(t: ExecutionContext, { client, enable, bind }: Pick<Machine, "client" | "enable" | "bind">) {
  const { fd, bytes } = memory(t, SIZE);
  await client.mapMemory({ address: BASE, size: SIZE, fd });
  await client.mapMemory({ address: BASE + SIZE, size: MiB });
  client.registerMemory(BASE + SIZE, new Uint8Array(MiB));
  await enable();
  await bind();
  return bytes;
}

/** Numbers of the pages that a bitmap says were written. */
function pages(bitmap: Uint8Array): number[] {
  return Array.from({ length: bitmap.length * 8 }, (_, n) => n).filter((n) => (bitmap[n >> 3] >> (n & 7)) & 1);
}

both("features: which there are, probed with every method", async (t, { client }) => {
  const { migration } = client;
  t.true(await migration.probe(Feature.MIGRATION));
  t.true(await migration.probe(Feature.MIGRATION, "get"));
  t.false(await migration.probe(Feature.MIGRATION, "set"));
  t.true(await migration.probe(Feature.MIG_DEVICE_STATE, "get", "set"));
  t.true(await migration.probe(Feature.DMA_LOGGING_START, "set"));
  t.false(await migration.probe(Feature.DMA_LOGGING_START, "get"));
  t.true(await migration.probe(Feature.DMA_LOGGING_STOP, "set"));
  t.true(await migration.probe(Feature.DMA_LOGGING_REPORT, "get"));
  t.false(await migration.probe(Feature.DMA_LOGGING_REPORT, "get", "set"));
  t.is(await migration.flags(), MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY);
  t.is(await migration.getState(), MigrationState.RUNNING);
  const probe = request(PROBE | GET | SET | Feature.MIG_DEVICE_STATE, Uint8Array.of(1, 2, 3, 4, 5), 13);
  t.deepEqual(Buffer.from((await client.request(Command.DEVICE_FEATURE, probe)).body), probe, "the request again");
});

both("features: wrong requests are refused as Linux refuses them, and change nothing", async (t, { client }) => {
  const state = Uint8Array.of(MigrationState.STOP, 0, 0, 0, 0, 0, 0, 0);
  const refused = (errno: "EINVAL" | "ENOTTY", what: string, body: Uint8Array) =>
    refuses(t, client.request(Command.DEVICE_FEATURE, body), errno, what);
  for (const feature of [0, 3, 4, 5, 9, 0xffff]) {
    for (const method of [GET, SET, PROBE, PROBE | GET]) {
      await refused("ENOTTY", `feature ${feature}`, request(method | feature, state));
    }
  }
  await refused("EINVAL", "no method", request(Feature.MIG_DEVICE_STATE, state));
  await refused("EINVAL", "two methods", request(GET | SET | Feature.MIG_DEVICE_STATE, state));
  await refused("EINVAL", "unknown flag", request(GET | 0x80000 | Feature.MIGRATION));
  await refused("EINVAL", "the highest flag", request(PROBE | 0x80000000 | Feature.MIGRATION));
  await refused("EINVAL", "MIGRATION cannot be set", request(SET | Feature.MIGRATION, state));
  await refused("EINVAL", "REPORT cannot be set", request(SET | Feature.DMA_LOGGING_REPORT, new Uint8Array(24)));
  await refused("EINVAL", "START cannot be got", request(GET | Feature.DMA_LOGGING_START));
  await refused("EINVAL", "argsz of a probe", request(PROBE | Feature.MIG_DEVICE_STATE, state, 15));
  await refused("EINVAL", "argsz of a SET", request(SET | Feature.MIG_DEVICE_STATE, state, 15));
  await refused("EINVAL", "argsz of a GET", request(GET | Feature.MIG_DEVICE_STATE, undefined, 15));
  await refused("EINVAL", "argsz of the flags", request(GET | Feature.MIGRATION, undefined, 15));
  await refused("EINVAL", "a state that is cut off", request(SET | Feature.MIG_DEVICE_STATE, state.subarray(0, 7)));
  await refused("EINVAL", "START without a body", request(SET | Feature.DMA_LOGGING_START));
  await refused("EINVAL", "a report without a range", request(GET | Feature.DMA_LOGGING_REPORT, new Uint8Array(23)));
  t.is(await client.migration.getState(), MigrationState.RUNNING);
});

both("logging: what was written is reported once, however it was written", async (t, machine) => {
  const { client, copy, device } = machine;
  const { migration } = client;
  await mapped(t, machine);
  const written = async (size = SIZE) => pages(await migration.report(BASE, size, PAGE_SIZE));
  t.is(await copy(BASE, BASE + 100 * PAGE_SIZE, 5000), Statuses.DONE);
  t.is(await migration.startLogging(PAGE_SIZE), PAGE_SIZE);
  t.deepEqual(await written(), [], "what came before is not in the log");
  t.is(await copy(BASE, BASE + 3 * PAGE_SIZE - 1, 2), Statuses.DONE);
  t.is(await copy(BASE, BASE + 9 * PAGE_SIZE, PAGE_SIZE, Commands.COPY_SYNC), Statuses.DONE);
  t.is(await copy(BASE, BASE + SIZE + 5 * PAGE_SIZE, 3 * PAGE_SIZE), Statuses.DONE, "by message");
  t.deepEqual(await written(), [2, 3, 9]);
  t.deepEqual(await written(), []);
  t.deepEqual(pages(await migration.report(BASE + SIZE, MiB, PAGE_SIZE)), [5, 6, 7]);
  device.context.dma.view(BASE + 20 * PAGE_SIZE, 2 * PAGE_SIZE, "write");
  device.context.dma.view(BASE + 30 * PAGE_SIZE, PAGE_SIZE, "read");
  t.deepEqual(await written(), [20, 21]);
  t.is(await copy(BASE, BASE + 64 * PAGE_SIZE, 1), Statuses.DONE);
  t.deepEqual(pages(await migration.report(BASE, SIZE, 64 * PAGE_SIZE)), [1], "in larger pages");
  await migration.stopLogging();
  t.is(await copy(BASE, BASE, 1), Statuses.DONE);
  await migration.startLogging(PAGE_SIZE);
  t.deepEqual(await written(), [], "stopping forgets, and logs no more");
});

both("logging: a place that the device still holds is reported until it has let go of it", async (t, machine) => {
  const { client, device } = machine;
  const { migration } = client;
  const bytes = await mapped(t, machine);
  await migration.startLogging(PAGE_SIZE);
  const written = async () => pages(await migration.report(BASE, SIZE, PAGE_SIZE));
  // A report comes while a transfer is under way that began before it.
  const held = device.context.dma.view(BASE + 7 * PAGE_SIZE, PAGE_SIZE, "write");
  let late: Uint8Array | undefined;
  device.onQuiesce = async () => {
    held?.fill(1);
    late = device.context.dma.view(BASE + 8 * PAGE_SIZE, PAGE_SIZE, "write");
  };
  t.deepEqual(await written(), [7, 8]);
  t.is(bytes[7 * PAGE_SIZE], 1, "the report waited for what was under way");
  device.onQuiesce = async () => {};
  late?.fill(2);
  t.deepEqual(await written(), [8], "begun during the report before: it may have been written since");
  t.deepEqual(await written(), []);
});

both("logging: a device that fails to quiesce is told of until it has", async (t, machine) => {
  const { client, device, copy } = machine;
  await mapped(t, machine);
  device.onQuiesce = () => Promise.reject(new Error("a bug"));
  await refuses(t, client.migration.startLogging(PAGE_SIZE), "EIO");
  await refuses(t, client.migration.report(BASE, SIZE, PAGE_SIZE), "EINVAL", "it was not started");
  device.onQuiesce = async () => {};
  await client.migration.startLogging(PAGE_SIZE);
  t.is(await copy(BASE, BASE, 1), Statuses.DONE);
  device.onQuiesce = () => Promise.reject(new Error("a bug"));
  t.deepEqual(pages(await client.migration.report(BASE, SIZE, PAGE_SIZE)), [0]);
  device.onQuiesce = async () => {};
  t.deepEqual(pages(await client.migration.report(BASE, SIZE, PAGE_SIZE)), [0]);
  t.deepEqual(pages(await client.migration.report(BASE, SIZE, PAGE_SIZE)), []);
});

both("logging: wrong requests are refused", async (t, { client }) => {
  const { migration } = client;
  const range = (address: number, size = PAGE_SIZE) => ({ address, size });
  const start = (pageSize: number, ...ranges: { address: number; size: number }[]) =>
    migration.startLogging(pageSize, ranges);
  const report = (address: number, size: number, pageSize = PAGE_SIZE) => migration.report(address, size, pageSize);
  await migration.stopLogging();
  await refuses(t, report(BASE, PAGE_SIZE), "EINVAL", "a report before the start");
  for (const size of [0, 3, 4095, 3 * PAGE_SIZE]) await refuses(t, start(size), "EINVAL", `pages of ${size}`);
  const huge = request(SET | Feature.DMA_LOGGING_START, DmaLoggingControl.encode({}));
  new DataView(huge.buffer, huge.byteOffset).setBigUint64(DeviceFeature.size, 1n << 63n, true);
  await refuses(t, client.request(Command.DEVICE_FEATURE, huge), "EINVAL", "pages of 2^63");
  await refuses(t, start(PAGE_SIZE, range(BASE, 0)), "EINVAL", "an empty range");
  await refuses(t, start(PAGE_SIZE, range(BASE + 1)), "EINVAL", "a range not on a page");
  await refuses(t, start(PAGE_SIZE, range(BASE, 100)), "EINVAL", "a range of half a page");
  await refuses(t, start(2 * MiB, range(BASE + MiB, 2 * MiB)), "EINVAL", "a range not on a large page");
  await refuses(t, start(PAGE_SIZE, range(BASE, SIZE), range(BASE + SIZE - PAGE_SIZE)), "EINVAL", "overlapping");
  await refuses(t, start(PAGE_SIZE, range(-PAGE_SIZE, 2 * PAGE_SIZE)), "EOVERFLOW", "past 2^64");
  const many = Array.from({ length: 257 }, (_, n) => range(n * PAGE_SIZE));
  await refuses(t, start(PAGE_SIZE, ...many), "E2BIG", "too many ranges");
  const control = DmaLoggingControl.encode({ pageSize: PAGE_SIZE, numRanges: 2 });
  const one = Buffer.concat([control, DmaLoggingRange.encode({ iova: 0, length: PAGE_SIZE })]);
  await refuses(t, client.request(Command.DEVICE_FEATURE, request(SET | Feature.DMA_LOGGING_START, one)), "EINVAL");
  await refuses(t, report(BASE, PAGE_SIZE), "EINVAL", "none of them has started it");

  t.is(await start(1, ...many.slice(1)), PAGE_SIZE, "a hint that is too small becomes what can be");
  await refuses(t, start(PAGE_SIZE), "EINVAL", "it is started already");
  t.deepEqual(pages(await report(PAGE_SIZE, 256 * PAGE_SIZE)), [], "neighbouring ranges are one");
  await refuses(t, report(0, PAGE_SIZE), "EINVAL", "not logged");
  await refuses(t, report(255 * PAGE_SIZE, 3 * PAGE_SIZE), "EINVAL", "partly not logged");
  for (const size of [0, 2048, 3 * PAGE_SIZE]) {
    await refuses(t, report(PAGE_SIZE, 8 * PAGE_SIZE, size), "EINVAL", `a report in pages of ${size}`);
  }
  await refuses(t, report(PAGE_SIZE, PAGE_SIZE, 2 * PAGE_SIZE), "EINVAL", "a page larger than the range");
  await refuses(t, report(PAGE_SIZE, 0), "EINVAL", "an empty report");
  const payload = DmaLoggingReport.encode({ iova: PAGE_SIZE, length: PAGE_SIZE, pageSize: PAGE_SIZE });
  const short = request(GET | Feature.DMA_LOGGING_REPORT, payload, 39);
  await refuses(t, client.request(Command.DEVICE_FEATURE, short), "EINVAL", "argsz without the bitmap");
  await migration.stopLogging();
  await start(PAGE_SIZE);
  await refuses(t, report(0, 2 ** 45), "E2BIG", "a bitmap too large for a message");
  await refuses(t, report(2 ** 53 - PAGE_SIZE, 2 * PAGE_SIZE), "EINVAL", "past 2^53-1");
});

both("logging: an unmap tells what was written to the map", async (t, machine) => {
  const { client, copy, device } = machine;
  await mapped(t, machine);
  await refuses(t, client.unmapMemoryDirty(BASE, SIZE, PAGE_SIZE), "EINVAL", "DMA is not logged");
  t.is(await copy(BASE, BASE + PAGE_SIZE, 1), Statuses.DONE, "so it is still mapped");
  await client.migration.startLogging(PAGE_SIZE);
  t.is(await copy(BASE, BASE + PAGE_SIZE, 1), Statuses.DONE);
  await refuses(t, client.unmapMemoryDirty(BASE, SIZE, 3 * PAGE_SIZE), "EINVAL");
  const held = device.context.dma.view(BASE + 70 * PAGE_SIZE, 1, "write");
  device.onQuiesce = async () => {
    held?.fill(1);
  };
  t.is(await copy(BASE, BASE + SIZE, 1), Statuses.DONE);
  t.deepEqual(pages(await client.unmapMemoryDirty(BASE, SIZE, PAGE_SIZE)), [1, 70]);
  t.deepEqual(pages(await client.unmapMemoryDirty(BASE + SIZE, MiB, 2 * PAGE_SIZE)), [0]);
  t.deepEqual(pages(await client.migration.report(BASE, SIZE + MiB, PAGE_SIZE)), [], "they were told of");
  t.is(await copy(BASE, BASE, 1), Statuses.DMA_ERROR);
  t.deepEqual(
    pages(await client.unmapMemoryDirty(BASE, SIZE, PAGE_SIZE)),
    [],
    "nothing is mapped, nothing was written",
  );
});

both("logging: an unmap of several maps has one bitmap, for all of the range", async (t, machine) => {
  const { client, copy, device, enable, bind } = machine;
  const { fd } = memory(t, MiB);
  await enable();
  await bind();
  await client.migration.startLogging(PAGE_SIZE, [{ address: BASE, size: 2 ** 64 - BASE }]);
  const [first, second] = [BASE + 2 * PAGE_SIZE, BASE + 20 * PAGE_SIZE];
  await client.mapMemory({ address: first, size: 4 * PAGE_SIZE, fd });
  await client.mapMemory({ address: second, size: 2 * PAGE_SIZE, fd, fdOffset: 8 * PAGE_SIZE });
  await client.mapMemory({ address: -2 * PAGE_SIZE, size: 2 * PAGE_SIZE, fd, fdOffset: 16 * PAGE_SIZE });
  t.is(await copy(first, first + PAGE_SIZE, 1), Statuses.DONE);
  t.is(await copy(first, second, 1), Statuses.DONE);
  t.is(await copy(first, -PAGE_SIZE, 1), Statuses.DONE);
  await refuses(t, client.unmapMemoryDirty(BASE, 5 * PAGE_SIZE, PAGE_SIZE), "EINVAL", "a part of a map");
  const { events } = device;
  const quiesces = events.length;
  t.deepEqual(pages(await client.unmapMemoryDirty(BASE, 64 * PAGE_SIZE, PAGE_SIZE)), [3, 20]);
  t.deepEqual(events.slice(quiesces), ["quiesce"], "once for all of them");
  t.is(await copy(-PAGE_SIZE, first, 1), Statuses.DMA_ERROR);
  t.deepEqual(pages(await client.unmapMemoryDirty(-4 * PAGE_SIZE, 4 * PAGE_SIZE, PAGE_SIZE)), [3]);
});

both("logging ends with the client", async (t, { client, socket }) => {
  await client.migration.startLogging(PAGE_SIZE);
  client.close();
  const next = await Client.connect(socket);
  await refuses(t, next.migration.report(BASE, SIZE, PAGE_SIZE), "EINVAL");
  await next.migration.startLogging(PAGE_SIZE);
  next.close();
});
