/** What a device process may not have of memory and eventfds. */
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { GiB, MAX_IOEVENTFDS, MiB } from "../../../../shared/limits.js";
import { HeaderFlags, Region } from "../../../../shared/spec/vfio-user.js";
import { setUp } from "../set-up.js";
import { allocateEvents, allocateMemory, PARTS, type Part } from "./sharing-set-up.js";

const badMemory: readonly [string, number, readonly Part[], number][] = [
  ["of config space", Region.CONFIG, PARTS, Errno.EINVAL],
  ["of the ROM", Region.ROM, PARTS, Errno.EINVAL],
  ["of no such region", 32, PARTS, Errno.EINVAL],
  ["without areas", 0, [], Errno.EINVAL],
  ["of no bytes", 0, [{ offset: 0, size: 0 }], Errno.EINVAL],
  ["at half a page", 0, [{ offset: 0x800, size: 0x1000 }], Errno.EINVAL],
  ["of half a page", 0, [{ offset: 0, size: 0x800 }], Errno.EINVAL],
  ["not in order", 0, [...PARTS].reverse(), Errno.EINVAL],
  ["that overlaps", 0, [PARTS[0], PARTS[0]], Errno.EINVAL],
  ["beyond 2^53", 0, [{ offset: 2 ** 53 - 0x1000, size: 0x2000 }], Errno.EINVAL],
  ["of more than a session may have", 0, [{ offset: 0, size: GiB + 0x1000 }], Errno.ENOSPC],
];
for (const [what, region, parts, errno] of badMemory) {
  test.serial(`memory ${what} is refused, and nothing is left of it`, async (t) => {
    const { bridge, frontEnd, device } = await setUp(t);
    const fds = bridge.fds();
    frontEnd.reset();
    device.start();
    const reply = await allocateMemory(device, region, parts);
    t.is(reply.errno, errno);
    t.true((reply.flags & HeaderFlags.ERROR) !== 0);
    t.is(frontEnd.maps.length, 0);
    t.deepEqual(bridge.fds(), fds);
    t.is((await allocateMemory(device, Region.BAR0, PARTS)).errno, 0, "it may ask for less");
  });
}

test.serial("limits count all that a device process asks for", async (t) => {
  const { bridge, frontEnd, device } = await setUp(t, { windowSize: "2G" });
  const fds = bridge.fds();
  frontEnd.reset();
  device.start();
  t.is((await allocateMemory(device, 0, [{ offset: 0, size: GiB - 0x1000 }])).errno, 0);
  t.is((await allocateMemory(device, 0, PARTS)).errno, Errno.EEXIST);
  t.is((await allocateMemory(device, 1, PARTS)).errno, Errno.ENOSPC);
  t.is((await allocateMemory(device, 1, [PARTS[0]])).errno, 0);
  t.is((await allocateEvents(device, 0, MAX_IOEVENTFDS + 1)).errno, Errno.ENOSPC);
  t.is((await allocateEvents(device, 0, 0)).errno, Errno.ENOSPC);
  t.is((await allocateEvents(device, 0xffffffff, 1)).errno, Errno.EINVAL);
  t.is((await allocateEvents(device, 0, MAX_IOEVENTFDS - 1)).errno, 0);
  t.is((await allocateEvents(device, 0, 1)).errno, Errno.EEXIST);
  t.is((await allocateEvents(device, 1, 2)).errno, Errno.ENOSPC);
  t.is((await allocateEvents(device, 1, 1)).errno, 0);
  t.is((await allocateEvents(device, 2, 1)).errno, Errno.ENOSPC);
  frontEnd.reset();
  await device.startAndGreet();
  t.deepEqual(bridge.fds(), fds);
});

test.serial("a window without room for the memory", async (t) => {
  const { frontEnd, device } = await setUp(t, { windowSize: "1M" });
  frontEnd.reset();
  device.start();
  const parts = [
    { offset: 0, size: 0x80000 },
    { offset: 0x80000, size: 0x81000 },
  ];
  t.is((await allocateMemory(device, 0, parts)).errno, Errno.ENOSPC);
  t.is(frontEnd.maps.length, 0, "the part that fitted is out again");
  t.is((await allocateMemory(device, 0, [{ offset: 0, size: MiB }])).errno, 0);
});
