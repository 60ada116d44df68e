/**
 * A register file as data: the table reads like a data sheet, and one place turns accesses of any size and alignment
 * into accesses of whole registers. Registers are at most 32 bits wide; a 64-bit one is two of them (`pair`), as on a
 * 32-bit bus. Bytes that no register covers read as zero and ignore writes.
 */
import { dmaAddress } from "../../shared/address.js";

/** One line of a data sheet. Values and masks are unsigned. */
export interface Register {
  /** From the start of the file, in bytes; a multiple of `size`. */
  readonly offset: number;
  readonly size: 1 | 2 | 4;
  /** The value after reset; 0 when left out. */
  readonly reset?: number;
  /** Bits that software can write; none when left out. */
  readonly writable?: number;
  /** Bits that software clears by writing 1 to them. */
  readonly writeOneToClear?: number;
  /** Computes the value that software reads, instead of the stored one. */
  readonly onRead?: () => number;
  /**
   * What a write leaves behind, for fields with values that do not exist: given what the masks made of it, and the old
   * value.
   */
  readonly accept?: (value: number, previous: number) => number;
  /**
   * Called after software's write took effect, once for each access, with the register's whole new and old value and
   * the bits as they were written.
   */
  readonly onWrite?: (value: number, previous: number, written: number) => void;
}

const NAMES: Names<Required<Register>> = {
  offset: true,
  size: true,
  reset: true,
  writable: true,
  writeOneToClear: true,
  onRead: true,
  accept: true,
  onWrite: true,
};

/** What `pair` makes of a name. */
type Halves<Name extends string> = `${Name}_LOW` | `${Name}_HIGH`;
/** The names of which both halves may be there. */
type Paired<Name extends string> = Name extends `${infer Whole}_LOW` ? Whole : never;

export type RegisterTable<Name extends string = string> = Readonly<Record<Name, Register>>;

const NONE = -1;
/** An index of each is kept for every byte. */
const MAX_REGISTERS = 0x7fff;
const MAX_SIZE = 0x1000_0000;

export class RegisterFile<Name extends string = string> {
  readonly #registers: readonly Register[];
  readonly #indexOf: Readonly<Record<string, number>>;
  readonly #values: Uint32Array;
  /** The register that covers each byte, or NONE. */
  readonly #at: Int16Array;
  /** A copy of all stored values, each in its register's place, by the registers' sizes. */
  #mirror: { readonly 1: Uint8Array; readonly 2: Uint16Array; readonly 4: Uint32Array } | undefined;

  /** @throws RangeError when the table contradicts itself: an author's bug */
  constructor(
    readonly size: number,
    table: RegisterTable<Name>,
  ) {
    if (!Number.isInteger(size) || size < 0 || size > MAX_SIZE) {
      throw new RangeError(`a register file of ${size} bytes: a whole number up to ${MAX_SIZE} is possible`);
    }
    this.#registers = Object.values<Register>(table);
    if (this.#registers.length > MAX_REGISTERS) {
      throw new RangeError(`a register file of ${this.#registers.length} registers: at most ${MAX_REGISTERS}`);
    }
    this.#indexOf = Object.fromEntries(Object.keys(table).map((name, index) => [name, index]));
    this.#values = new Uint32Array(this.#registers.length);
    this.#at = new Int16Array(size).fill(NONE);
    for (const [name, register] of Object.entries<Register>(table)) {
      checkRegister(name, register, size);
      const end = register.offset + register.size;
      const other = this.nameWithin(register.offset, end);
      if (other !== undefined) throw new RangeError(`${placed(name, register)} overlaps register ${other}`);
      this.#at.fill(this.#indexOf[name], register.offset, end);
    }
    this.reset();
  }

  /** The first register that has a byte in [start, end). */
  nameWithin(start: number, end: number): string | undefined {
    const index = this.#at.subarray(start, end).find((each) => each !== NONE);
    return index === undefined ? undefined : Object.keys(this.#indexOf)[index];
  }

  /** Puts every register to its reset value; calls no hooks. */
  reset(): void {
    for (const [index, register] of this.#registers.entries()) this.#store(index, register.reset ?? 0);
  }

  /** All stored values, each in its register's place: an image of `size` bytes. No hooks. */
  save(): Uint8Array {
    const image = new Uint8Array(this.size);
    for (const [index, { offset, size }] of this.#registers.entries()) {
      for (let n = 0; n < size; n++) image[offset + n] = this.#values[index] >>> (n * 8);
    }
    return image;
  }

  /**
   * Puts back what `save` gave; calls no hooks. @throws RangeError when the image is not of `size` bytes; nothing has
   * changed then
   */
  load(image: Uint8Array): void {
    if (image.length !== this.size) throw new RangeError(`${image.length} bytes for ${this.size} bytes of registers`);
    for (const [index, register] of this.#registers.entries()) this.#store(index, valueIn(image, register));
  }

  /**
   * Whether an image holds nothing but what software's writes can have made of the reset values: bits that it cannot
   * change are as after reset, and every value is one that `accept` lets stand.
   */
  isReachable(image: Uint8Array): boolean {
    if (image.length !== this.size) return false;
    return this.#registers.every((register) => {
      const { reset = 0, writable = 0, writeOneToClear = 0, accept } = register;
      const value = valueIn(image, register);
      if (((value ^ reset) & ~(writable | writeOneToClear)) !== 0) return false;
      return accept === undefined || accept(value, reset) >>> 0 === value;
    });
  }

  /** The stored value, as the device sees it: no hooks. */
  get(name: Name): number {
    return this.#values[this.#indexOf[name]];
  }

  /** The stored value of a 64-bit register that `pair` made: exact, so a bigint. */
  get64(name: Paired<Name>): bigint {
    const half = (which: Halves<string>) => BigInt(this.#values[this.#indexOf[which]]);
    return (half(`${name}_HIGH`) << 32n) | half(`${name}_LOW`);
  }

  /** The same as an address for DMA. */
  getAddress(name: Paired<Name>): number {
    const half = (which: Halves<string>) => this.#values[this.#indexOf[which]];
    return dmaAddress(half(`${name}_LOW`), half(`${name}_HIGH`));
  }

  /** Sets the whole value, as the device does: no masks, no hooks. */
  set(name: Name, value: number): void {
    this.#store(this.#indexOf[name], value);
  }

  /** Software reads 1, 2 or 4 bytes at any offset. @throws RangeError when they do not lie within the file */
  read(offset: number, size: number): number {
    const end = this.#end(offset, size);
    let result = 0;
    for (let at = offset; at < end; ) {
      const index = this.#at[at];
      if (index === NONE) {
        at++;
        continue;
      }
      const register = this.#registers[index];
      const skipped = at - register.offset;
      const value = register.onRead === undefined ? this.#values[index] : register.onRead();
      const taken = Math.min(register.size - skipped, end - at);
      // The part that was asked for, moved from its place in the register to its place in the access.
      result |= ((value >>> (skipped * 8)) & lowBytes(taken)) << ((at - offset) * 8);
      at += taken;
    }
    return result >>> 0;
  }

  /** Software writes 1, 2 or 4 bytes at any offset. @throws RangeError when they do not lie within the file */
  write(offset: number, size: number, value: number): void {
    const end = this.#end(offset, size);
    for (let at = offset; at < end; ) {
      const index = this.#at[at];
      if (index === NONE) {
        at++;
        continue;
      }
      const register = this.#registers[index];
      const skipped = at - register.offset;
      const taken = Math.min(register.size - skipped, end - at);
      const lanes = lowBytes(taken) << (skipped * 8);
      const written = ((value >>> ((at - offset) * 8)) << (skipped * 8)) & lanes;
      const writable = (register.writable ?? 0) & lanes;
      const previous = this.#values[index];
      const masked = ((previous & ~writable) | (written & writable)) & ~(written & (register.writeOneToClear ?? 0));
      const next = (register.accept === undefined ? masked : register.accept(masked >>> 0, previous)) >>> 0;
      this.#store(index, next);
      register.onWrite?.(next, previous, written >>> 0);
      at += taken;
    }
  }

  /**
   * Runs of bytes, in ascending order, that read as what is stored in them, or as zeros where no register is; but for
   * those that are hidden behind something else.
   */
  storedRuns(isHidden: (offset: number) => boolean): { readonly offset: number; readonly size: number }[] {
    const runs: { offset: number; size: number }[] = [];
    let last: { offset: number; size: number } | undefined;
    for (let offset = 0; offset < this.size; offset++) {
      const index = this.#at[offset];
      if (isHidden(offset) || (index !== NONE && this.#registers[index].onRead !== undefined)) {
        last = undefined;
      } else if (last !== undefined) {
        last.size++;
      } else {
        last = { offset, size: 1 };
        runs.push(last);
      }
    }
    return runs;
  }

  /**
   * Keeps a copy of the stored values in `size` bytes of `buffer`, zeros, from `place` on, a multiple of 4. Whoever
   * looks at it sees each value whole, and what is set later after what was set before.
   */
  mirror(buffer: ArrayBuffer, place: number): void {
    const { size } = this;
    this.#mirror = {
      1: new Uint8Array(buffer, place, size),
      2: new Uint16Array(buffer, place, size >>> 1),
      4: new Uint32Array(buffer, place, size >>> 2),
    };
    for (const [index, value] of this.#values.entries()) this.#store(index, value);
  }

  #store(index: number, value: number): void {
    this.#values[index] = value;
    if (this.#mirror === undefined) return;
    const { offset, size } = this.#registers[index];
    Atomics.store(this.#mirror[size], offset / size, value);
  }

  #end(offset: number, size: number): number {
    const end = offset + size;
    if (!(offset >= 0 && end <= this.size))
      throw new RangeError(`there are no ${size} bytes of registers at ${offset}`);
    return end;
  }

  /** Every register's stored value by name, for diagnostics. */
  inspect(): Record<string, string> {
    const lines = Object.entries(this.#indexOf).map(([name, index]) => [name, `0x${this.#values[index].toString(16)}`]);
    return Object.fromEntries(lines);
  }
}

/** A 64-bit register as two lines of the table, NAME_LOW and NAME_HIGH; masks and hooks are each half's. */
export function pair<Name extends string>(
  name: Name,
  offset: number,
  half: Omit<Register, "offset" | "size">,
): RegisterTable<Halves<Name>> {
  const table = {
    [`${name}_LOW`]: { offset, size: 4, ...half },
    [`${name}_HIGH`]: { offset: offset + 4, size: 4, ...half },
  };
  return table as RegisterTable<Halves<Name>>;
}

/**
 * A register for each byte of `bytes`, from `offset` on, named by its offset in hexadecimal. `writable` is a mask for
 * each byte, none when left out or short; `onWrite` gets the byte's offset and new value.
 */
export function bytesAsRegisters(
  offset: number,
  bytes: Uint8Array,
  writable?: Uint8Array,
  onWrite?: (offset: number, value: number) => void,
): RegisterTable {
  const table: Record<string, Register> = {};
  for (const [n, reset] of bytes.entries()) {
    const at = offset + n;
    const hook = onWrite === undefined ? {} : { onWrite: (value: number) => onWrite(at, value) };
    table[`0x${at.toString(16)}`] = { offset: at, size: 1, reset, writable: writable?.[n] ?? 0, ...hook };
  }
  return table;
}

function placed(name: string, { offset, size }: Register): string {
  return `register ${name} of ${size} bytes at 0x${offset.toString(16)}`;
}

/** @throws RangeError for a line of the table that cannot be */
function checkRegister(name: string, register: Register, fileSize: number): void {
  if (typeof register !== "object" || register === null) {
    throw new RangeError(`register ${name} is ${register}: it must be an object with its offset and size`);
  }
  checkNames(`register ${name}`, register, NAMES);
  const { offset, size, reset = 0, writable = 0, writeOneToClear = 0, onRead, accept, onWrite } = register;
  if (![1, 2, 4].includes(size)) {
    throw new RangeError(`register ${name} is of ${size} bytes: 1, 2 and 4 are possible, and pair() makes two for 8`);
  }
  if (!Number.isInteger(offset) || offset < 0 || offset % size !== 0 || offset + size > fileSize) {
    const rule = `its offset must be a multiple of its size, within the ${fileSize} bytes of the file`;
    throw new RangeError(`register ${name} of ${size} bytes at ${offset}: ${rule}`);
  }
  for (const [what, value] of Object.entries({ reset, writable, writeOneToClear })) {
    if (Number.isInteger(value) && value >= -(2 ** 31) && value < 2 ** 32) continue;
    throw new RangeError(`register ${name}: ${what} is ${value}, which is no number of 32 bits`);
  }
  if (reset >= 256 ** size) {
    throw new RangeError(`register ${name}: reset is 0x${reset.toString(16)}, which does not fit into ${size} bytes`);
  }
  for (const [what, hook] of Object.entries({ onRead, accept, onWrite })) {
    if (hook === undefined || typeof hook === "function") continue;
    throw new RangeError(`register ${name}: ${what} is no function`);
  }
}

function valueIn(image: Uint8Array, { offset, size }: Register): number {
  let value = 0;
  for (let n = size - 1; n >= 0; n--) value = value * 256 + image[offset + n];
  return value;
}

/** A mask of the low `bytes` bytes, 1 to 4. */
function lowBytes(bytes: number): number {
  return 0xffffffff >>> (32 - bytes * 8);
}

/** Every property of an interface. */
export type Names<T> = Readonly<Record<keyof T, true>>;

/**
 * Authors write names that nobody knows ("writeable"): a type checker would say so, and JavaScript lets them pass.
 * @throws RangeError that names what is not known; `what` is the object, in words
 */
export function checkNames<T extends object>(what: string, object: T, known: Names<T>): void {
  const unknown = Object.keys(object).find((name) => !Object.hasOwn(known, name));
  if (unknown === undefined) return;
  throw new RangeError(
    `${what}: nothing is called "${unknown}" there; what may be is ${Object.keys(known).join(", ")}`,
  );
}
