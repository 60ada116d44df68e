/** REGION_WRITE_MULTI, where it was agreed on. The good writes are those of access.ts. */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, Region, WRITE_MULTI_MAX_DATA, WriteMulti, WriteMultiEntry } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { type Check, vfioUser } from "../check.js";
import type { Device } from "../device.js";
import { expectEqual, expectSuccess, expectThat } from "../expect.js";
import { Failure, Skip } from "../verdict.js";

const SECTION = vfioUser("VFIO_USER_REGION_WRITE_MULTI");
const { REGION_WRITE_MULTI } = Command;
const FOUR = Uint8Array.of(0, 0, 0, 0);

function encodeMulti(
  entries: readonly { region: number; offset: number; bytes: Uint8Array; count?: number }[],
  writes: number | bigint = entries.length,
): Uint8Array {
  const head = WriteMulti.encode({});
  new DataView(head.buffer).setBigUint64(0, BigInt(writes), true);
  const parts = entries.map(({ region, offset, bytes, count = bytes.length }) => {
    const entry = WriteMultiEntry.encode({ offset, region, count });
    entry.set(bytes, WriteMultiEntry.offsets.data);
    return entry;
  });
  return Buffer.concat([head, ...parts]);
}

/** @throws Skip when REGION_WRITE_MULTI was not agreed on */
function multi(device: Device, body: Uint8Array): Uint8Array {
  if (!device.writeMultiple) throw new Skip("the server does not announce write_multiple");
  return body;
}

const OUTSIDE_ENTRY = { region: 0xffff_ffff, offset: 0, bytes: FOUR };

const multis: Check[] = [
  {
    id: "write-multi",
    section: SECTION,
    title: "Several writes are done, and the reply says how many",
    run: async (context) => {
      const device = context.device();
      multi(device, FOUR);
      const session = await context.connect();
      const bytes = Uint8Array.of((await device.readConfig(session, ConfigHeader.INTERRUPT_LINE, 1)).getUint8(0));
      const entry = { region: Region.CONFIG, offset: ConfigHeader.INTERRUPT_LINE, bytes };
      const answer = await session.request(REGION_WRITE_MULTI, encodeMulti([entry, entry, entry]));
      const { data } = expectSuccess(answer, REGION_WRITE_MULTI, WriteMulti.size);
      expectEqual("the writes done:", WriteMulti.view(data).writes, 3);
      return undefined;
    },
  },
  {
    id: "write-multi-outside",
    section: SECTION,
    title: "A write outside of any region is refused, or not counted",
    run: async (context) => {
      const body = multi(context.device(), encodeMulti([OUTSIDE_ENTRY]));
      const session = await context.connect();
      const answer = await session.request(REGION_WRITE_MULTI, body);
      if (answer === undefined) throw new Failure("a reply to REGION_WRITE_MULTI", "a closed connection");
      if (answer.body.length >= WriteMulti.size) {
        const { writes } = WriteMulti.view(answer.data);
        expectThat(writes === 0, "an error, or 0 writes done", `${writes} writes done`);
      }
      await context.expectConnectionKept(session);
      return undefined;
    },
  },
];

const BAD = [
  { id: "short", title: "A request of 7 bytes is refused", body: (device: Device) => multi(device, new Uint8Array(7)) },
  {
    id: "count-high",
    title: "More writes announced than there are is refused",
    body: (device: Device) => multi(device, encodeMulti([OUTSIDE_ENTRY], 2)),
  },
  {
    id: "count-overflow",
    title: "A number of writes whose size overflows 64 bits is refused",
    body: (device: Device) => multi(device, encodeMulti([OUTSIDE_ENTRY], 2n ** 61n)),
  },
  {
    id: "entry-long",
    title: "A write of more than 8 bytes is refused",
    body: (device: Device) => multi(device, encodeMulti([{ ...OUTSIDE_ENTRY, count: WRITE_MULTI_MAX_DATA + 1 }])),
  },
];

export const writeMulti: readonly Check[] = [
  ...multis,
  ...badRequests(
    SECTION,
    BAD.map((request) => ({
      ...request,
      id: `write-multi-${request.id}`,
      command: REGION_WRITE_MULTI,
      answer: "error" as const,
    })),
  ),
];
