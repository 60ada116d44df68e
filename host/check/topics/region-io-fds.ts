/** GET_REGION_IO_FDS, which a server need not have. */
import { inBounds } from "../../../shared/bits.js";
import { Command, IoEventFd, RegionIoFds } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { type Check, vfioUser } from "../check.js";
import { expectEqual, expectThat, isError } from "../expect.js";
import { Failure } from "../verdict.js";
import type { Message } from "../wire.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_GET_REGION_IO_FDS");
const GET_IO_FDS = Command.DEVICE_GET_REGION_IO_FDS;
const ARGSZ = 4096;

function encodeIoFds(index: number, argsz: number, rest: { flags?: number; count?: number } = {}): Uint8Array {
  return RegionIoFds.encode({ argsz, index, ...rest });
}

const ioFds: Check[] = [
  {
    id: "region-io-fds",
    section: SECTION,
    title: "Each region's I/O fds, if any, are described: index echoed, sub-regions in bounds, fds there",
    run: async (context) => {
      const { regions } = context.device();
      const session = await context.connect();
      let found = 0;
      for (const { index, size } of regions) {
        const answer = await session.request(GET_IO_FDS, encodeIoFds(index, ARGSZ));
        if (answer === undefined) throw new Failure(`a reply for region ${index}`, "a closed connection");
        if (isError(answer)) continue;
        found += checkIoFds(answer, index, size);
      }
      return found === 0 ? "there are none" : `${found} sub-regions`;
    },
  },
];

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

const badIoFds = badRequests(SECTION, [
  {
    id: "region-io-fds-index",
    title: "The index behind the last region is refused",
    command: GET_IO_FDS,
    body: (device) => encodeIoFds(device.numRegions, ARGSZ),
    answer: "error",
  },
  {
    id: "region-io-fds-short",
    title: "A request of 8 bytes is refused",
    command: GET_IO_FDS,
    body: new Uint8Array(8),
    answer: "error",
  },
  {
    id: "region-io-fds-flags",
    title: "Flags, which must be 0, are survived",
    command: GET_IO_FDS,
    body: encodeIoFds(0, ARGSZ, { flags: 1 }),
    answer: "any",
  },
  {
    id: "region-io-fds-count",
    title: "A count, which must be 0, is survived",
    command: GET_IO_FDS,
    body: encodeIoFds(0, ARGSZ, { count: 0xffff_ffff }),
    answer: "any",
  },
  {
    id: "region-io-fds-argsz",
    title: "An argsz of 1 is survived",
    command: GET_IO_FDS,
    body: encodeIoFds(0, 1),
    answer: "any",
  },
]);

export const regionIoFds: readonly Check[] = [...ioFds, ...badIoFds];
