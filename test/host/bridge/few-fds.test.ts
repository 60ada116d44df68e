/** A bridge that may have few file descriptors: what lacks one fails, and costs nobody else anything. */
import test from "ava";
import { ProtocolError } from "../../../shared/errors.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { TestDevice } from "../../fakes/front-end-device.js";
import { BASE, copier } from "./link/copier.js";
import { memory } from "./set-up.js";

test.serial("a client that maps all it can fails alone, and goes on when it unmaps", async (t) => {
  const bridge = await BridgeProcess.start({ sessions: 2, maxFds: 320 });
  t.teardown(() => bridge.stop());
  const frontEnds = [0, 1].map((session) => new FrontEnd(bridge.path("vhost-user", session)));
  t.teardown(() => {
    for (const frontEnd of frontEnds) frontEnd.quit();
  });
  const devices = frontEnds.map((frontEnd) => new TestDevice(frontEnd, { isolated: true }));
  await devices[0].startAndGreet();
  const client = await Client.connect(bridge.path("vfio-user", 0));
  t.teardown(() => client.close());
  const ram = memory(t, 8 << 20);
  await client.mapMemory({ address: BASE, size: 8 << 20, fd: ram.fd, fdOffset: 0 });
  const add = (n: number) => client.mapMemory({ address: n << 13, size: 4096, fd: ram.fd, fdOffset: n << 12 });
  let count = 0;
  const refused = async () => {
    for (; count < 256; count++) await add(count);
  };
  await t.throwsAsync(refused(), { instanceOf: ProtocolError, message: /errno 24/ });
  t.true(count > 20, `${count} maps`);
  await bridge.logged(/"level":50.*"msg":"out of file descriptors for a client: raise LimitNOFILE"/);

  // The same session: its registers, copies by threads, a new start of its device.
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  const { add: addCopy, kick, done } = copier(frontEnds[0], devices[0]);
  for (let slot = 0; slot < 8; slot++) addCopy(slot, { length: 1 << 20 });
  kick();
  const reads = Promise.all(Array.from({ length: 20 }, () => client.regionRead(Region.BAR0, 0, 4)));
  for (let n = 0; n < 8; n++) t.is((await done()).status, 0);
  await reads;
  await client.unmapMemory(0, 4096);
  await add(0);

  // The other one, which starts only now.
  await devices[1].startAndGreet();
  const other = await Client.connect(bridge.path("vfio-user", 1));
  t.teardown(() => other.close());
  devices[1].bar[3] = 5;
  t.is((await other.regionRead(Region.BAR0, 3, 1))[0], 5);
  await other.mapMemory({ address: BASE, size: 8 << 20, fd: ram.fd, fdOffset: 0 });
  t.true(bridge.alive);
});

test.serial("with too few for any session to begin, the operator is told at the start", async (t) => {
  const bridge = await BridgeProcess.start({ sessions: 2, maxFds: 64 });
  t.teardown(() => bridge.stop());
  const error = /"level":50.*"msg":"too few file descriptors for any session to begin: raise LimitNOFILE"/;
  await t.notThrowsAsync(bridge.logged(error));
});
