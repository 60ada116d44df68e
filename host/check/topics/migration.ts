/** Migration: the device state by DEVICE_FEATURE, and its data. State changes are destructive checks. */
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  Feature,
  FeatureMigration,
  MigData,
  MigrationFlags,
  MigrationState,
} from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeFeature } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import { expectEqual, expectRefusal, expectReply, expectSuccess, expectThat } from "../expect.js";
import {
  expectState,
  getState,
  needMigration,
  readAll,
  requestState,
  setState,
  withRunningDevice,
  writeAll,
} from "../migration.js";
import type { Session } from "../session.js";
import { Skip } from "../verdict.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_FEATURE");
const MIGRATION = vfioUser("VFIO_DEVICE_FEATURE_MIGRATION");
const STATE = vfioUser("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
const DATA_READ = vfioUser("VFIO_USER_MIG_DATA_READ");
const DATA_WRITE = vfioUser("VFIO_USER_MIG_DATA_WRITE");
const { DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE } = Command;
const { GET, PROBE } = DeviceFeatureFlags;

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING } = MigrationState;

/** Stops the device, and reads its state. */
async function readSaved(session: Session): Promise<Uint8Array> {
  await setState(session, STOP_COPY);
  return readAll(session);
}

const badMigration = badRequests(DATA_READ, [
  {
    id: "mig-read-running",
    title: "Migration data cannot be read while the device is not in a saving state",
    command: MIG_DATA_READ,
    body: MigData.encode({ argsz: MigData.size + 16, size: 16 }),
    answer: "error",
  },
  {
    id: "mig-read-short",
    title: "A request of 7 bytes is refused",
    command: MIG_DATA_READ,
    body: new Uint8Array(7),
    answer: "error",
  },
  {
    id: "mig-read-huge",
    title: "A size of 0xffffffff is refused",
    command: MIG_DATA_READ,
    body: MigData.encode({ argsz: 0xffff_ffff, size: 0xffff_ffff }),
    answer: "error",
  },
  {
    id: "mig-write-running",
    section: DATA_WRITE,
    title: "Migration data cannot be written while the device is not resuming",
    command: MIG_DATA_WRITE,
    body: Buffer.concat([MigData.encode({ argsz: MigData.size + 4, size: 4 }), new Uint8Array(4)]),
    answer: "error",
  },
  {
    id: "mig-write-short",
    section: DATA_WRITE,
    title: "A request of 7 bytes is refused",
    command: MIG_DATA_WRITE,
    body: new Uint8Array(7),
    answer: "error",
  },
  {
    id: "mig-write-data-short",
    section: DATA_WRITE,
    title: "Less data than size is refused",
    command: MIG_DATA_WRITE,
    body: Buffer.concat([MigData.encode({ argsz: MigData.size + 64, size: 64 }), new Uint8Array(4)]),
    answer: "error",
  },
]);

const migration: Check[] = [
  {
    id: "migration-probe",
    section: SECTION,
    title: "The reply to a probe is the request's body",
    run: async (context) => {
      const session = await context.connect();
      await needMigration(session);
      const body = encodeFeature(Feature.MIGRATION | GET | PROBE);
      const reply = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, body.length);
      expectEqual("the flags", DeviceFeature.view(reply.data).flags, Feature.MIGRATION | GET | PROBE);
      return undefined;
    },
  },
  {
    id: "migration-get",
    section: MIGRATION,
    title: "A device that can be migrated has at least STOP_COPY",
    run: async (context) => {
      const session = await context.connect();
      await needMigration(session);
      const needed = DeviceFeature.size + FeatureMigration.size;
      const body = encodeFeature(Feature.MIGRATION | GET, undefined, needed);
      const { data } = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, needed);
      expectEqual("argsz", DeviceFeature.view(data).argsz, needed);
      const { flags } = FeatureMigration.view(data, DeviceFeature.size);
      expectThat((flags & MigrationFlags.STOP_COPY) !== 0, "VFIO_MIGRATION_STOP_COPY", `flags ${flags}`);
      return flags & MigrationFlags.PRE_COPY ? "with PRE_COPY" : undefined;
    },
  },
  {
    id: "migration-state",
    section: STATE,
    title: "The device tells its state",
    run: async (context) => {
      const session = await context.connect();
      await needMigration(session);
      const state = await getState(session);
      const used = Object.values(MigrationState).filter((each) => each !== 5 && each !== 7);
      expectThat(used.includes(state as (typeof used)[number]), `one of the states ${used.join(", ")}`, state);
      return `${state}`;
    },
  },
  {
    id: "migration-stop-run",
    section: STATE,
    title: "A running device can be stopped and started",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        await setState(session, MigrationState.STOP);
        await expectState(session, MigrationState.STOP);
        await setState(session, MigrationState.RUNNING);
        await expectState(session, MigrationState.RUNNING);
      }),
  },
  {
    id: "migration-save",
    section: DATA_READ,
    title: "A stopped device's state can be read to its end, and PRE_COPY is refused from there",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        await setState(session, MigrationState.STOP_COPY);
        const { length } = await readAll(session);
        expectRefusal(await requestState(session, MigrationState.PRE_COPY), DEVICE_FEATURE);
        return `${length} bytes`;
      }),
  },
  {
    id: "migration-resume",
    section: DATA_WRITE,
    title: "A device takes on a state that it gave, and runs again",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        await setState(session, STOP_COPY);
        const saved = await readAll(session);
        await setState(session, STOP);
        await setState(session, RESUMING);
        await expectState(session, RESUMING);
        await writeAll(session, saved);
        await setState(session, STOP);
        await expectState(session, STOP);
        await setState(session, RUNNING);
        await expectState(session, RUNNING);
        return `${saved.length} bytes`;
      }),
  },
  {
    id: "migration-resume-again",
    section: DATA_READ,
    title: "A state that a device took on can be read again while it is stopped, and taken on once more",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        let saved = await readSaved(session);
        for (let round = 0; round < 2; round++) {
          await setState(session, STOP);
          await setState(session, RESUMING);
          await writeAll(session, saved, 100_000);
          await setState(session, STOP);
          saved = await readSaved(session);
        }
        return `${saved.length} bytes`;
      }),
  },
  {
    id: "migration-resume-cut",
    section: vfioUser("Direct State Transitions"),
    title: "A state that is cut off is refused or not, and a device in ERROR runs again after a reset",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        const saved = await readSaved(session);
        if (saved.length === 0) throw new Skip("the device has no data");
        await setState(session, STOP);
        await setState(session, RESUMING);
        await writeAll(session, saved.subarray(0, -1));
        const note = expectReply(await requestState(session, STOP), DEVICE_FEATURE);
        const state = await getState(session);
        expectThat([STOP, RESUMING, ERROR].includes(state as 0), "the states STOP, RESUMING or ERROR", state);
        if (state === ERROR) {
          expectRefusal(await requestState(session, RUNNING), DEVICE_FEATURE);
          expectSuccess(await session.request(Command.DEVICE_RESET), Command.DEVICE_RESET, 0);
          await expectState(session, RUNNING);
        }
        return state === ERROR ? `${note}, ERROR` : note;
      }),
  },
  {
    id: "migration-resume-read",
    section: DATA_READ,
    title: "A device that is resuming gives no data",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        await setState(session, STOP);
        await setState(session, RESUMING);
        const body = MigData.encode({ argsz: MigData.size + 16, size: 16 });
        return expectRefusal(await session.request(MIG_DATA_READ, body), MIG_DATA_READ);
      }),
  },
  {
    id: "migration-state-error",
    section: STATE,
    title: "ERROR cannot be asked for",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) =>
        expectRefusal(await requestState(session, MigrationState.ERROR), DEVICE_FEATURE),
      ),
  },
  {
    id: "migration-state-unknown",
    section: STATE,
    title: "States that there are not cannot be asked for",
    destructive: true,
    run: (context) =>
      withRunningDevice(context, async (session) => {
        for (const state of [8, 0xffff_ffff]) expectRefusal(await requestState(session, state), DEVICE_FEATURE);
      }),
  },
];

export const migrationChecks: readonly Check[] = [...badMigration, ...migration];
