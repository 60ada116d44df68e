/** Bringing a device from one migration state to the next, and reading and writing its data, for the checks of both. */
import {
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  Feature,
  FeatureMigDeviceState,
  MigData,
  MigrationState,
} from "../../shared/spec/vfio-user.js";
import { encodeFeature } from "./bodies.js";
import type { Context } from "./context.js";
import { expectEqual, expectSuccess, expectThat, isError } from "./expect.js";
import { hasFeature } from "./feature.js";
import type { Session } from "./session.js";
import { Failure, Skip } from "./verdict.js";

const { DEVICE_FEATURE, MIG_DATA_READ, MIG_DATA_WRITE } = Command;
const { GET, SET } = DeviceFeatureFlags;
const CHUNK = 64 * 1024;
/** Chunks read of a device's state before the check gives up on its end. */
const MAX_CHUNKS = 4096;

export async function needMigration(session: Session): Promise<void> {
  if (!(await hasFeature(session, Feature.MIGRATION, GET))) throw new Skip("the device does not announce migration");
}

export async function getState(session: Session): Promise<number> {
  const needed = DeviceFeature.size + FeatureMigDeviceState.size;
  const flags = Feature.MIG_DEVICE_STATE | GET;
  // Some servers take the state as part of a GET as well.
  const body = encodeFeature(flags, new Uint8Array(FeatureMigDeviceState.size));
  const { data } = expectSuccess(await session.request(DEVICE_FEATURE, body), DEVICE_FEATURE, needed);
  return FeatureMigDeviceState.view(data, DeviceFeature.size).deviceState;
}

export function requestState(session: Session, state: number) {
  const payload = FeatureMigDeviceState.encode({ deviceState: state, dataFd: 0xffff_ffff });
  return session.request(DEVICE_FEATURE, encodeFeature(Feature.MIG_DEVICE_STATE | SET, payload));
}

export async function setState(session: Session, state: number): Promise<void> {
  expectSuccess(await requestState(session, state), DEVICE_FEATURE);
}

export async function expectState(session: Session, state: number): Promise<void> {
  expectEqual("the device state", await getState(session), state);
}

/** Runs `body` on a running device that can be migrated, and has it running again afterwards. */
export async function withRunningDevice(
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
    const isRunning = await requestState(session, MigrationState.RUNNING);
    // From ERROR there is no other way.
    if (isRunning === undefined || isError(isRunning)) await session.request(Command.DEVICE_RESET);
  }
}

/** The device's data to its end. @throws Failure */
export async function readAll(session: Session): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let chunk = 0; chunk < MAX_CHUNKS; chunk++) {
    const body = MigData.encode({ argsz: MigData.size + CHUNK, size: CHUNK });
    const reply = expectSuccess(await session.request(MIG_DATA_READ, body), MIG_DATA_READ);
    expectThat(reply.body.length >= MigData.size, "argsz and size", `${reply.body.length} bytes`);
    const { size } = MigData.view(reply.data);
    expectThat(size <= CHUNK, `at most the ${CHUNK} bytes that were asked for`, size);
    expectThat(reply.body.length >= MigData.size + size, `${size} bytes of data`, reply.body.length - MigData.size);
    parts.push(reply.body.slice(MigData.size, MigData.size + size));
    if (size < CHUNK) return Buffer.concat(parts);
  }
  throw new Failure("an end of the migration data", `more than ${MAX_CHUNKS * CHUNK} bytes`);
}

/** Gives the device data, in pieces that are not those in which it was read. @throws Failure */
export async function writeAll(session: Session, bytes: Uint8Array, piece = 1000): Promise<void> {
  for (let at = 0; at < bytes.length; at += piece) {
    const data = bytes.subarray(at, at + piece);
    const body = Buffer.concat([MigData.encode({ argsz: MigData.size + data.length, size: data.length }), data]);
    expectSuccess(await session.request(MIG_DATA_WRITE, body), MIG_DATA_WRITE, 0);
  }
}
