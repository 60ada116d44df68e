/**
 * MSI-X as BAR memory: the vector table and the pending bits (PCI Local Bus 3.0, 6.8.2). A driver VMM such as QEMU
 * emulates the table on its own side and tells us of vectors by SET_IRQS, so what is written here is kept and read back
 * but steers no interrupt; in particular the mask bits, which stay as after reset when a VMM never writes them.
 */
import { alignUp, isAligned } from "../../shared/bits.js";
import { MAX_IRQ_VECTORS } from "../../shared/limits.js";
import { Msix } from "../../shared/spec/pci.js";
import type { PciIdentity } from "./identity.js";

/** Where the table and the pending bits are, in bytes from the start of BAR `bar`. */
export interface MsixLayout {
  readonly vectors: number;
  readonly bar: number;
  readonly tableOffset: number;
  readonly pendingOffset: number;
  /** The first byte behind both. */
  readonly end: number;
}

/** The pending bits follow the table. @throws RangeError for an identity that contradicts itself */
export function msixLayout({ msix }: PciIdentity): MsixLayout | undefined {
  if (msix === undefined || msix.vectors === 0) return undefined;
  const { vectors, bar, offset } = msix;
  if (!Number.isInteger(vectors) || vectors < 0 || vectors > MAX_IRQ_VECTORS) {
    throw new RangeError(`${vectors} MSI-X vectors: at most ${MAX_IRQ_VECTORS} are possible`);
  }
  if (offset < 0 || offset > 0x7fff_0000 || !isAligned(offset, 8)) {
    throw new RangeError(`the MSI-X table's offset ${offset} is not a multiple of 8 within a BAR`);
  }
  const pendingOffset = offset + vectors * Msix.TABLE_ENTRY_SIZE;
  return { vectors, bar, tableOffset: offset, pendingOffset, end: pendingOffset + alignUp(vectors, 64) / 8 };
}

export class MsixTable {
  readonly #table: DataView;

  constructor(
    readonly layout: MsixLayout,
    /** Whether a vector's interrupt waits. */
    readonly pending: (vector: number) => boolean,
  ) {
    this.#table = new DataView(new ArrayBuffer(layout.vectors * Msix.TABLE_ENTRY_SIZE));
    this.reset();
  }

  reset(): void {
    for (let at = 0; at < this.#table.byteLength; at += Msix.TABLE_ENTRY_SIZE) {
      this.#table.setUint32(at, 0, true);
      this.#table.setUint32(at + 4, 0, true);
      this.#table.setUint32(at + 8, 0, true);
      this.#table.setUint32(at + Msix.ENTRY_CONTROL, Msix.ENTRY_CONTROL_MASK, true);
    }
  }

  /** The table's bytes. */
  save(): Uint8Array {
    return new Uint8Array(this.#table.buffer.slice(0));
  }

  /** @throws RangeError when the length is not the table's */
  load(bytes: Uint8Array): void {
    if (bytes.length !== this.#table.byteLength) throw new RangeError(`an MSI-X table of ${bytes.length} bytes`);
    new Uint8Array(this.#table.buffer).set(bytes);
  }

  /** Whether BAR `bar`'s byte at `offset` belongs to the table or the pending bits. */
  covers(bar: number, offset: number): boolean {
    return bar === this.layout.bar && offset >= this.layout.tableOffset && offset < this.layout.end;
  }

  /** 1, 2 or 4 naturally aligned bytes that start where `covers` says so; `offset` counts from the BAR's start. */
  read(offset: number, size: number): number {
    let value = 0;
    for (let byte = size - 1; byte >= 0; byte--) value = value * 256 + this.#readByte(offset + byte);
    return value;
  }

  write(offset: number, size: number, value: number): void {
    for (let byte = 0; byte < size; byte++) {
      const at = offset + byte - this.layout.tableOffset;
      if (at < this.#table.byteLength) this.#table.setUint8(at, (value >>> (byte * 8)) & 0xff);
    }
  }

  #readByte(offset: number): number {
    if (offset < this.layout.pendingOffset) return this.#table.getUint8(offset - this.layout.tableOffset);
    const first = (offset - this.layout.pendingOffset) * 8;
    let bits = 0;
    for (let bit = 0; bit < 8; bit++) {
      if (first + bit < this.layout.vectors && this.pending(first + bit)) bits |= 1 << bit;
    }
    return bits;
  }
}
