/** Plain register accesses in C++: what is dealt with there, and that it is what the endpoint does with commands. */
import test from "ava";
import {
  Command,
  HeaderFlags,
  Region,
  RegionAccess,
  WriteMulti,
  WriteMultiEntry,
} from "../../../shared/spec/vfio-user.js";
import { encode } from "../../fakes/access-rig.js";
import { AccessTwins } from "../../fakes/access-twins.js";
import { EVENT, Own } from "../../fakes/regions-device.js";

const read = (region: number, offset: number, count: number, flags = 0) =>
  encode(7, Command.REGION_READ, RegionAccess.encode({ region, offset, count }), flags);
const write = (region: number, offset: number, data: Uint8Array, flags = 0, count = data.length) =>
  encode(8, Command.REGION_WRITE, Buffer.concat([RegionAccess.encode({ region, offset, count }), data]), flags);
const multi = (...writes: [region: number, offset: number, count: number][]) => {
  const entries = writes.map(([region, offset, count], n) => {
    const entry = WriteMultiEntry.encode({ region, offset, count });
    entry.fill(n + 1, WriteMultiEntry.offsets.data);
    return entry;
  });
  return encode(
    9,
    Command.REGION_WRITE_MULTI,
    Buffer.concat([WriteMulti.encode({ writes: writes.length }), ...entries]),
  );
};
const word = Uint8Array.of(1, 2, 3, 4);
const { NO_REPLY } = HeaderFlags;

const VECTORS: readonly [title: string, bytes: Uint8Array<ArrayBuffer>, isTaken: boolean][] = [
  ["a word of the device's", read(Region.BAR0, 8, 4), true],
  ["a byte, at the end", read(Region.BAR0, 0xfff, 1), true],
  ["a read without a reply", read(Region.BAR0, 8, 4, NO_REPLY), true],
  ["a stored register", read(Own.REGISTERS, 0, 4), true],
  ["half of one", read(Own.REGISTERS, 2, 2), true],
  ["config space", read(Region.CONFIG, 0, 4), true],
  ["memory that is shared", read(Own.WHOLE, 0x100, 4), true],
  ["eight bytes", read(Region.BAR0, 8, 8), false],
  ["nothing", read(Region.BAR0, 8, 0), false],
  ["not aligned", read(Region.BAR0, 6, 4), false],
  ["across the end", read(Region.BAR0, 0xffe, 4), false],
  ["behind the end", read(Region.BAR0, 2 ** 52, 4), false],
  ["a region that is not there", read(Region.BAR1, 0, 4), false],
  ["no region", read(77, 0, 4), false],
  ["a region that is only written", read(Own.WRITE_ONLY, 0, 4), false],
  ["a flag that nobody knows", read(Region.BAR0, 8, 4, 0x40), false],
  ["a reply", read(Region.BAR0, 8, 4, HeaderFlags.TYPE_REPLY), false],
  ["a write of a word", write(Region.BAR0, 8, word), true],
  ["a write without a reply", write(Region.BAR0, 8, word, NO_REPLY), true],
  ["a write to shared memory", write(Own.WHOLE, 8, word.subarray(0, 2)), true],
  ["a write to config space", write(Region.CONFIG, 4, word), false],
  ["a write to where an ioeventfd may match", write(Own.REGISTERS, EVENT.offset, Uint8Array.of(5, 0, 0, 0)), false],
  ["a write to a region that is only read", write(Own.READ_ONLY, 0, word), false],
  ["a write of three bytes", write(Region.BAR0, 8, word.subarray(0, 3)), false],
  ["a write that says more than it has", write(Region.BAR0, 8, word, 0, 8), false],
  ["several writes", multi([Region.BAR0, 0, 4], [Region.BAR0, 6, 2], [Own.WHOLE, 3, 1]), true],
  ["several, one not aligned", multi([Region.BAR0, 0, 4], [Region.BAR0, 5, 2]), false],
  ["several, one of config space", multi([Region.BAR0, 0, 4], [Region.CONFIG, 4, 2]), false],
  ["several, one outside", multi([Region.BAR0, 0, 4], [Region.BAR0, 0x1000, 4]), false],
  ["none", multi(), false],
  ["another command", encode(3, Command.DEVICE_RESET, new Uint8Array(0)), false],
  ["half a header", new Uint8Array(7), false],
];

for (const [title, bytes, isTaken] of VECTORS) {
  test(title, async (t) => {
    const twins = new AccessTwins();
    await twins.start();
    t.is(twins.compare(bytes), isTaken);
    // And what it did can be seen.
    t.true(twins.compare(read(Region.BAR0, 8, 4)));
  });
}

test("a device that throws", async (t) => {
  const twins = new AccessTwins();
  await twins.start();
  const bug = () => {
    throw new Error("a bug");
  };
  twins.each(({ device }) => Object.assign(device, { readBar: bug, writeBar: bug }));
  for (const bytes of [read(0, 8, 4), read(0, 8, 1), write(0, 8, word), multi([0, 0, 4], [Own.WHOLE, 0, 4])]) {
    t.true(twins.compare(bytes));
  }
});

test("values of the device's that are none", async (t) => {
  const twins = new AccessTwins();
  await twins.start();
  for (const value of [-1, -5, 2 ** 32 + 3, 1.9, Number.NaN, Number.POSITIVE_INFINITY, undefined, null, "7", 9n]) {
    twins.each(({ device }) => Object.assign(device, { readBar: () => value }));
    for (const size of [1, 2, 4]) t.true(twins.compare(read(0, 8, size)), `${value}`);
  }
});

test("a device that has not finished its reset", async (t) => {
  const twins = new AccessTwins();
  await twins.start();
  twins.each(({ device, endpoint }) => {
    Object.assign(device, { reset: () => new Promise(() => {}) });
    void endpoint.disconnected().catch(() => {});
  });
  for (const bytes of [read(0, 8, 4), write(0, 8, word), read(Region.CONFIG, 0, 4)]) t.true(twins.compare(bytes));
});
