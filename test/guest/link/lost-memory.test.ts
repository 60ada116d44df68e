/**
 * Memory that the client makes smaller while it is mapped: DMA to what is gone fails, each time, and moves no zeros.
 */
import { ftruncateSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { type Dma, DmaError } from "../../../guest/device.js";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { LocalLink } from "../../../guest/link/local/local.js";
import { ScatterList } from "../../../guest/scatter-list.js";
import { close, createMemory } from "../../../native/index.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { CopyDevice } from "../../fakes/copy-device.js";
import { each } from "./machine.js";

const BASE = 0x1_0000_0000;
const GONE = { instanceOf: DmaError, message: /is gone/ };

/** Maps a MiB, cuts its second half off, and does DMA to what is left and to what is not. */
async function cutShort(t: ExecutionContext, client: Client, dma: Dma, inWindow: boolean) {
  const fd = createMemory("unsealed", MiB, false);
  t.teardown(() => close(fd));
  await client.mapMemory({ address: BASE, size: MiB, fd });
  const [few, many] = [new Uint8Array(16).fill(7), new Uint8Array(8192).fill(7)];
  const [there, border] = [BASE + MiB / 2 - 8192, BASE + MiB / 2 - 4096];
  await dma.write(there, many);
  ftruncateSync(fd, MiB / 2);
  const list = new ScatterList();
  list.add(there, 4096);
  list.add(border + 4096, 4096);
  for (let round = 0; round < 3; round++) {
    for (const bytes of [few, many]) {
      await t.throwsAsync(dma.read(BASE + MiB - 8192, bytes.slice()), GONE);
      await t.throwsAsync(dma.write(BASE + MiB - 8192, bytes), GONE);
    }
    await t.throwsAsync(dma.read(border, many.slice()), GONE);
    await t.throwsAsync(dma.readList(list, many.slice()), GONE);
    await t.throwsAsync(dma.writeList(list, many), GONE);
    if (inWindow) {
      t.throws(() => dma.readSync(border, many.slice()), GONE);
      t.throws(() => dma.writeSync(border, many), GONE);
      t.throws(() => dma.readListSync(list, many.slice()), GONE);
      t.throws(() => dma.writeListSync(list, many), GONE);
    }
    const back = new Uint8Array(8192);
    await dma.read(there, back);
    t.deepEqual(back, many);
  }
  t.true(dma.isIdle());
  // It is memory again for who maps it again.
  ftruncateSync(fd, MiB);
  await client.unmapMemory(BASE, MiB);
  await client.mapMemory({ address: BASE, size: MiB, fd });
  await dma.write(border, many);
  await dma.read(border, many);
  t.true(many.every((byte) => byte === 7));
}

each("memory that the bridge or the process copies", async (t, { client, device, enable }) => {
  await enable();
  await cutShort(t, client, device.context.dma, false);
});

test.serial("memory in the window of a process that trusts its client", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "vvu-"));
  const socket = join(directory, "device.sock");
  const link = new LocalLink({ socket, log: quietLog, trustUnsealedMemory: true });
  const device = new CopyDevice();
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  const client = await Client.connect(socket);
  t.teardown(async () => {
    client.close();
    await link.close();
    await endpoint.close();
    await rm(directory, { recursive: true });
  });
  const bits = CommandBits.MEMORY | CommandBits.BUS_MASTER;
  await client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(bits));
  await cutShort(t, client, device.context.dma, true);
});
