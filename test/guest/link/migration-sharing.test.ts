/** What is shared with the VMM moves with a device, and waits while the device stands still. */
import test from "ava";
import { close, eventfdWrite } from "../../../native/index.js";
import { Errno } from "../../../shared/errors.js";
import { MigrationState, Region } from "../../../shared/spec/vfio-user.js";
import type { Client } from "../../../shared/vfio-user/client/client.js";
import { EVENTS, Events, SharingDevice } from "../../fakes/sharing-device.js";
import { connectDevice } from "./machine.js";

class MovingDevice extends SharingDevice {
  /** Its registers are left out: this is about shared parts. */
  readonly migration = {};
}

/** The stopped device's state, once it is another than `before`: a signal has been looked at. */
async function changedState({ migration }: Client, before: Uint8Array | undefined): Promise<Uint8Array> {
  for (;;) {
    await migration.setState(MigrationState.STOP);
    await migration.setState(MigrationState.STOP_COPY);
    const state = await migration.readAll();
    if (before === undefined || !Buffer.from(before).equals(state)) return state;
  }
}

for (const kind of ["local", "virtio"] as const) {
  test.serial(`${kind}: shared parts and events that wait`, async (t) => {
    const [from, to] = [
      await connectDevice(kind, new MovingDevice()),
      await connectDevice("local", new MovingDevice()),
    ];
    const { fds } = await from.client.getRegionIoFds(Region.BAR0);
    from.device.shared(0, 0).set([1, 2, 3]);
    from.device.shared(2)[0x3fff] = 9;
    const quiet = await changedState(from.client, undefined);
    eventfdWrite(fds[Events.PLAIN]);
    const write = { region: Region.BAR0, offset: EVENTS[Events.SEVEN].offset, bytes: Uint8Array.of(7, 0, 0, 0) };
    await t.throwsAsync(from.client.writeMulti([write]), { message: new RegExp(`errno ${Errno.EINVAL}`) });
    const stream = await changedState(from.client, quiet);
    t.deepEqual(from.device.events, []);

    await to.client.migration.setState(MigrationState.RESUMING);
    await to.client.migration.writeAll(stream);
    await to.client.migration.setState(MigrationState.STOP);
    t.deepEqual([...to.device.shared(0, 0).subarray(0, 4)], [1, 2, 3, 0]);
    t.is(to.device.shared(2)[0x3fff], 9);
    t.deepEqual(to.device.events, []);
    await to.client.migration.setState(MigrationState.RUNNING);
    t.deepEqual(to.device.events, ["0:0=undefined"], "it comes where the device runs again");
    await from.client.migration.setState(MigrationState.RUNNING);
    t.deepEqual(from.device.events, ["0:0=undefined"], "or here, if it goes on here after all");

    const again = await changedState(from.client, undefined);
    eventfdWrite(fds[Events.PLAIN]);
    await changedState(from.client, again);
    await from.client.reset();
    t.is(from.device.events.length, 1, "a reset forgets what waits");

    for (const fd of fds) close(fd);
    t.deepEqual(await from.end(), []);
    t.deepEqual(await to.end(), []);
  });
}
