/** DMA_UNMAP with a dirty bitmap through the bridge, and device processes that do not give one. */
import test, { type ExecutionContext } from "ava";
import { Errno } from "../../../../shared/errors.js";
import { MiB } from "../../../../shared/limits.js";
import { Command } from "../../../../shared/spec/vfio-user.js";
import type { LinkMessage, TestDevice } from "../../../fakes/front-end-device.js";
import { memory, setUp } from "../set-up.js";

/** A map in the window, and what the device process answers to the next DMA_UNMAP. */
async function dirtyUnmap(t: ExecutionContext, answer: (device: TestDevice, unmap: LinkMessage) => void) {
  const { frontEnd, device, bridge, connect } = await setUp(t);
  const client = await connect();
  const { fd } = memory(t, MiB);
  await client.mapMemory({ address: MiB, size: MiB, fd });
  device.onCommand = (received) => {
    if (received.command !== Command.DMA_UNMAP) return false;
    answer(device, received);
    return true;
  };
  const unmap = () => client.unmapMemoryDirty(MiB, MiB, 0x1000);
  return { frontEnd, device, bridge, client, unmap };
}
/** A bit for each of 256 pages. */
const ALL_DIRTY = new Uint8Array(32).fill(0xff);

test.serial("an unmap with a bitmap: the device process is asked, and its bits come back", async (t) => {
  const bits = Uint8Array.from({ length: 32 }, (_, n) => n);
  const { unmap, device, frontEnd } = await dirtyUnmap(t, (device, unmap) => {
    device.reply(unmap, Uint8Array.from([...unmap.body, ...bits]));
  });
  t.deepEqual(await unmap(), bits);
  const { body } = await device.waitFor(Command.DMA_UNMAP);
  t.is(
    Buffer.from(body).toString("hex"),
    "4800000001000000000010000000000000001000000000000010000000000000" + "2000000000000000",
  );
  t.is(frontEnd.maps.length, 0);
});

test.serial("an unmap whose bitmap the device process refuses: it stays mapped", async (t) => {
  const { unmap, frontEnd, client, device } = await dirtyUnmap(t, (device, unmap) => {
    device.reply(unmap, undefined, Errno.EINVAL);
  });
  await t.throwsAsync(unmap(), { message: new RegExp(`errno ${Errno.EINVAL}`) });
  t.is(frontEnd.maps.length, 1);
  device.onCommand = undefined;
  await client.unmapMemory(MiB, MiB);
  t.is(frontEnd.maps.length, 0);
});

test.serial("an unmap that the device process cannot promise: by force, and all may have been written", async (t) => {
  const { unmap, frontEnd } = await dirtyUnmap(t, (device, unmap) => device.reply(unmap, undefined, Errno.ETIMEDOUT));
  t.deepEqual(await unmap(), ALL_DIRTY);
  t.is(frontEnd.maps.length, 0);
});

test.serial("an unmap with a bitmap of another length breaks the link, and all may have been written", async (t) => {
  const { unmap, frontEnd, bridge } = await dirtyUnmap(t, (device, unmap) => {
    device.reply(unmap, new Uint8Array(unmap.body.length + 31));
  });
  t.deepEqual(await unmap(), ALL_DIRTY);
  await bridge.logged(/"msg":"the device process broke the link"/);
  t.is(frontEnd.maps.length, 0);
});

test.serial("an unmap with a bitmap while no device process is there: all may have been written", async (t) => {
  const { unmap, frontEnd, client } = await dirtyUnmap(t, () => {});
  frontEnd.reset();
  await client.regionRead(0, 0, 4);
  t.deepEqual(await unmap(), ALL_DIRTY);
  t.deepEqual(await unmap(), ALL_DIRTY, "nor is anything known of where nothing is mapped");
});
