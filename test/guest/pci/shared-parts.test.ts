/** What an author may declare as shared, and what not. */
import test from "ava";
import type { BarOptions } from "../../../guest/device.js";
import { declaredSharing } from "../../../guest/pci/declared-regions.js";
import { msixLayout } from "../../../guest/pci/msix.js";
import { GiB, MAX_IOEVENTFDS, MAX_SHARED_PARTS } from "../../../shared/limits.js";

const SIZE = 0x10000;
/** BAR 0 as given, with an MSI-X table at 0x8000, and BAR 2 besides. */
function declare(bar: Partial<BarOptions>, other?: BarOptions) {
  const bars = { 0: { size: SIZE, ...bar }, ...(other ? { 2: other } : {}) };
  const msix = { vectors: 16, bar: 0, offset: 0x8000 };
  const identity = { vendorId: 1, deviceId: 1, classCode: 0xff0000, bars, msix };
  return declaredSharing(identity, msixLayout(identity));
}
const part = (offset: number, size = 0x1000) => ({ offset, size });

test("BARs that share nothing are left out; parts and ioeventfds stay in the author's order", (t) => {
  t.deepEqual(declare({}), []);
  const parts = [part(0x4000), part(0x1000, 0x2000)];
  t.deepEqual(declare({ shared: parts }, { size: 0x1000, shared: true }), [
    { region: 0, size: SIZE, io: false, parts, ioeventfds: [] },
    { region: 2, size: 0x1000, io: false, parts: [part(0)], ioeventfds: [] },
  ]);
  t.is(declare({}, { size: 8, io: true, ioeventfds: [{ offset: 4, size: 1 }] })[0].io, true);
});

const bad: Record<string, Partial<BarOptions>> = {
  "half a page": { shared: [part(0, 0x800)] },
  "an odd start": { shared: [part(0x10)] },
  "no bytes": { shared: [part(0, 0)] },
  "NaN bytes": { shared: [part(0, Number.NaN)] },
  "a part behind the end": { shared: [part(SIZE)] },
  "a part over the end": { shared: [part(SIZE - 0x1000, 0x2000)] },
  "a negative offset": { shared: [part(-0x1000)] },
  "parts that overlap": { shared: [part(0, 0x2000), part(0x1000)] },
  "the MSI-X table": { shared: [part(0x8000)] },
  "all of a BAR with an MSI-X table": { shared: true },
  "too many parts": {
    size: 0x100000,
    shared: Array.from({ length: MAX_SHARED_PARTS + 1 }, (_, n) => part(n * 0x1000)),
  },
  "too much memory": { size: 2 * GiB, shared: [part(0x10000, GiB + 0x1000)] },
  "memory in an I/O BAR": { io: true, shared: [part(0)] },
  "an ioeventfd of 3 bytes": { ioeventfds: [{ offset: 0, size: 3 as 4 }] },
  "an ioeventfd behind the end": { ioeventfds: [{ offset: SIZE, size: 0 }] },
  "an ioeventfd over the end": { ioeventfds: [{ offset: SIZE - 4, size: 8 }] },
  "an ioeventfd nowhere": { ioeventfds: [{ offset: 0.5, size: 4 }] },
  "an ioeventfd in a shared part": { shared: [part(0)], ioeventfds: [{ offset: 0xfff, size: 0 }] },
  "an ioeventfd in the MSI-X table": { ioeventfds: [{ offset: 0x7ffc, size: 8 }] },
  "the same ioeventfd twice": {
    ioeventfds: [
      { offset: 0, size: 4 },
      { offset: 0, size: 4 },
    ],
  },
  "a value that does not fit": { ioeventfds: [{ offset: 0, size: 1, datamatch: 256 }] },
  "a negative value": { ioeventfds: [{ offset: 0, size: 4, datamatch: -1 }] },
  "a value of any size": { ioeventfds: [{ offset: 0, size: 0, datamatch: 1 }] },
  "a shadow of any size": { ioeventfds: [{ offset: 0, size: 0, shadow: true }] },
  "too many ioeventfds": {
    ioeventfds: Array.from({ length: MAX_IOEVENTFDS + 1 }, (_, n) => ({ offset: n * 4, size: 4 as const })),
  },
};
for (const [what, bar] of Object.entries(bad)) {
  test(`refused: ${what}`, (t) => {
    t.throws(() => declare(bar), { instanceOf: RangeError });
  });
}

test("the largest that fits", (t) => {
  t.is(
    declare({
      ioeventfds: [
        { offset: 0, size: 1, datamatch: 255 },
        { offset: SIZE - 1, size: 0 },
      ],
    }).length,
    1,
  );
  t.is(declare({ size: 2 * GiB, shared: [part(GiB, GiB)] })[0].parts[0].size, GiB);
  t.is(declare({ shared: [part(0x7000), part(0x9000)] }).length, 1, "around the MSI-X table");
});
