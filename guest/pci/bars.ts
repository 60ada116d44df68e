/**
 * BARs of each kind, and the expansion ROM's (PCI Local Bus 3.0, 6.2.5): their checks, and their registers. A BAR tells
 * its size by the address bits that cannot be written. Left out: memory below 1 MiB (withdrawn by PCI 3.0).
 */
import { isPowerOfTwo } from "../../shared/bits.js";
import { BarBits, Header, NUM_BARS } from "../../shared/spec/pci.js";
import type { BarOptions, PciIdentity } from "./identity.js";
import type { MsixLayout } from "./msix.js";
import type { Register } from "./registers.js";

const MIN_MEMORY_SIZE = 16;
const MAX_MEMORY_SIZE_32 = 0x8000_0000;
const MIN_IO_SIZE = 4;
const MAX_IO_SIZE = 256;
const MIN_ROM_SIZE = 2048;
const MAX_ROM_SIZE = 0x100_0000;
/** Erased, as in a memory chip. */
const ROM_FILLER = 0xff;
const TWO_32 = 0x1_0000_0000;

/**
 * The author's BARs by index, and one for MSI-X where the author named one that is not there. @throws RangeError for
 * what cannot be
 */
export function allBars(identity: PciIdentity, layout: MsixLayout | undefined): Readonly<Record<number, BarOptions>> {
  const bars: Record<number, BarOptions> = { ...identity.bars };
  if (layout !== undefined && bars[layout.bar] === undefined) {
    bars[layout.bar] = { size: Math.max(4096, 2 ** Math.ceil(Math.log2(layout.end))) };
  }
  for (const [key, bar] of Object.entries(bars)) {
    const index = Number(key);
    const last = bar.is64Bit ? index + 1 : index;
    if (!Number.isInteger(index) || index < 0 || last >= NUM_BARS) throw noBar(key, bar);
    if (bar.is64Bit && bars[last] !== undefined) {
      throw new RangeError(`BAR ${last} is the upper half of BAR ${index}, which is of 64 bits, and cannot be another`);
    }
    if (bar.io && (bar.is64Bit || bar.prefetchable)) {
      throw new RangeError(`BAR ${index} is an I/O BAR, which can be neither of 64 bits nor prefetchable`);
    }
    const least = bar.io ? MIN_IO_SIZE : MIN_MEMORY_SIZE;
    const most = bar.io ? MAX_IO_SIZE : bar.is64Bit ? Number.MAX_SAFE_INTEGER : MAX_MEMORY_SIZE_32;
    if (!isPowerOfTwo(bar.size) || bar.size < least || bar.size > most) {
      throw new RangeError(`BAR ${index}: ${bar.size} bytes is not a power of two from ${least} to ${most}`);
    }
  }
  if (layout !== undefined && (bars[layout.bar].io || layout.end > bars[layout.bar].size)) {
    const what = `the MSI-X table and pending bits of ${layout.vectors} vectors`;
    const room = bars[layout.bar].io ? "an I/O BAR" : `of ${bars[layout.bar].size} bytes`;
    const end = layout.end.toString(16);
    throw new RangeError(`${what}, which end at 0x${end}, do not fit into BAR ${layout.bar}, ${room}`);
  }
  return bars;
}

function noBar(key: string, { is64Bit }: BarOptions): RangeError {
  const why = is64Bit && Number(key) === NUM_BARS - 1 ? ", which one of 64 bits would need as its upper half" : "";
  return new RangeError(
    `there is no BAR ${why === "" ? key : NUM_BARS}${why}: a function has BARs 0 to ${NUM_BARS - 1}`,
  );
}

/** A BAR's register, or two for 64 bits. */
export function barRegisters(table: Map<string, Register>, index: number, bar: BarOptions): void {
  const offset = Header.BAR0 + index * 4;
  const flags = bar.io
    ? BarBits.IO
    : (bar.is64Bit ? BarBits.TYPE_64_BIT : 0) | (bar.prefetchable ? BarBits.PREFETCHABLE : 0);
  const lowMask = bar.size >= TWO_32 ? 0 : ~(bar.size - 1) >>> 0;
  table.set(`bar${index}`, { offset, size: 4, reset: flags, writable: lowMask });
  if (bar.is64Bit) {
    const highMask = bar.size > TWO_32 ? ~(bar.size / TWO_32 - 1) >>> 0 : 0xffffffff;
    table.set(`bar${index + 1}`, { offset: offset + 4, size: 4, writable: highMask });
  }
}

/**
 * The ROM as it is read, as large as it says it is; empty where there is none. @throws RangeError when it is too large
 */
export function romImage(rom: Uint8Array | undefined): Uint8Array {
  if (rom === undefined || rom.length === 0) return new Uint8Array(0);
  if (rom.length > MAX_ROM_SIZE) throw new RangeError(`an expansion ROM of ${rom.length} bytes`);
  const image = new Uint8Array(Math.max(MIN_ROM_SIZE, 2 ** Math.ceil(Math.log2(rom.length)))).fill(ROM_FILLER);
  image.set(rom);
  return image;
}

export function romRegister(table: Map<string, Register>, size: number): void {
  const writable = (~(size - 1) | BarBits.ROM_ENABLE) >>> 0;
  table.set("expansionRom", { offset: Header.EXPANSION_ROM, size: 4, writable });
}
