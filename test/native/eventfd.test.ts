/** Eventfds, also those that a peer made blocking: a call that waited would end these tests by their time limit. */
import fs from "node:fs";
import { constants } from "node:os";
import test from "ava";
import * as native from "../../native/index.js";
import { makeBlocking, owned } from "./helpers.js";

const FULL = new BigUint64Array([0xfffffffffffffffen]);

test("counts add up and are taken at once", (t) => {
  const event = owned(t, native.eventfd(5));
  native.eventfdWrite(event);
  native.eventfdWrite(event);
  t.is(native.eventfdRead(event), 7);
  t.is(native.eventfdRead(event), 0);
  t.is(native.eventfdRead(owned(t, native.eventfd(2 ** 32 - 1))), 2 ** 32 - 1);
});

test("thousands of signals, none lost", (t) => {
  const event = owned(t, native.eventfd(0));
  for (let i = 0; i < 5000; i++) native.eventfdWrite(event);
  t.is(native.eventfdRead(event), 5000);
});

test("a blocking eventfd never blocks: empty, and full", (t) => {
  const event = owned(t, native.eventfd(0));
  makeBlocking(event);
  t.is(native.eventfdRead(event), 0);
  fs.writeSync(event, FULL);
  native.eventfdWrite(event);
  native.eventfdWrite(event);
  native.eventfdWrite(event);
  t.true(native.eventfdRead(event) >= 2 ** 63);
  t.is(native.eventfdRead(event), 0);
  native.eventfdWrite(event);
  t.is(native.eventfdRead(event), 1);
});

test("a count is seen without being taken", (t) => {
  const event = owned(t, native.eventfd(0));
  makeBlocking(event);
  t.false(native.eventfdSignalled(event));
  native.eventfdWrite(event);
  t.true(native.eventfdSignalled(event));
  t.is(native.eventfdRead(event), 1);
  t.false(native.eventfdSignalled(event));
  t.throws(() => native.eventfdSignalled(1 << 30), { code: "EBADF" });
});

test("errors", (t) => {
  const { errno } = constants;
  t.like(
    t.throws(() => native.eventfdRead(1 << 30)),
    { code: "EBADF", errno: errno.EBADF, syscall: "read" },
  );
  t.like(
    t.throws(() => native.eventfdWrite(-1)),
    { code: "EBADF", errno: errno.EBADF, syscall: "write" },
  );
  for (const count of [-1, 2 ** 32, 0.5]) t.throws(() => native.eventfd(count), { instanceOf: RangeError });
});
