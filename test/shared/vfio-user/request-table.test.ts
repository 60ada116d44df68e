/** The table of requests without a reply: ids, waiters, deadlines. */
import test from "ava";
import { TICKS_PER_DEADLINE } from "../../../shared/deadline.js";
import { RequestTable } from "../../../shared/vfio-user/request-table.js";

const COMMAND = 9;

interface Waiter {
  readonly name: string;
}

const waiter = (n: number): Waiter => ({ name: `${n}` });

function fill(table: RequestTable<Waiter>, count: number): number[] {
  return Array.from({ length: count }, (_, n) => table.take(COMMAND, waiter(n)));
}

test("an id is found by its command alone, and freed once", (t) => {
  const table = new RequestTable<Waiter>(256);
  const id = table.take(COMMAND, waiter(0));
  t.true(table.expects(id, COMMAND));
  t.false(table.expects(id, COMMAND + 1));
  for (const other of [id + 1, 255, 256, 65535, -1, 2 ** 32, Number.NaN]) {
    t.false(table.expects(other, COMMAND));
    t.is(table.waiterOf(other), undefined);
    table.free(other);
  }
  t.false(table.expects(id + 1, 0));
  t.is(table.size, 1);
  table.free(id);
  table.free(id);
  t.false(table.expects(id, COMMAND));
  t.is(table.size, 0);
  t.is(new Set(fill(table, 256)).size, 256);
});

test("ids are taken up to the limit, and reused when they are free, the oldest first", (t) => {
  const table = new RequestTable<Waiter>(256);
  const ids = fill(table, 256);
  t.is(new Set(ids).size, 256);
  t.is(table.take(COMMAND, waiter(256)), -1);
  for (const id of [17, 3, 200]) table.free(id);
  t.deepEqual(fill(table, 4), [17, 3, 200, -1]);
  t.is(table.size, 256);
});

test("room is made as it is needed, and nothing that is under way changes", (t) => {
  const table = new RequestTable<Waiter>(65536);
  const ids = fill(table, 1000);
  for (const [n, id] of ids.entries()) t.is(table.waiterOf(id)?.name, `${n}`);
  for (const id of ids.slice(0, 500)) table.free(id);
  t.is(table.size, 500);
  t.is(new Set([...ids.slice(500), ...fill(table, 65536 - 500)]).size, 65536);
});

test("urgent requests have a reserve", (t) => {
  const table = new RequestTable<Waiter>(64, 2);
  t.deepEqual(fill(table, 63).slice(-2), [61, -1]);
  t.is(table.take(COMMAND, waiter(0), true), 62);
  t.is(table.take(COMMAND, waiter(0)), -1);
  t.is(table.take(COMMAND, waiter(0), true), 63);
  t.is(table.take(COMMAND, waiter(0), true), -1);
});

test("an abandoned id stays taken until its reply comes", (t) => {
  const table = new RequestTable<Waiter>(64);
  const ids = fill(table, 64);
  const abandoned = table.abandon(({ name }) => Number(name) % 2 === 0);
  t.is(abandoned.length, 32);
  t.is(table.waiting, 32);
  t.is(table.size, 64);
  t.is(table.take(COMMAND, waiter(64)), -1);
  t.is(table.waiterOf(ids[4]), undefined);
  t.true(table.expects(ids[4], COMMAND));
  t.deepEqual(
    table.abandon(({ name }) => name === "4"),
    [],
  );
  table.free(ids[4]);
  t.is(table.waiting, 32);
  t.is(table.take(COMMAND, waiter(64)), ids[4]);
});

test("what has waited for the whole deadline is abandoned, each by its own beginning", (t) => {
  const table = new RequestTable<Waiter>(64);
  const early = table.take(COMMAND, { name: "early" });
  const ticks: string[][] = [];
  for (let n = 0; n < TICKS_PER_DEADLINE; n++) {
    if (n === 2) table.take(COMMAND, { name: "late" });
    if (n === 3) table.take(COMMAND, { name: "began before" }, false, 0);
    ticks.push(table.tick().map(({ name }) => name));
  }
  t.deepEqual(ticks.slice(0, -1).flat(), []);
  t.deepEqual(ticks.at(-1), ["early", "began before"]);
  t.true(table.expects(early, COMMAND));
  t.deepEqual(table.tick(), []);
  t.deepEqual(
    table.tick().map(({ name }) => name),
    ["late"],
  );
  t.is(table.waiting, 0);
  t.is(table.size, 3);
});

test("when no reply can come any more all ids are free", (t) => {
  const table = new RequestTable<Waiter>(64);
  fill(table, 64);
  table.abandon(({ name }) => name === "7");
  t.is(table.dropAll().length, 63);
  t.is(table.size, 0);
  t.is(table.waiting, 0);
  t.is(new Set(fill(table, 64)).size, 64);
});
