/** A device on the virtio link, with the bridge in the same process. */
import type { ExecutionContext } from "ava";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { ClientConnected, LinkCommand } from "../../../shared/spec/link.js";
import { CommandBits, Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, DmaMap, Region, RegionAccess } from "../../../shared/spec/vfio-user.js";
import { Status } from "../../../shared/spec/virtio.js";
import { CopyDevice } from "../../fakes/copy-device.js";
import { PciBridge } from "../../fakes/pci-bridge.js";

export const ADDRESS = 0x10_0000;

export async function setUp(t: ExecutionContext, bridge = new PciBridge()) {
  const link = await createVirtioLink(bridge, quietLog, false, "never");
  const device = new CopyDevice();
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  const opened = link.open(endpoint);
  const hello = await bridge.welcome();
  await opened;
  const close = async () => {
    const closed = link.close();
    if (bridge.status !== 0 && (bridge.status & Status.DEVICE_NEEDS_RESET) === 0) {
      const quiesce = bridge.poll();
      if (quiesce !== undefined) bridge.reply(quiesce);
    }
    await closed;
  };
  t.teardown(close);
  const connect = () =>
    bridge.request(LinkCommand.CLIENT_CONNECTED, ClientConnected.encode({ generation: 1, maxDataXferSize: MiB }));
  const map = (fields: Parameters<typeof DmaMap.encode>[0]) =>
    bridge.request(
      Command.DMA_MAP,
      DmaMap.encode({ argsz: DmaMap.size, flags: 7, address: ADDRESS, size: 0x1000, ...fields }),
    );
  const write = (region: number, offset: number, ...bytes: number[]) =>
    bridge.request(
      Command.REGION_WRITE,
      Buffer.concat([RegionAccess.encode({ offset, region, count: bytes.length }), Uint8Array.from(bytes)]),
    );
  const enable = () => write(Region.CONFIG, ConfigHeader.COMMAND, CommandBits.BUS_MASTER);
  return { bridge, link, device, endpoint, hello, close, connect, map, write, enable };
}
