/** The state of a device inside its VM, as the bridge's control socket has it; and what a hostile one can say there. */
import { join } from "node:path";
import test, { type ExecutionContext } from "ava";
import { DeviceEndpoint } from "../../../guest/function/endpoint.js";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { ControlClient } from "../../../shared/control/control-client.js";
import { Errno } from "../../../shared/errors.js";
import { MAX_INSPECTION_SIZE } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { Inspect, LinkCommand } from "../../../shared/spec/link.js";
import { HeaderFlags, Region } from "../../../shared/spec/vfio-user.js";
import { CopyDevice } from "../../fakes/copy-device.js";
import { FrontEnd } from "../../fakes/front-end.js";
import { BridgeProcess } from "../../fakes/front-end-bridge.js";
import { type DeviceOptions, message } from "../../fakes/front-end-device.js";
import { folder } from "../../native/helpers.js";
import { setUp } from "./set-up.js";

// biome-ignore lint/suspicious/noExplicitAny: what the schema says
type Answer = any;

async function asker(t: ExecutionContext, socket: string) {
  const control = await ControlClient.connect(socket);
  t.teardown(() => control.close());
  return async (): Promise<Answer> => {
    const [answer] = (await control.request("inspect")) as Answer;
    return answer.state.inDeviceVm;
  };
}

test("a device's inspect(), its registers, maps and interrupts come out of its VM", async (t) => {
  const socket = join(folder(t), "control");
  const bridge = await BridgeProcess.start({ args: [`--control=${socket}`] });
  t.teardown(() => bridge.stop());
  const ask = await asker(t, socket);
  t.deepEqual(await ask(), { unknown: "the device process is absent" });
  const frontEnd = new FrontEnd(bridge.vhostUserSocketPath);
  t.teardown(() => frontEnd.quit());
  const link = await createVirtioLink(frontEnd, quietLog, false, "never");
  const device = Object.assign(new CopyDevice(), { inspect: () => ({ big: 2n ** 63n, text: "\u001b" }) as unknown });
  const endpoint = new DeviceEndpoint(device, link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  t.teardown(() => link.close());
  t.like(await ask(), { device: { big: "0x8000000000000000", text: "\u001b" }, dma: { mapCount: 0 } });
  device.inspect = () => "x".repeat(MAX_INSPECTION_SIZE);
  t.deepEqual(await ask(), { unknown: `the device refused command ${LinkCommand.INSPECT}` });
  device.inspect = () => {
    throw new Error("an author's bug");
  };
  t.deepEqual(await ask(), { unknown: `the device refused command ${LinkCommand.INSPECT}` });
  device.inspect = () => undefined;
  t.like(await ask(), { dma: { mapCount: 0 } });
});

async function hostile(t: ExecutionContext, device: DeviceOptions = { inspectable: true }) {
  const socket = join(folder(t), "control");
  const parts = await setUp(t, { device, args: [`--control=${socket}`] });
  const ask = await asker(t, socket);
  const answerBy = (reply: (id: number) => Uint8Array | undefined) => {
    parts.device.onCommand = ({ id, command, data }) => {
      if (command !== LinkCommand.INSPECT) return false;
      t.is(Inspect.view(data).maxSize, MAX_INSPECTION_SIZE);
      const bytes = reply(id);
      if (bytes !== undefined) parts.device.sendRaw(bytes);
      return true;
    };
  };
  const text = (words: string | Uint8Array) =>
    answerBy((id) => message(id, LinkCommand.INSPECT, HeaderFlags.TYPE_REPLY, Buffer.from(words)));
  return { ...parts, ask, answerBy, text };
}

test("one that does not know of it is not asked", async (t) => {
  const { ask, device } = await hostile(t, {});
  t.deepEqual(await ask(), { unknown: "the device process does not say: it is of an older version" });
  t.false(device.received.some(({ command }) => command === LinkCommand.INSPECT));
});

test("what is no JSON, or no text, or too much, is an error and nothing more", async (t) => {
  const { ask, answerBy, text, connect } = await hostile(t);
  const client = await connect();
  const cases: [string | Uint8Array, Answer][] = [
    ['{"a":[1,"\u2028\\n"]}', { a: [1, "\u2028\n"] }],
    ['{"__proto__":{"x":1},"constructor":2}', JSON.parse('{"__proto__":{"x":1},"constructor":2}')],
    ["", { unknown: "what the device process says is no JSON" }],
    ["{", { unknown: "what the device process says is no JSON" }],
    [Uint8Array.of(0x22, 0xff, 0x22), { unknown: "what the device process says is no JSON" }],
    [`"${"x".repeat(MAX_INSPECTION_SIZE)}"`, { unknown: "the device process says more than it was asked for" }],
  ];
  for (const [words, expected] of cases) {
    text(words);
    t.deepEqual(await ask(), expected);
  }
  text("[".repeat(60_000) + "]".repeat(60_000));
  t.deepEqual(await ask(), { unknown: "what the device process says is nested too deeply" });
  text(JSON.stringify({ a: `${"[".repeat(1000)}\\"`, b: [[[]]] }));
  t.like(await ask(), { b: [[[]]] });
  answerBy((id) =>
    message(id, LinkCommand.INSPECT, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, undefined, Errno.EPERM),
  );
  t.deepEqual(await ask(), { unknown: `the device refused command ${LinkCommand.INSPECT}` });
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
});

test("one that does not answer keeps nobody waiting, is asked once, and its driver VM goes on", async (t) => {
  const { ask, answerBy, text, device, connect } = await hostile(t);
  const client = await connect();
  let asked: number | undefined;
  answerBy((id) => {
    asked = id;
    return undefined;
  });
  t.deepEqual(await ask(), { unknown: "the device process does not answer" });
  t.is((await client.regionRead(Region.BAR0, 0, 4)).length, 4);
  // Whoever asks meanwhile waits for the same answer.
  t.deepEqual(await ask(), { unknown: "the device process does not answer" });
  t.is(device.received.filter(({ command }) => command === LinkCommand.INSPECT).length, 1);
  text('"next"');
  device.sendRaw(message(asked ?? 0, LinkCommand.INSPECT, HeaderFlags.TYPE_REPLY, Buffer.from('"late"')));
  t.true(["late", "next"].includes(await ask()));
  t.is(await ask(), "next");
});
