/** A bridge that is killed while nothing is in flight, and the one that follows it. */
import test from "ava";
import { Irq } from "../../../shared/spec/vfio-user.js";
import { checkEqual, FIRST_REGISTER, Peers } from "./survival/peers.js";
import { SupervisedBridge } from "./survival/supervised-bridge.js";

/** Kills the bridge, and waits until the next one serves. */
async function kill(supervised: SupervisedBridge): Promise<void> {
  const before = supervised.deaths;
  supervised.kill();
  while (supervised.deaths === before) await new Promise((resolve) => setTimeout(resolve, 5));
}

test.serial("a session that is idle goes on, with its maps, interrupts and memory", async (t) => {
  const supervised = await SupervisedBridge.start();
  t.teardown(() => supervised.stop());
  const { bridge } = supervised;
  const peers = new Peers(bridge, {});
  t.teardown(() => peers.close());
  await peers.share();
  await peers.connect(true);
  const { client, memory, device, signals } = peers;
  await client.mapMemory({ address: 0, size: 4096, fd: memory.fd });
  await client.setIrqs({ index: Irq.MSIX, start: 0, eventfds: [signals[0].fd] });
  for (let life = 0; life < 3; life++) {
    await kill(supervised);
    await peers.write(FIRST_REGISTER, Uint8Array.of(1, 2, 3, life));
    checkEqual(await peers.read(FIRST_REGISTER, 4), `0102030${life}`, "a register that was written");
    await client.mapMemory({ address: 0x10000 * (life + 1), size: 4096, fd: memory.fd });
  }
  t.is(peers.frontEnd.fatal, undefined);
  t.is(await client.unmapMemory(0, 4096), 4096);
  t.is(device.received.length > 0, true);
  t.log(bridge.log.split("\n").slice(-12).join("\n"));
});
