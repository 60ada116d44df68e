/**
 * A device process whose link the bridge gives up: it learns of that, and the session comes back with the same device.
 */
import test, { type ExecutionContext } from "ava";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { close } from "../../../native/index.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { Irq, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { CopyDevice } from "../../fakes/copy-device.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { SharingDevice } from "../../fakes/sharing-device.js";
import { deviceAnswers, eventfd, memory, ones } from "../../host/bridge/set-up.js";

async function setUp(t: ExecutionContext, device: CopyDevice | SharingDevice = new CopyDevice()) {
  const bridge = await BridgeProcess.start();
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath);
  const link = await createVirtioLink(frontEnd, quietLog, false, "never");
  let isLost = false;
  void link.closed.then(() => {
    isLost = true;
  });
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  t.teardown(async () => {
    await link.close();
    const { fatal } = frontEnd;
    frontEnd.quit();
    await bridge.stop();
    if (fatal !== undefined) throw new Error(`QEMU died: ${fatal}`);
    if (isLost) throw new Error("the link was lost");
  });
  await endpoint.start();
  await link.open(endpoint);
  const client = await Client.connect(bridge.socketPath);
  t.teardown(() => client.close());
  return { bridge, frontEnd, client };
}

/** With 7 of them and RAM there are more regions than fit into a memory table. */
async function mapTooMuch(t: ExecutionContext, client: Client): Promise<void> {
  const { fd } = memory(t, 8 * MiB);
  for (let n = 0; n < 7; n++) {
    await client.mapMemory({ address: n * 0x1000_0000, size: MiB, fd, fdOffset: n * MiB });
  }
}

test.serial(
  "rings that QEMU does not start again: the device process resets its VIRTIO device, and has its client again",
  async (t) => {
    t.timeout(60_000);
    const { bridge, frontEnd, client } = await setUp(t);
    await mapTooMuch(t, client);
    const irq = eventfd(t);
    await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [irq.fd] });
    for (let time = 1; time <= 2; time++) {
      frontEnd.pause();
      frontEnd.resume();
      await bridge.logged(/"msg":"the device process broke the link"/, time);
      t.deepEqual(await client.regionRead(Region.CONFIG, 0, 4), ones(4));
      await bridge.logged(/"msg":"the device has the client"/, 1 + time);
      await deviceAnswers(client);
      t.is(frontEnd.maps.length, 7);
      t.notDeepEqual(await client.regionRead(Region.CONFIG, 0, 4), ones(4));
    }
  },
);

test.serial("memory that the device shares with its client is the same afterwards", async (t) => {
  t.timeout(60_000);
  const { bridge, frontEnd, client } = await setUp(t, new SharingDevice());
  const areas = async () => {
    const info = await client.getRegionInfo(Region.BAR0);
    close(info.fd);
    return info.areas;
  };
  const before = await areas();
  await mapTooMuch(t, client);
  const shared = frontEnd.maps.length - 7;
  t.true(shared > 0);
  frontEnd.pause();
  frontEnd.resume();
  await bridge.logged(/"msg":"the device has the client"/, 2);
  await deviceAnswers(client);
  t.is(frontEnd.maps.length, 7 + shared);
  t.deepEqual(await areas(), before);
});
