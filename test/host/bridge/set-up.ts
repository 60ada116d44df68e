/**
 * The bridge as a process, between a front-end that plays QEMU and a vfio-user client that plays the driver VM's VMM.
 */
import type { ExecutionContext } from "ava";
import * as native from "../../../native/index.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { Config } from "../../../shared/spec/link.js";
import { DmaMap, IrqSet } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FrontEnd, type FrontEndOptions } from "../../fakes/front-end.js";
import { BridgeProcess, type BridgeProcessOptions } from "../../fakes/front-end-bridge.js";
import { Layout, REGISTER_BAR } from "../../fakes/front-end-config.js";
import { type DeviceOptions, TestDevice } from "../../fakes/front-end-device.js";
import { closeFd } from "./raw-peer.js";

interface Options extends BridgeProcessOptions, FrontEndOptions {
  readonly device?: DeviceOptions;
  /** What the operator is told. */
  readonly errors?: RegExp;
}

/** A bridge, a device VM with a device process that said HELLO, and checks at the end that nothing broke. */
export async function setUp(t: ExecutionContext, options: Options = {}) {
  const bridge = await BridgeProcess.start(options);
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath, options);
  const device = new TestDevice(frontEnd, options.device);
  t.teardown(async () => {
    const { fatal } = frontEnd;
    frontEnd.quit();
    const { alive } = bridge;
    const code = await bridge.stop();
    // No assertions are possible in here, but an error is one.
    if (fatal !== undefined) throw new Error(`QEMU died: ${fatal}`);
    if (!alive || code !== 0) throw new Error(`the bridge ended with ${code}:\n${bridge.log}`);
    const errors = bridge.log.split("\n").filter((line) => line.includes('"level":50'));
    if (errors.some((line) => options.errors?.test(line) !== true))
      throw new Error(`an operator has to act:\n${bridge.log}`);
  });
  await device.startAndGreet();
  const connect = async () => {
    const client = await Client.connect(bridge.socketPath);
    t.teardown(() => client.close());
    return client;
  };
  return { bridge, frontEnd, device, connect };
}

export function memory(t: ExecutionContext, size: number) {
  const fd = native.createMemory("driver-vm", size, false);
  native.addSeals(fd, native.F_SEAL_SHRINK | native.F_SEAL_GROW);
  t.teardown(() => closeFd(fd));
  return { fd, bytes: new Uint8Array(native.mapFile(fd, 0, size, native.PROT_READ | native.PROT_WRITE)) };
}

export function eventfd(t: ExecutionContext) {
  const fd = native.eventfd(0);
  let signals = 0;
  let waiting: (() => void) | undefined;
  const poll = new native.Poll(fd, () => {
    signals += native.eventfdRead(fd);
    waiting?.();
  });
  poll.start(native.POLL_READABLE);
  t.teardown(() => {
    poll.close();
    closeFd(fd);
  });
  return {
    fd,
    get signals() {
      return signals;
    },
    async signalled(count: number) {
      while (signals < count) {
        await new Promise<void>((resolve) => {
          waiting = resolve;
        });
      }
    },
  };
}

export const pattern = (length: number, seed = 0) =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) + seed) & 0xff);
export const ones = (length: number) => new Uint8Array(length).fill(0xff);

export function readConfig(frontEnd: FrontEnd) {
  const bytes = new Uint8Array(80);
  const registers = frontEnd.registers(REGISTER_BAR);
  for (let i = 0; i < bytes.length; i++) bytes[i] = registers.read8(Layout.DEVICE + i);
  return { bytes, ...pick(Config.view(new DataView(bytes.buffer))) };
}
const pick = (view: ReturnType<typeof Config.view>) => ({
  magic: view.magic,
  abiVersion: view.abiVersion,
  doorbells: view.doorbells,
  status: view.status,
  generation: view.generation,
  windowSize: view.windowSize,
  maxMessageSize: view.maxMessageSize,
});

export const mapFlags = (data: DataView) => DmaMap.view(data).flags;
export const doorbellsOf = (body: Uint8Array) => {
  const data = new DataView(body.buffer, body.byteOffset, body.length);
  return Array.from({ length: (body.length - IrqSet.size) / 4 }, (_, i) => data.getUint32(IrqSet.size + 4 * i, true));
};

/** Waits until the device process answers commands again. */
export async function deviceAnswers(client: Client): Promise<void> {
  for (;;) {
    try {
      await client.getIrqInfo(0);
      return;
    } catch (error) {
      if (!(error instanceof ProtocolError) || error.errno !== Errno.ENODEV) throw error;
    }
  }
}
