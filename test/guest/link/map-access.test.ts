/**
 * How the local link maps what a client hands over: read-only, unsealed, all without messages, which many clients do
 * not answer and none while it waits for a reply.
 */
import { ftruncateSync } from "node:fs";
import type { ExecutionContext } from "ava";
import { DmaError } from "../../../guest/device.js";
import { close, createMemory, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { Commands, Statuses } from "../../fakes/copy-device.js";
import { each, memory, over } from "./machine.js";

const BASE = 0x1_0000_0000;

function unsealed(t: ExecutionContext, size: number) {
  const fd = createMemory("unsealed", size, false);
  t.teardown(() => close(fd));
  return { fd, bytes: new Uint8Array(mapFile(fd, 0, size, PROT_READ | PROT_WRITE)) };
}

each("a read-only map is read without a message, and not written", async (t, machine) => {
  const { client, device, enable, bind, copy, endpoint } = machine;
  const [target, source] = [memory(t, MiB), memory(t, MiB)];
  await client.mapMemory({ address: BASE, size: MiB, fd: target.fd });
  await client.mapMemory({ address: 2 * BASE, size: MiB, fd: source.fd, writable: false });
  await bind();
  await enable();
  source.bytes.fill(9);
  t.is(await copy(2 * BASE + PAGE_SIZE, BASE, 3 * PAGE_SIZE), Statuses.DONE);
  t.deepEqual([target.bytes[0], target.bytes[3 * PAGE_SIZE - 1], target.bytes[3 * PAGE_SIZE]], [9, 9, 0]);
  t.is(endpoint.statistics().movedByMessage, 0);
  t.is(await copy(BASE, 2 * BASE, 16), Statuses.DMA_ERROR);
  await t.throwsAsync(device.context.dma.write(2 * BASE, Uint8Array.of(1)), { instanceOf: DmaError });
  t.is(source.bytes[0], 9);
});

each(
  "unsealed memory is reached without an option and without a message, also once it is cut short",
  async (t, machine) => {
    const { client, enable, bind, copy, endpoint } = machine;
    const { fd, bytes } = unsealed(t, 2 * MiB);
    await client.mapMemory({ address: BASE, size: 2 * MiB, fd });
    await bind();
    await enable();
    bytes.fill(3, 0, MiB);
    t.is(await copy(BASE, BASE + MiB, 2 * PAGE_SIZE), Statuses.DONE);
    t.is(bytes[MiB + 2 * PAGE_SIZE - 1], 3);
    ftruncateSync(fd, MiB);
    t.is(await copy(BASE + MiB, BASE, PAGE_SIZE), Statuses.DMA_ERROR);
    t.deepEqual([bytes[0], bytes[PAGE_SIZE]], [3, 3], "no zeros in place of what is gone");
    t.is(endpoint.statistics().movedByMessage, 0);
  },
);

over(["local"], "read-only memory is in the window: synchronous reads, segments and views", async (t, machine) => {
  const { client, device, enable, bind, copy } = machine;
  const { fd, bytes } = memory(t, MiB);
  const target = memory(t, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd, writable: false });
  await client.mapMemory({ address: 2 * BASE, size: MiB, fd: target.fd });
  await bind();
  await enable();
  bytes.fill(5);
  t.is(await copy(BASE, 2 * BASE, 16, Commands.COPY_SYNC), Statuses.DONE);
  t.is(target.bytes[15], 5);
  const { dma } = device.context;
  t.is(dma.view(BASE, 16, "write"), undefined);
  // A bug of the device's: the driver VM's memory keeps its bytes, and the device sees them again afterwards.
  const view = dma.view(BASE, 16, "read");
  t.truthy(view);
  view?.fill(6);
  t.is(view?.[3], 6);
  t.is(bytes[3], 5);
  while (view?.[3] !== 5) await new Promise((resolve) => setImmediate(resolve));
  bytes[3] = 7;
  t.is(view?.[3], 7);
});
