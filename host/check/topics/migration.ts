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
import { topic, vfioUser } from "../check.js";
import { hasFeature } from "../device.js";
import { expectEqual, expectThat, Failure, Skip } from "../expect.js";
import { encodeFeature, isError, NO_BYTES } from "../messages.js";
import type { CheckerSession } from "../session.js";

const { DEVICE_FEATURE, DEVICE_RESET, MIG_DATA_READ, MIG_DATA_WRITE } = Command;
const STATE = vfioUser("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE");
const DATA_READ = { section: vfioUser("VFIO_USER_MIG_DATA_READ"), command: MIG_DATA_READ };
const DATA_WRITE = { section: vfioUser("VFIO_USER_MIG_DATA_WRITE"), command: MIG_DATA_WRITE };
const { GET, SET, PROBE } = DeviceFeatureFlags;
const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;
const STATES: readonly number[] = Object.values(MigrationState).filter((each) => each !== 5 && each !== 7);
const CHUNK = 64 * 1024;
/** Chunks read of a device's state before the check gives up on its end. */
const MAX_CHUNKS = 4096;

async function needMigration(session: CheckerSession): Promise<void> {
  if (!(await hasFeature(session, Feature.MIGRATION, GET))) throw new Skip("the device does not announce migration");
}

async function getState(session: CheckerSession): Promise<number> {
  const needed = DeviceFeature.size + FeatureMigDeviceState.size;
  // Some servers take the state as part of a GET as well.
  const body = encodeFeature(Feature.MIG_DEVICE_STATE | GET, new Uint8Array(FeatureMigDeviceState.size));
  const { data } = await session.success(DEVICE_FEATURE, body, needed);
  return FeatureMigDeviceState.view(data, DeviceFeature.size).deviceState;
}

function encodeState(deviceState: number): Uint8Array {
  const payload = FeatureMigDeviceState.encode({ deviceState, dataFd: 0xffff_ffff });
  return encodeFeature(Feature.MIG_DEVICE_STATE | SET, payload);
}

/** One state after the other. */
async function setStates(session: CheckerSession, ...states: readonly number[]): Promise<void> {
  for (const state of states) await session.success(DEVICE_FEATURE, encodeState(state));
}

/** Sets the state, which the device then says. */
async function reach(session: CheckerSession, state: number): Promise<void> {
  await setStates(session, state);
  expectEqual("the device state", await getState(session), state);
}

function encodeRead(size: number): Uint8Array {
  return MigData.encode({ argsz: MigData.size + size, size });
}

/** `bytes`, said to be `size` of them. */
function encodeData(bytes: Uint8Array, size = bytes.length): Uint8Array {
  return Buffer.concat([encodeRead(size), bytes]);
}

/** The device's data to its end. @throws Failure */
async function readAll(session: CheckerSession): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let chunk = 0; chunk < MAX_CHUNKS; chunk++) {
    const { data, body } = await session.success(MIG_DATA_READ, encodeRead(CHUNK));
    expectThat(body.length >= MigData.size, "argsz and size", `${body.length} bytes`);
    const { size } = MigData.view(data);
    expectThat(size <= CHUNK, `at most the ${CHUNK} bytes that were asked for`, size);
    expectThat(body.length >= MigData.size + size, `${size} bytes of data`, body.length - MigData.size);
    parts.push(body.slice(MigData.size, MigData.size + size));
    if (size < CHUNK) return Buffer.concat(parts);
  }
  throw new Failure("an end of the migration data", `more than ${MAX_CHUNKS * CHUNK} bytes`);
}

/** Gives the device data, in pieces that are not those in which it was read. @throws Failure */
async function writeAll(session: CheckerSession, bytes: Uint8Array, piece = 1000): Promise<void> {
  for (let at = 0; at < bytes.length; at += piece) {
    await session.success(MIG_DATA_WRITE, encodeData(bytes.subarray(at, at + piece)), 0);
  }
}

/** Stops the device, and reads its state. */
async function save(session: CheckerSession): Promise<Uint8Array> {
  await setStates(session, STOP_COPY);
  return readAll(session);
}

/** A check of a device that can be migrated. */
const migratable = (check: (session: CheckerSession) => Promise<string | undefined>) => {
  return async (session: CheckerSession): Promise<string | undefined> => {
    await needMigration(session);
    return check(session);
  };
};

/** A check that begins with a running device, and has it running again afterwards. */
const running = (check: (session: CheckerSession) => Promise<string | undefined>) => {
  return migratable(async (session) => {
    const state = await getState(session);
    if (state !== RUNNING) throw new Skip(`the device is in state ${state}, not running`);
    try {
      return await check(session);
    } finally {
      const answer = await session.request(DEVICE_FEATURE, encodeState(RUNNING));
      // From ERROR there is no other way.
      if (answer === undefined || isError(answer)) await session.request(DEVICE_RESET);
    }
  });
};

export const migration = [
  ...topic({ ...DATA_READ, prefix: "mig-read-", answer: "error" }, [
    {
      id: "running",
      title: "Migration data cannot be read while the device is not in a saving state",
      body: encodeRead(16),
    },
    { id: "short", title: "A request of 7 bytes is refused", body: new Uint8Array(7) },
    {
      id: "huge",
      title: "A size of 0xffffffff is refused",
      body: MigData.encode({ argsz: 0xffff_ffff, size: 0xffff_ffff }),
    },
  ]),
  ...topic({ ...DATA_WRITE, prefix: "mig-write-", answer: "error" }, [
    {
      id: "running",
      title: "Migration data cannot be written while the device is not resuming",
      body: encodeData(new Uint8Array(4)),
    },
    { id: "short", title: "A request of 7 bytes is refused", body: new Uint8Array(7) },
    { id: "data-short", title: "Less data than size is refused", body: encodeData(new Uint8Array(4), 64) },
  ]),
  ...topic({ section: vfioUser("VFIO_USER_DEVICE_FEATURE"), prefix: "migration-" }, [
    {
      id: "probe",
      title: "The reply to a probe is the request's body",
      connected: migratable(async (session) => {
        const body = encodeFeature(Feature.MIGRATION | GET | PROBE);
        const { data } = await session.success(DEVICE_FEATURE, body, body.length);
        expectEqual("the flags", DeviceFeature.view(data).flags, Feature.MIGRATION | GET | PROBE);
      }),
    },
    {
      id: "get",
      section: vfioUser("VFIO_DEVICE_FEATURE_MIGRATION"),
      title: "A device that can be migrated has at least STOP_COPY",
      connected: migratable(async (session) => {
        const needed = DeviceFeature.size + FeatureMigration.size;
        const body = encodeFeature(Feature.MIGRATION | GET, undefined, needed);
        const { data } = await session.success(DEVICE_FEATURE, body, needed);
        expectEqual("argsz", DeviceFeature.view(data).argsz, needed);
        const { flags } = FeatureMigration.view(data, DeviceFeature.size);
        expectThat((flags & MigrationFlags.STOP_COPY) !== 0, "VFIO_MIGRATION_STOP_COPY", `flags ${flags}`);
        return flags & MigrationFlags.PRE_COPY ? "with PRE_COPY" : undefined;
      }),
    },
    {
      id: "state",
      section: STATE,
      title: "The device reports its state",
      connected: migratable(async (session) => {
        const state = await getState(session);
        expectThat(STATES.includes(state), `one of the states ${STATES.join(", ")}`, state);
        return `${state}`;
      }),
    },
    {
      id: "stop-run",
      section: STATE,
      title: "A running device can be stopped and started",
      destructive: true,
      connected: running(async (session) => {
        await reach(session, STOP);
        await reach(session, RUNNING);
      }),
    },
    {
      id: "save",
      section: DATA_READ.section,
      title: "A stopped device's state can be read to its end, and PRE_COPY is refused from there",
      destructive: true,
      connected: running(async (session) => {
        const { length } = await save(session);
        await session.refusal(DEVICE_FEATURE, encodeState(PRE_COPY));
        return `${length} bytes`;
      }),
    },
    {
      id: "resume",
      section: DATA_WRITE.section,
      title: "A device takes on a state that it gave, and runs again",
      destructive: true,
      connected: running(async (session) => {
        const saved = await save(session);
        await setStates(session, STOP);
        await reach(session, RESUMING);
        await writeAll(session, saved);
        await reach(session, STOP);
        await reach(session, RUNNING);
        return `${saved.length} bytes`;
      }),
    },
    {
      id: "resume-again",
      section: DATA_READ.section,
      title: "A state that a device took on can be read again while it is stopped, and taken on once more",
      destructive: true,
      connected: running(async (session) => {
        let saved = await save(session);
        for (let round = 0; round < 2; round++) {
          await setStates(session, STOP, RESUMING);
          await writeAll(session, saved, 100_000);
          await setStates(session, STOP);
          saved = await save(session);
        }
        return `${saved.length} bytes`;
      }),
    },
    {
      id: "resume-cut",
      section: vfioUser("Direct State Transitions"),
      title: "A state that is cut off is refused or not, and a device in ERROR runs again after a reset",
      destructive: true,
      connected: running(async (session) => {
        const saved = await save(session);
        if (saved.length === 0) throw new Skip("the device has no data");
        await setStates(session, STOP, RESUMING);
        await writeAll(session, saved.subarray(0, -1));
        const note = await session.reply(DEVICE_FEATURE, encodeState(STOP));
        const state = await getState(session);
        expectThat([STOP, RESUMING, ERROR].includes(state as 0), "the states STOP, RESUMING or ERROR", state);
        if (state !== ERROR) return note;
        await session.refusal(DEVICE_FEATURE, encodeState(RUNNING));
        await session.success(DEVICE_RESET, NO_BYTES, 0);
        expectEqual("the device state", await getState(session), RUNNING);
        return `${note}, ERROR`;
      }),
    },
    {
      id: "resume-read",
      section: DATA_READ.section,
      title: "A device that is resuming gives no data",
      destructive: true,
      connected: running(async (session) => {
        await setStates(session, STOP, RESUMING);
        return session.refusal(MIG_DATA_READ, encodeRead(16));
      }),
    },
    {
      id: "state-error",
      section: STATE,
      title: "ERROR cannot be asked for",
      destructive: true,
      connected: running((session) => session.refusal(DEVICE_FEATURE, encodeState(ERROR))),
    },
    {
      id: "state-unknown",
      section: STATE,
      title: "States that there are not cannot be asked for",
      destructive: true,
      connected: running(async (session) => {
        for (const state of [8, 0xffff_ffff]) await session.refusal(DEVICE_FEATURE, encodeState(state));
      }),
    },
  ]),
];
