/**
 * Field tables that yield views.
 *
 * A table lists the fields of a structure in wire order, as a specification does. `struct(table)` turns it into a view
 * class: one object that can be placed on any bytes and whose properties are the fields. Views are made once and moved
 * (`at`), so that reading a message allocates nothing. Little-endian throughout: VIRTIO, vfio-user and PCI all are.
 *
 * 64-bit fields are numbers. `u64`: exact up to 2^53-1, and above that where it is a multiple of 4096; any other larger
 * value reads as a number above Number.MAX_SAFE_INTEGER, which every bounds check refuses. `i64`, two's complement, is
 * for addresses: see ../address.ts. `u64big` yields the exact BigInt and is for feature bits alone.
 */

/** Width of each scalar field type in bytes. */
export const WIDTH = { u8: 1, u16: 2, u32: 4, u64: 8, i64: 8, u64big: 8 } as const;
export type Scalar = keyof typeof WIDTH;

/** A field: a scalar, or a run of n bytes that stays uninterpreted (padding, names, nested structures). */
type FieldType = Scalar | number;
export type Table = Readonly<Record<string, FieldType>>;

type FieldValue<F extends FieldType> = F extends "u64big" ? bigint : F extends Scalar ? number : never;

/** The properties of a view: one for each scalar field. Byte runs are reached through `Struct.offsets`. */
type Fields<T extends Table> = { -readonly [K in keyof T as T[K] extends number ? never : K]: FieldValue<T[K]> };

/** A view of one structure, movable over bytes. */
interface View {
  /** Places the view `offset` bytes into `data`; bounds are checked by each access. Returns the view itself. */
  at(data: DataView, offset?: number): this;
}

export interface Struct<T extends Table> {
  /** The fields in wire order, for whoever describes them elsewhere. */
  readonly table: T;
  /** Size in bytes, with no padding that the table does not name. */
  readonly size: number;
  /** Byte offset of each field from the start. */
  readonly offsets: { readonly [K in keyof T]: number };
  /** Makes a view; without arguments it rests on `size` zero bytes of its own. */
  view(data?: DataView, offset?: number): View & Fields<T>;
  /** A fresh byte array of `size` bytes with the given fields set, the rest zero. For tests and rare messages. */
  encode(values: Partial<Fields<T>>): Uint8Array<ArrayBuffer>;
}

/** Where the view rests; the names are not such as a specification gives to a field ("offset", "data"). */
class Base implements View {
  $data: DataView;
  $offset: number;
  constructor(data: DataView, offset: number) {
    this.$data = data;
    this.$offset = offset;
  }
  at(data: DataView, offset = 0): this {
    this.$data = data;
    this.$offset = offset;
    return this;
  }
}

/** Reads a 64-bit little-endian number; see the file's head for values above 2^53-1. */
export function getU64(data: DataView, offset: number): number {
  return data.getUint32(offset, true) + data.getUint32(offset + 4, true) * 0x1_0000_0000;
}

/** Reads a 64-bit little-endian number in two's complement. */
export function getI64(data: DataView, offset: number): number {
  return data.getUint32(offset, true) + data.getInt32(offset + 4, true) * 0x1_0000_0000;
}

/** Writes an unsigned 64-bit little-endian number. @throws RangeError when it is none that is exact */
export function setU64(data: DataView, offset: number, value: number): void {
  if (!isExact64(value) || value < 0 || value >= 2 ** 64) throw new RangeError(`not an unsigned integer: ${value}`);
  setWords(data, offset, value);
}

/** Writes a 64-bit little-endian number in two's complement. @throws RangeError when it is none that is exact */
function setI64(data: DataView, offset: number, value: number): void {
  if (!isExact64(value) || value < -(2 ** 63) || value >= 2 ** 63) throw new RangeError(`not an address: ${value}`);
  setWords(data, offset, value);
}

function isExact64(value: number): boolean {
  return Number.isSafeInteger(value) || value % 4096 === 0;
}

function setWords(data: DataView, offset: number, value: number): void {
  data.setUint32(offset, value >>> 0, true);
  data.setUint32(offset + 4, Math.floor(value / 0x1_0000_0000), true);
}

/** Reads a little-endian number of 1, 2, 4 or 8 bytes; of 8 as getU64 does. */
export function getUint(data: DataView, offset: number, size: number): number {
  if (size === 4) return data.getUint32(offset, true);
  if (size === 8) return getU64(data, offset);
  return size === 2 ? data.getUint16(offset, true) : data.getUint8(offset);
}

/** Writes a little-endian number of 1, 2 or 4 bytes. */
export function setUint(data: DataView, offset: number, size: number, value: number): void {
  if (size === 4) data.setUint32(offset, value, true);
  else if (size === 2) data.setUint16(offset, value, true);
  else data.setUint8(offset, value);
}

function property(type: Scalar, at: number): PropertyDescriptor & ThisType<Base> {
  switch (type) {
    case "u8":
      return {
        get() {
          return this.$data.getUint8(this.$offset + at);
        },
        set(value: number) {
          this.$data.setUint8(this.$offset + at, value);
        },
      };
    case "u16":
      return {
        get() {
          return this.$data.getUint16(this.$offset + at, true);
        },
        set(value: number) {
          this.$data.setUint16(this.$offset + at, value, true);
        },
      };
    case "u32":
      return {
        get() {
          return this.$data.getUint32(this.$offset + at, true);
        },
        set(value: number) {
          this.$data.setUint32(this.$offset + at, value, true);
        },
      };
    case "u64":
      return {
        get() {
          return getU64(this.$data, this.$offset + at);
        },
        set(value: number) {
          setU64(this.$data, this.$offset + at, value);
        },
      };
    case "i64":
      return {
        get() {
          return getI64(this.$data, this.$offset + at);
        },
        set(value: number) {
          setI64(this.$data, this.$offset + at, value);
        },
      };
    case "u64big":
      return {
        get() {
          return this.$data.getBigUint64(this.$offset + at, true);
        },
        set(value: bigint) {
          this.$data.setBigUint64(this.$offset + at, value, true);
        },
      };
  }
}

/** Turns a field table into a view class. */
export function struct<const T extends Table>(table: T): Struct<T> {
  class StructView extends Base {}
  const offsets: Record<string, number> = {};
  let size = 0;
  for (const [name, type] of Object.entries(table)) {
    offsets[name] = size;
    if (typeof type !== "number") Object.defineProperty(StructView.prototype, name, property(type, size));
    size += typeof type === "number" ? type : WIDTH[type];
  }
  const view = (data = new DataView(new ArrayBuffer(size)), offset = 0) =>
    new StructView(data, offset) as unknown as View & Fields<T>;
  return {
    table,
    size,
    offsets: offsets as Struct<T>["offsets"],
    view,
    encode(values) {
      const bytes = new Uint8Array(size);
      Object.assign(view(new DataView(bytes.buffer)), values);
      return bytes;
    },
  };
}
