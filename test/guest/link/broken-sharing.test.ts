/** The virtio link against a bridge that gives memory and eventfds which cannot be. */
import test from "ava";
import { createVirtioLink } from "../../../guest/link/virtio/open.js";
import { Errno, UserError } from "../../../shared/errors.js";
import { MiB } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import { AllocateEvents, AllocateMemory, IoEvent, LinkCommand, MemoryAllocated } from "../../../shared/spec/link.js";
import { Status } from "../../../shared/spec/virtio.js";
import { setU64 } from "../../../shared/struct/struct.js";
import { PciBridge } from "../../fakes/pci-bridge.js";
import { setUp } from "./in-process.js";

const AREAS = [
  { offset: 0, size: 0x1000 },
  { offset: 0x4000, size: 0x2000 },
];

const dataOf = ({ buffer, byteOffset, length }: Buffer<ArrayBuffer>) => new DataView(buffer, byteOffset, length);

function placed(...offsets: number[]): Uint8Array {
  const body = new Uint8Array(MemoryAllocated.size + 8 * offsets.length);
  const data = new DataView(body.buffer);
  MemoryAllocated.view(data).handle = 9;
  for (const [n, offset] of offsets.entries()) setU64(data, MemoryAllocated.size + 8 * n, offset);
  return body;
}

async function open(t: { teardown(action: () => Promise<void>): void }) {
  const bridge = new PciBridge();
  const link = await createVirtioLink(bridge, quietLog, false, "never");
  t.teardown(async () => {
    const closed = link.close();
    const quiesce = bridge.poll();
    if (quiesce !== undefined) bridge.reply(quiesce);
    await closed;
  });
  return { bridge, link };
}

test("memory and eventfds before HELLO: the device is brought up once, and areas are in the window", async (t) => {
  const { bridge, link } = await open(t);
  const asked = link.allocateMemory(2, AREAS);
  const request = await bridge.receive();
  t.true((bridge.status & Status.DRIVER_OK) !== 0);
  t.is(request.command, LinkCommand.ALLOCATE_MEMORY);
  const { region, areas } = AllocateMemory.view(dataOf(request.body));
  t.deepEqual([region, areas, request.body.length], [2, 2, AllocateMemory.size + 32]);
  bridge.reply(request, placed(0x1000, 0x3000));
  const memory = await asked;
  t.is(memory.descriptor, 9);
  t.deepEqual(
    memory.areas.map(({ byteOffset, length }) => [byteOffset, length]),
    [
      [0x1000, 0x1000],
      [0x3000, 0x2000],
    ],
  );
  const told: number[] = [];
  const events = link.allocateEvents(2, 2, (index) => told.push(index));
  const next = await bridge.receive();
  t.is(next.command, LinkCommand.ALLOCATE_EVENTS);
  const { region: of, count } = AllocateEvents.view(dataOf(next.body));
  t.deepEqual([of, count], [2, 2]);
  bridge.reply(next, new Uint8Array(Uint32Array.of(70, 80).buffer));
  t.deepEqual((await events).descriptors, [70, 80]);
});

const bad: Record<string, Uint8Array> = {
  "no body": new Uint8Array(0),
  "one place too few": placed(0x1000),
  "one place too many": placed(0x1000, 0x3000, 0x8000),
  "a place outside of the window": placed(0x1000, 2 ** 40),
  "a place over the window's end": placed(0x1000, 16 * MiB - 0x1000),
  "a place above 2^53": placed(0x1000, 2 ** 53 - 1),
  "a place on no page": placed(0x1008, 0x3000),
};
for (const [what, body] of Object.entries(bad)) {
  test(`memory is refused: ${what}`, async (t) => {
    const { bridge, link } = await open(t);
    const asked = link.allocateMemory(2, AREAS);
    bridge.reply(await bridge.receive(), body);
    await t.throwsAsync(asked, { instanceOf: UserError });
  });
}

test("a bridge that gives nothing is an error that says so", async (t) => {
  const { bridge, link } = await open(t);
  const memory = link.allocateMemory(0, AREAS);
  bridge.reply(await bridge.receive(), undefined, Errno.ENOSPC);
  await t.throwsAsync(memory, { instanceOf: UserError, message: /memory or eventfds/ });
  const events = link.allocateEvents(0, 2, () => {});
  bridge.reply(await bridge.receive(), new Uint8Array(4));
  await t.throwsAsync(events, { instanceOf: UserError });
});

test("an event of a handle that is nobody's, or without one, is refused, and the link lives", async (t) => {
  const { bridge, connect } = await setUp(t);
  await connect();
  t.is((await bridge.request(LinkCommand.IO_EVENT, IoEvent.encode({ handle: 1 }))).errno, Errno.EINVAL);
  t.is((await bridge.request(LinkCommand.IO_EVENT, new Uint8Array(7))).errno, Errno.EINVAL);
  await connect();
});
