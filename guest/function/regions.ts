/**
 * The regions of a function as vfio-user numbers them (VFIO_PCI_*_REGION_INDEX, then the device's own): accesses of any
 * size and alignment become naturally aligned ones of 1, 2 or 4 bytes, which go to config space, to the expansion ROM,
 * to the MSI-X table, to the device's register files, to memory that is shared with the driver VM, or to the device. A
 * ROM ignores writes.
 */
import { Region } from "../../shared/spec/vfio-user.js";
import { getUint, setUint } from "../../shared/struct/struct.js";
import type { Device } from "../device.js";
import type { ConfigSpace } from "../pci/config-space.js";
import { checkDeviceRegions } from "../pci/declared-regions.js";
import { FIRST_DEVICE_REGION } from "../pci/identity.js";
import type { MsixTable } from "../pci/msix.js";
import type { MirroredFile } from "../pci/register-mirror.js";
import type { RegisterFile } from "../pci/registers.js";
import type { Sharing } from "./sharing.js";

/** An access is of at most so many bytes, and a register file ends between two. */
const MAX_PIECE = 4;

export class Regions {
  /** Bytes of each; 0 where there is none. */
  readonly sizes: readonly number[];
  /** By region. */
  readonly #files: readonly (RegisterFile | undefined)[];

  /**
   * @throws RangeError for regions that cannot be, and for registers that are in none, or in shared memory: an author's
   * bug
   */
  constructor(
    readonly device: Device,
    readonly config: ConfigSpace,
    readonly msix: MsixTable | undefined,
    readonly sharing: Sharing,
  ) {
    const own = device.regions ?? [];
    checkDeviceRegions(own);
    const sizes = Array.from({ length: FIRST_DEVICE_REGION }, (_, index) => config.barSizes[index] ?? 0);
    sizes[Region.ROM] = config.rom.length;
    sizes[Region.CONFIG] = config.size;
    this.sizes = [...sizes, ...own.map(({ size }) => size)];
    const files = device.registers ?? {};
    this.#files = this.sizes.map((_, region) => files[region]);
    for (const [key, file] of Object.entries(files)) this.#checkFile(key, file);
  }

  #checkFile(key: string, file: RegisterFile): void {
    const region = Number(key);
    const isAuthors = region <= Region.BAR5 || region >= FIRST_DEVICE_REGION;
    if (!isAuthors)
      throw new RangeError(`registers[${key}]: registers go into BARs, and into regions of the device's own`);
    const room = this.sizes[region] ?? 0;
    const name = region <= Region.BAR5 ? `BAR ${key}` : `region ${key}`;
    const { size } = file;
    if (room === 0) throw new RangeError(`registers[${key}]: the device has no ${name} for them`);
    if (size > room) throw new RangeError(`${name} of ${room} bytes is too small for its ${size} bytes of registers`);
    if (size % MAX_PIECE !== 0) {
      throw new RangeError(`${name}: its ${size} bytes of registers must be a multiple of ${MAX_PIECE}`);
    }
    const part = this.sharing.lowestPart(region);
    if (size > part) {
      throw new RangeError(
        `${name}: its ${size} bytes of registers reach into the shared part at 0x${part.toString(16)}`,
      );
    }
    const layout = this.msix?.layout;
    if (layout?.bar !== region) return;
    const hidden = file.nameWithin(layout.tableOffset, layout.end);
    if (hidden === undefined) return;
    const range = `0x${layout.tableOffset.toString(16)} to 0x${layout.end.toString(16)}`;
    throw new RangeError(`${name}: the MSI-X table and pending bits, ${range}, lie over register ${hidden}`);
  }

  /** The author's registers. */
  resetRegisters(): void {
    for (const file of this.#files) file?.reset();
  }

  /** Config space and the author's registers. */
  get mirrored(): MirroredFile[] {
    const own = this.#files.flatMap((file, region) => {
      return file === undefined
        ? []
        : [{ region, file, isHidden: (at: number) => this.msix?.covers(region, at) ?? false }];
    });
    return [...own, { region: Region.CONFIG, file: this.config.registers, isHidden: () => false }];
  }

  /** Their values, all regions' one behind the other. */
  saveRegisters(): Uint8Array {
    return Buffer.concat(this.#files.flatMap((file) => file?.save() ?? []));
  }

  /** Puts back what `saveRegisters` gave. @throws RangeError when it is of other registers; nothing has changed then */
  loadRegisters(bytes: Uint8Array): void {
    const files = this.#files.filter((file) => file !== undefined);
    const size = files.reduce((sum, file) => sum + file.size, 0);
    if (bytes.length !== size) throw new RangeError(`${bytes.length} bytes for ${size} bytes of registers`);
    let at = 0;
    for (const file of files) {
      file.load(bytes.subarray(at, at + file.size));
      at += file.size;
    }
  }

  /** Reads region bytes [offset, offset + count), which lie within the region, into `data` from `to` on. */
  read(region: number, offset: number, count: number, data: DataView, to: number): void {
    const end = offset + count;
    for (let at = offset; at < end; ) {
      const size = pieceSize(at, end - at);
      const value = this.#readPiece(region, at, size);
      setUint(data, to + at - offset, size, value);
      at += size;
    }
  }

  write(region: number, offset: number, count: number, data: DataView, from: number): void {
    if (this.sharing.write(region, offset, count, data, from)) return;
    const end = offset + count;
    for (let at = offset; at < end; ) {
      const size = pieceSize(at, end - at);
      this.#writePiece(region, at, size, getUint(data, from + at - offset, size));
      at += size;
    }
  }

  /** The `size` bytes at `offset`, a multiple of it, which lie within the region; size is 1, 2 or 4. */
  readWord(region: number, offset: number, size: number): number {
    return this.#readPiece(region, offset, size);
  }

  /** The same; not for regions with ioeventfds, which a write may be meant for. */
  writeWord(region: number, offset: number, size: number, value: number): void {
    this.#writePiece(region, offset, size, value);
  }

  /** Whether a write to a region may be meant for an ioeventfd. */
  hasEvents(region: number): boolean {
    return this.sharing.hasEvents(region);
  }

  /** Whether an access concerns the device itself, and not only what is answered for it here. */
  reachesDevice(region: number, offset: number, count: number): boolean {
    if (region === Region.CONFIG || region === Region.ROM || count === 0) return false;
    return !(this.msix?.covers(region, offset) && this.msix.covers(region, offset + count - 1));
  }

  #readPiece(region: number, offset: number, size: number): number {
    if (region === Region.CONFIG) return this.config.read(offset, size);
    if (region === Region.ROM) return readBytes(this.config.rom, offset, size);
    if (this.msix?.covers(region, offset)) return this.msix.read(offset, size);
    const file = this.#files[region];
    if (file !== undefined && offset < file.size) return file.read(offset, size);
    const area = this.sharing.area(region, offset);
    if (area !== undefined) return getUint(area.data, offset - area.offset, size);
    return this.device.readBar?.(region, offset, size) ?? 0;
  }

  #writePiece(region: number, offset: number, size: number, value: number): void {
    if (region === Region.CONFIG) this.config.write(offset, size, value);
    else if (region === Region.ROM) return;
    else if (this.msix?.covers(region, offset)) this.msix.write(offset, size, value);
    else {
      const file = this.#files[region];
      const area = this.sharing.area(region, offset);
      if (file !== undefined && offset < file.size) file.write(offset, size, value);
      else if (area !== undefined) {
        setUint(area.data, offset - area.offset, size, value);
        this.device.sharedWritten?.(region, offset, size);
      } else this.device.writeBar?.(region, offset, size, value);
    }
  }

  /** The author's registers by region and name, for diagnostics. */
  inspect(): unknown {
    const values = this.#files.flatMap((file, region) => (file === undefined ? [] : [[region, file.inspect()]]));
    return Object.fromEntries(values);
  }
}

function readBytes(bytes: Uint8Array, offset: number, size: number): number {
  let value = 0;
  for (let at = offset + size - 1; at >= offset; at--) value = value * 256 + bytes[at];
  return value;
}

function pieceSize(offset: number, left: number): 1 | 2 | 4 {
  if (left >= 4 && offset % 4 === 0) return 4;
  return left >= 2 && offset % 2 === 0 ? 2 : 1;
}
