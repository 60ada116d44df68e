/** REGION_WRITE_MULTI, where it was agreed on. The good writes are those of access.ts. */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, Region, WRITE_MULTI_MAX_DATA, WriteMulti, WriteMultiEntry } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import type { Device } from "../device.js";
import { expectEqual, expectReply, expectThat, Skip } from "../expect.js";

const { REGION_WRITE_MULTI } = Command;
const MULTI = { section: vfioUser("VFIO_USER_REGION_WRITE_MULTI"), command: REGION_WRITE_MULTI };

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

/** A body for a server that has agreed on REGION_WRITE_MULTI; others are skipped. */
const multi = (body: Uint8Array) => (device: Device) => {
  if (!device.writeMultiple) throw new Skip("the server does not announce write_multiple");
  return body;
};

const OUTSIDE = { region: 0xffff_ffff, offset: 0, bytes: Uint8Array.of(0, 0, 0, 0) };

export const writeMulti = [
  ...topic(MULTI, [
    {
      id: "write-multi",
      title: "Several writes are done, and the reply says how many",
      described: async (session, device) => {
        const offset = ConfigHeader.INTERRUPT_LINE;
        if (!device.writeMultiple) throw new Skip("the server does not announce write_multiple");
        const bytes = Uint8Array.of((await device.readConfig(session, offset, 1)).getUint8(0));
        const entry = { region: Region.CONFIG, offset, bytes };
        const body = encodeMulti([entry, entry, entry]);
        const { data } = await session.success(REGION_WRITE_MULTI, body, WriteMulti.size);
        expectEqual("the writes done:", WriteMulti.view(data).writes, 3);
      },
    },
    {
      id: "write-multi-outside",
      title: "A write outside of any region is refused, or not counted",
      described: async (session, device, context) => {
        const answer = await session.request(REGION_WRITE_MULTI, multi(encodeMulti([OUTSIDE]))(device));
        const { body, data } = expectReply(answer, REGION_WRITE_MULTI);
        const writes = body.length >= WriteMulti.size ? WriteMulti.view(data).writes : 0;
        expectThat(writes === 0, "an error, or 0 writes done", `${writes} writes done`);
        await context.expectConnectionKept(session);
      },
    },
  ]),
  ...topic({ ...MULTI, prefix: "write-multi-", answer: "error" }, [
    { id: "short", title: "A request of 7 bytes is refused", body: multi(new Uint8Array(7)) },
    {
      id: "count-high",
      title: "More writes announced than there are is refused",
      body: multi(encodeMulti([OUTSIDE], 2)),
    },
    {
      id: "count-overflow",
      title: "A number of writes whose size overflows 64 bits is refused",
      body: multi(encodeMulti([OUTSIDE], 2n ** 61n)),
    },
    {
      id: "entry-long",
      title: "A write of more than 8 bytes is refused",
      body: multi(encodeMulti([{ ...OUTSIDE, count: WRITE_MULTI_MAX_DATA + 1 }])),
    },
  ]),
];
