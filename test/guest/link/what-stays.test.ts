/** What stays of the clients of a device process on the local link: nothing, as test/host/bridge/what-stays has it. */
import { join } from "node:path";
import test from "ava";
import { MiB } from "../../../shared/limits.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { staysAsItWas } from "../../fakes/resources.js";
import { PROGRAMS, ServiceProcess, socketArgs } from "../../fakes/service-process.js";
import { folder } from "../../native/helpers.js";
import { memory } from "./machine.js";

for (const hasTwin of [false, true]) {
  test.serial(`clients ${hasTwin ? "with" : "without"} twin sockets`, async (t) => {
    const directory = folder(t);
    const device = new ServiceProcess(t, [...PROGRAMS.device, ...socketArgs("device", directory)]);
    const socket = join(directory, "a");
    await device.serving();
    const ram = memory(t, MiB);
    await staysAsItWas(t, device.child.pid ?? 0, 2000, async () => {
      const client = await Client.connect(socket, { capabilities: { twinSocket: hasTwin } });
      await client.mapMemory({ address: 0, size: MiB, fd: ram.fd });
      await client.regionRead(Region.CONFIG, 0, 4);
      client.close();
      await client.closed;
    });
  });
}
