/** The IOTLB: what is in it, where it is, and what cannot be in it. */
import { openSync } from "node:fs";
import test, { type ExecutionContext } from "ava";
import { Iotlb } from "../../../../host/bridge/vhost-user/iotlb.js";
import * as native from "../../../../native/index.js";
import { ProtocolError } from "../../../../shared/errors.js";
import {
  GiB,
  MAX_IOTLB_PARTS,
  MAX_IOTLB_RANGES,
  MiB,
  PAGE_SIZE,
  WINDOW_PIECE_SIZE,
} from "../../../../shared/limits.js";
import { closeFd } from "../raw-peer.js";

const IOVA = 0x40_0000_0000;
const FILE_SIZE = 64 * MiB;

/** A reservation for all tests: its address space stays as long as its ArrayBuffers. */
const reservation = new native.Reservation(1024 * GiB, WINDOW_PIECE_SIZE);

function setUp(t: ExecutionContext) {
  const fd = native.createMemory("device-vm", FILE_SIZE, false);
  const file = new DataView(native.mapFile(fd, 0, FILE_SIZE, native.PROT_READ | native.PROT_WRITE));
  for (let page = 0; page < FILE_SIZE / PAGE_SIZE; page++) file.setUint32(page * PAGE_SIZE, page);
  const iotlb = new Iotlb(reservation);
  const events: string[] = [];
  iotlb.beforeUnmap = () => events.push("before unmap");
  iotlb.onChange = () => events.push("change");
  t.teardown(() => {
    iotlb.clear();
    closeFd(fd);
  });
  const add = (page: number, filePage: number, pages = 1) =>
    iotlb.add(IOVA + page * PAGE_SIZE, pages * PAGE_SIZE, { fd, file: "a", fileOffset: filePage * PAGE_SIZE });
  const remove = (page: number, pages = 1) => iotlb.remove(IOVA + page * PAGE_SIZE, pages * PAGE_SIZE);
  /** The numbers of the pages of the file that are at [page, page + pages), one behind the other; or -1. */
  const at = (page: number, pages = 1) => {
    const offset = iotlb.locate(IOVA + page * PAGE_SIZE, pages * PAGE_SIZE);
    if (offset < 0) return -1;
    const piece = new DataView(reservation.piece(Math.floor(offset / WINDOW_PIECE_SIZE)));
    const start = offset % WINDOW_PIECE_SIZE;
    return Array.from({ length: pages }, (_, n) => piece.getUint32(start + n * PAGE_SIZE)).join(" ");
  };
  return { iotlb, fd, file, events, add, remove, at };
}

test.serial("pages of memory lie beside one another as their IOVAs do, in whatever order they come", (t) => {
  const { iotlb, add, at } = setUp(t);
  add(2, 7);
  t.is(at(2), "7");
  t.is(at(1), -1);
  t.is(iotlb.missing(IOVA, 4 * PAGE_SIZE), IOVA);
  add(1, 9);
  t.is(at(1, 2), "9 7");
  add(0, 3, 1);
  t.is(at(0, 3), "3 9 7");
  t.is(at(0, 4), -1);
  t.is(iotlb.missing(IOVA + 5, 4 * PAGE_SIZE), IOVA + 3 * PAGE_SIZE);
  t.is(iotlb.missing(IOVA + 5, 3 * PAGE_SIZE - 5), -1);
  t.deepEqual([iotlb.ranges, iotlb.runs.length], [3, 1]);
  add(3, 8);
  t.is(at(0, 4), "3 9 7 8");
  t.is(iotlb.ranges, 3, "those that are beside one another in the file are one");
});

test.serial("what is there already changes nothing, and what is elsewhere now is there alone", (t) => {
  const { iotlb, events, add, at } = setUp(t);
  add(0, 10, 8);
  events.length = 0;
  add(3, 13, 2);
  t.deepEqual(events, []);
  add(3, 40);
  t.is(at(0, 8), "10 11 12 40 14 15 16 17");
  t.deepEqual(events, ["before unmap", "change"]);
  t.is(iotlb.ranges, 3);
});

test.serial("what is removed is not there, and all around it is", (t) => {
  const { iotlb, events, add, remove, at } = setUp(t);
  add(0, 10, 8);
  events.length = 0;
  t.false(remove(20, 4));
  t.deepEqual(events, [], "nobody has to wait for what concerns nobody");
  t.true(remove(3, 2));
  t.deepEqual(events, ["before unmap", "change"]);
  t.deepEqual([at(0, 3), at(3), at(4), at(5, 3)], ["10 11 12", -1, -1, "15 16 17"]);
  t.true(iotlb.remove(IOVA + 5 * PAGE_SIZE + 1, 1), "a part of a page is the page");
  t.is(at(5), -1);
  t.true(iotlb.remove(0, 0), "all");
  t.deepEqual([iotlb.ranges, iotlb.runs.length, at(0)], [0, 0, -1]);
});

test.serial("memory that the table does not have any more goes", (t) => {
  const { iotlb, add, at } = setUp(t);
  add(0, 0, 2);
  add(2, 100, 2);
  t.false(iotlb.retain(() => true));
  t.true(iotlb.retain(({ fileOffset }) => fileOffset === 0));
  t.deepEqual([at(0, 2), at(2)], ["0 1", -1]);
});

test.serial("a GiB ends nothing, and the next one that is free is beside it", (t) => {
  const { iotlb, fd } = setUp(t);
  const end = IOVA + GiB;
  iotlb.add(end - 2 * PAGE_SIZE, 4 * PAGE_SIZE, { fd, file: "a", fileOffset: 0 });
  t.is(iotlb.locate(end - 2 * PAGE_SIZE, 4 * PAGE_SIZE) % GiB, GiB - 2 * PAGE_SIZE);
  t.is(iotlb.runs.length, 1);
});

test.serial("only so many GiB are in use at a time, and one that is empty is free again", (t) => {
  const { iotlb, fd } = setUp(t);
  const add = (part: number) => iotlb.add(part * GiB, PAGE_SIZE, { fd, file: "a", fileOffset: 0 });
  for (let part = 0; part < MAX_IOTLB_PARTS; part++) add(7 * part);
  t.throws(() => add(1), { instanceOf: ProtocolError, message: /GiB of IOVAs/ });
  t.is(iotlb.locate(GiB, PAGE_SIZE), -1);
  t.true(iotlb.locate(7 * GiB, PAGE_SIZE) >= 0, "the others are there");
  iotlb.remove(14 * GiB, PAGE_SIZE);
  t.notThrows(() => add(1));
  iotlb.remove(7 * GiB, PAGE_SIZE);
  iotlb.keep(t, [{ address: GiB, length: PAGE_SIZE }]);
  const place = iotlb.locate(GiB, PAGE_SIZE);
  iotlb.remove(GiB, PAGE_SIZE);
  add(2);
  t.throws(() => add(3), { message: /GiB of IOVAs/ }, "whoever has views of it finds it where it was");
  add(1);
  t.is(iotlb.locate(GiB, PAGE_SIZE), place);
});

test.serial("what is too much makes place, but for what somebody has views of", (t) => {
  const { iotlb, add, at } = setUp(t);
  iotlb.keep(t, [{ address: IOVA + 4 * PAGE_SIZE, length: 1 }]);
  for (let n = 0; n < MAX_IOTLB_RANGES; n++) add(2 * n, 3 * n);
  t.is(iotlb.ranges, MAX_IOTLB_RANGES);
  add(2 * MAX_IOTLB_RANGES, 1);
  t.is(iotlb.ranges, 2);
  t.deepEqual([at(4), at(6), at(2 * MAX_IOTLB_RANGES)], ["6", -1, "1"]);
});

const nonsense: Record<string, [number, number, number]> = {
  "of no bytes": [IOVA, 0, 0],
  "within a page": [IOVA + 512, PAGE_SIZE, 0],
  "of a part of a page": [IOVA, 512, 0],
  "at a part of a page": [IOVA, PAGE_SIZE, 512],
  "beyond all numbers": [2 ** 53, PAGE_SIZE, 0],
  "that is endless": [IOVA, 2 ** 64, 0],
  "of more than there is room for": [0, MAX_IOTLB_PARTS * GiB + PAGE_SIZE, 0],
};
for (const [name, [iova, size, fileOffset]] of Object.entries(nonsense)) {
  test.serial(`an entry ${name} is refused, and nothing of it stays`, (t) => {
    const { iotlb, fd, add, at } = setUp(t);
    add(0, 1);
    t.throws(() => iotlb.add(iova, size, { fd, file: "b", fileOffset }), { instanceOf: ProtocolError });
    const before = iotlb.locate(IOVA, PAGE_SIZE);
    t.true(before < 0 || at(0) === "1");
    iotlb.clear();
    t.is(iotlb.ranges, 0);
  });
}

test.serial("an entry that cannot be mapped leaves nothing where it would be", (t) => {
  const { iotlb, fd, at } = setUp(t);
  const readOnly = openSync(`/proc/self/fd/${fd}`, "r");
  t.teardown(() => closeFd(readOnly));
  t.throws(() => iotlb.add(IOVA, PAGE_SIZE, { fd: readOnly, file: "b", fileOffset: 0 }));
  t.is(at(0), -1);
  iotlb.add(IOVA, PAGE_SIZE, { fd, file: "a", fileOffset: PAGE_SIZE });
  t.is(at(0), "1");
});
