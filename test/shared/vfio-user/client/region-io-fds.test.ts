/** GET_REGION_IO_FDS's reply in both layouts, and what a server without sense says. */
import test from "ava";
import { Errno } from "../../../../shared/errors.js";
import { IoEventFd, IoFdType, RegionIoFds } from "../../../../shared/spec/vfio-user.js";
import { parseRegionIoFds } from "../../../../shared/vfio-user/client/region-io-fds.js";

type Entry = Parameters<typeof IoEventFd.encode>[0];

/** `fds` are numbers that are never used as fds here. */
function reply(header: Parameters<typeof RegionIoFds.encode>[0], entries: readonly Uint8Array[], fds = [70, 71]) {
  const size = entries.reduce((sum, entry) => sum + entry.length, RegionIoFds.size);
  const body = new Uint8Array(
    Buffer.concat([RegionIoFds.encode({ argsz: size, count: entries.length, ...header }), ...entries]),
  );
  return { body, data: new DataView(body.buffer), fds };
}
const long = (entry: Entry) => IoEventFd.encode(entry);
/** As the specification has it: the value to match is where the shadow's offset is in the other. */
const short = (entry: Entry, datamatch = 0) => IoEventFd.encode({ ...entry, shadowOffset: datamatch }).subarray(0, 40);

test("libvfio-user's layout, a shadow among it", (t) => {
  const given = reply({ index: 2 }, [
    long({ gpaOffset: 0x10, size: 4, fdIndex: 1, flags: 1, dataMatch: 7 }),
    long({
      gpaOffset: 0x20,
      size: 8,
      fdIndex: 0,
      type: IoFdType.IOEVENTFD_SHADOW,
      shadowMemFdIndex: 1,
      shadowOffset: 16,
    }),
    long({ type: IoFdType.IOREGIONFD, fdIndex: 9 }),
  ]);
  t.deepEqual(parseRegionIoFds(2, given), {
    events: [
      { offset: 0x10, size: 4, fd: 1, datamatch: 7, shadow: undefined },
      { offset: 0x20, size: 8, fd: 0, datamatch: undefined, shadow: { fd: 1, offset: 16 } },
    ],
    fds: [70, 71],
  });
  t.deepEqual(given.fds, [], "they were taken");
});

test("the specification's layout, and none at all", (t) => {
  const given = reply({}, [short({ gpaOffset: 8, size: 2, fdIndex: 0, flags: 1 }, 5), short({ fdIndex: 1 })]);
  t.deepEqual(parseRegionIoFds(0, given).events, [
    { offset: 8, size: 2, fd: 0, datamatch: 5, shadow: undefined },
    { offset: 0, size: 0, fd: 1, datamatch: undefined, shadow: undefined },
  ]);
  t.deepEqual(parseRegionIoFds(0, reply({}, [], [])), { events: [], fds: [] });
});

const bad: Record<string, ReturnType<typeof reply>> = {
  "another region": reply({ index: 1 }, []),
  "more than is there": reply({ argsz: 64, count: 1 }, []),
  "a count that is too large": reply({ count: 0xffffffff }, [long({})]),
  "sub-regions of 24 bytes": reply({ count: 2 }, [long({})]),
  "an fd that is not there": reply({}, [long({ fdIndex: 2 })]),
  "a shadow's fd that is not there": reply({}, [long({ type: IoFdType.IOEVENTFD_SHADOW, shadowMemFdIndex: 2 })]),
  "a shadow that has no place": reply({}, [short({ type: IoFdType.IOEVENTFD_SHADOW })]),
  "a short body": { ...reply({}, []), body: new Uint8Array(15) },
};
for (const [what, given] of Object.entries(bad)) {
  test(`refused, and no fd taken: ${what}`, (t) => {
    t.throws(() => parseRegionIoFds(0, given), { name: "ProtocolError", message: /command 6/ });
    t.deepEqual(given.fds, [70, 71]);
  });
}

test("the error is the protocol's", (t) => {
  const error = t.throws(() => parseRegionIoFds(0, bad["another region"]));
  t.is((error as unknown as { errno: number }).errno, Errno.EPROTO);
});
