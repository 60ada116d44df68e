/** Every table against bytes written by hand, in both directions. */
import test from "ava";
import * as spec from "../../../shared/spec/vfio-user.js";
import { VECTORS } from "../vectors/vfio-user.js";

for (const { name, table, bytes, fields } of VECTORS) {
  test(name, (t) => {
    const expected = Buffer.from(bytes.replaceAll(" ", ""), "hex");
    t.is(expected.length, table.size);
    t.deepEqual(Buffer.from(table.encode(fields)), expected);
    const view = table.view(new DataView(expected.buffer, expected.byteOffset, expected.length));
    for (const [field, value] of Object.entries(fields)) t.is((view as unknown as typeof fields)[field], value, field);
  });
}

test("every table has a vector", (t) => {
  const tables = Object.entries(spec).filter(([, value]) => typeof value === "object" && "encode" in value);
  const covered = new Set<unknown>(VECTORS.map(({ table }) => table));
  t.deepEqual(
    tables.filter(([, table]) => !covered.has(table)).map(([name]) => name),
    [],
  );
  t.true(tables.length >= 25);
});
