/** Migration: the device state by DEVICE_FEATURE, and its data. State changes are destructive checks. */
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  Feature,
  FeatureMigDeviceState,
  FeatureMigration,
  MigData,
  MigrationFlags,
  MigrationState,
} from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { encodeFeature } from "../bodies.js";
import { type Check, Failure, Skip, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectRefusal, expectSuccess, expectThat } from "../expect.js";
import { hasFeature } from "../feature.js";
import type { Session } from "../session.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_FEATURE");
const MIGRATION = vfioUser("VFIO_DEVICE_FEATURE_MIGRATION");
const STATE = vfioUser("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
const DATA_READ = vfioUser("VFIO_USER_MIG_DATA_READ");
const DATA_WRITE = vfioUser("VFIO_USER_MIG_DATA_WRITE");
const { DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE } = Command;
const { GET, SET, PROBE } = DeviceFeatureFlags;
const CHUNK = 64 * 1024;
/** Chunks read of a device's state before the check gives up on its end. */
const MAX_CHUNKS = 4096;

async function needMigration(session: Session): Promise<void> {
  if (!(await hasFeature(session, Feature.MIGRATION, GET))) throw new Skip("the device does not announce migration");
}

async function getState(session: Session): Promise<number> {
  const needed = DeviceFeature.size + FeatureMigDeviceState.size;
  const flags = Feature.MIG_DEVICE_STATE | GET;
  // Some servers take the state as part of a GET as well.
  const body = encodeFeature(flags, new Uint8Array(FeatureMigDeviceState.size));
  const { data } = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, needed);
  return FeatureMigDeviceState.view(data, DeviceFeature.size).deviceState;
}

function requestState(session: Session, state: number) {
  const payload = FeatureMigDeviceState.encode({ deviceState: state, dataFd: 0xffff_ffff });
  return session.request(DEVICE_FEATURE, encodeFeature(Feature.MIG_DEVICE_STATE | SET, payload));
}

async function setState(session: Session, state: number): Promise<void> {
  expectSuccess(await requestState(session, state), DEVICE_FEATURE);
}

async function expectState(session: Session, state: number): Promise<void> {
  expectEqual("the device state", await getState(session), state);
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
        const bytes = await readAll(session);
        expectRefusal(await requestState(session, MigrationState.PRE_COPY), DEVICE_FEATURE);
        return `${bytes} bytes`;
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

/** Runs `body` on a running device that can be migrated, and has it running again afterwards. */
async function withRunningDevice(
  context: Context,
  // biome-ignore lint/suspicious/noConfusingVoidType: a body need not have a note
  body: (session: Session) => Promise<string | void>,
): Promise<string | undefined> {
  const session = await context.connect();
  await needMigration(session);
  const state = await getState(session);
  if (state !== MigrationState.RUNNING) throw new Skip(`the device is in state ${state}, not running`);
  try {
    return (await body(session)) ?? undefined;
  } finally {
    await requestState(session, MigrationState.RUNNING);
  }
}

async function readAll(session: Session): Promise<number> {
  let total = 0;
  for (let chunk = 0; chunk < MAX_CHUNKS; chunk++) {
    const body = MigData.encode({ argsz: MigData.size + CHUNK, size: CHUNK });
    const reply = expectSuccess(await session.request(MIG_DATA_READ, body), MIG_DATA_READ);
    expectThat(reply.body.length >= MigData.size, "argsz and size", `${reply.body.length} bytes`);
    const { size } = MigData.view(reply.data);
    expectThat(size <= CHUNK, `at most the ${CHUNK} bytes that were asked for`, size);
    expectThat(reply.body.length >= MigData.size + size, `${size} bytes of data`, reply.body.length - MigData.size);
    total += size;
    if (size < CHUNK) return total;
  }
  throw new Failure("an end of the migration data", `more than ${total} bytes`);
}

export const migrationChecks: readonly Check[] = [...badMigration, ...migration];
