/** GET_REGION_IO_FDS, which a server need not have. */
import { inBounds } from "../../../shared/bits.js";
import { Command, IoEventFd, RegionIoFds } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import { expectEqual, expectReply, expectThat } from "../expect.js";
import { isError, type Message } from "../messages.js";

const { DEVICE_GET_REGION_IO_FDS } = Command;
const IO_FDS = { section: vfioUser("VFIO_USER_DEVICE_GET_REGION_IO_FDS"), command: DEVICE_GET_REGION_IO_FDS };
const ARGSZ = 4096;

function encodeIoFds(index: number, argsz = ARGSZ, rest: { flags?: number; count?: number } = {}): Uint8Array {
  return RegionIoFds.encode({ argsz, index, ...rest });
}

function checkIoFds({ body, data, fds }: Message, index: number, size: number): number {
  const name = `region ${index}`;
  expectThat(body.length >= RegionIoFds.size, `${name}: at least ${RegionIoFds.size} bytes`, body.length);
  const info = RegionIoFds.view(data);
  expectEqual(`${name}: the index`, info.index, index);
  expectEqual(`${name}: flags`, info.flags, 0);
  const { count, argsz } = info;
  const room = (body.length - RegionIoFds.size) / IoEventFd.size;
  expectThat(count <= room || argsz > ARGSZ, `${name}: ${count} sub-regions of ${IoEventFd.size} bytes`, `${room}`);
  for (let each = 0; each < Math.min(count, Math.floor(room)); each++) {
    const sub = IoEventFd.view(data, RegionIoFds.size + each * IoEventFd.size);
    const came = `${sub.size} bytes at ${sub.gpaOffset}`;
    expectThat(inBounds(sub.gpaOffset, sub.size, size), `${name}: sub-regions within its ${size} bytes`, came);
    expectThat(sub.fdIndex < fds.length, `${name}: an fd_index below the ${fds.length} fds of the reply`, sub.fdIndex);
  }
  return count;
}

export const regionIoFds = [
  ...topic(IO_FDS, [
    {
      id: "region-io-fds",
      title: "Each region's I/O fds, if any, are described: index echoed, sub-regions in bounds, fds there",
      described: async (session, { regions }) => {
        let found = 0;
        for (const { index, size } of regions) {
          const answer = await session.request(DEVICE_GET_REGION_IO_FDS, encodeIoFds(index));
          const reply = expectReply(answer, DEVICE_GET_REGION_IO_FDS);
          if (!isError(reply)) found += checkIoFds(reply, index, size);
        }
        return found === 0 ? "there are none" : `${found} sub-regions`;
      },
    },
  ]),
  ...topic({ ...IO_FDS, prefix: "region-io-fds-", answer: "error" }, [
    {
      id: "index",
      title: "The index behind the last region is refused",
      body: (device) => encodeIoFds(device.numRegions),
    },
    { id: "short", title: "A request of 8 bytes is refused", body: new Uint8Array(8) },
  ]),
  ...topic({ ...IO_FDS, prefix: "region-io-fds-", answer: "any" }, [
    { id: "flags", title: "Flags, which must be 0, are survived", body: encodeIoFds(0, ARGSZ, { flags: 1 }) },
    {
      id: "count",
      title: "A count, which must be 0, is survived",
      body: encodeIoFds(0, ARGSZ, { count: 0xffff_ffff }),
    },
    { id: "argsz", title: "An argsz of 1 is survived", body: encodeIoFds(0, 1) },
  ]),
];
