/**
 * A copy of all registers that read as what is stored in them, in memory from which reads are answered without this
 * process (shared/vfio-user/register-memory.ts): config space, and the author's register files. What a hook computes,
 * and what is no register, stays with the device.
 */
import { alignUp } from "../../shared/bits.js";
import { MAX_REGISTER_AREAS, MAX_REGISTER_MEMORY } from "../../shared/limits.js";
import { RegisterMemoryHead } from "../../shared/spec/link.js";
import { type RegisterArea, RegisterMemoryState } from "../../shared/vfio-user/register-memory.js";
import type { RegisterFile } from "./registers.js";

/** Registers at the start of a region. */
export interface MirroredFile {
  readonly region: number;
  readonly file: RegisterFile;
  /** Whether a byte of the region is answered by something else. */
  readonly isHidden: (offset: number) => boolean;
}

interface PlacedFile {
  readonly file: RegisterFile;
  readonly place: number;
}

/** Each file's place is a multiple of it, so that an aligned register is aligned in the memory. */
const ALIGNMENT = 8;

export class RegisterMirror {
  /** What the memory is to hold; what finds no room is left out. */
  readonly areas: readonly RegisterArea[];
  /** Bytes. */
  readonly size: number;
  readonly #placed: readonly PlacedFile[];
  #state: RegisterMemoryState | undefined;
  #isHeld = false;

  constructor(files: readonly MirroredFile[]) {
    const areas: RegisterArea[] = [];
    const placed: PlacedFile[] = [];
    let end: number = RegisterMemoryHead.size;
    for (const { region, file, isHidden } of files) {
      const place = alignUp(end, ALIGNMENT);
      if (place + file.size > MAX_REGISTER_MEMORY) continue;
      const runs = file.storedRuns(isHidden).slice(0, MAX_REGISTER_AREAS - areas.length);
      areas.push(...runs.map(({ offset, size }) => ({ region, offset, size, place: place + offset })));
      placed.push({ file, place });
      end = place + file.size;
    }
    this.areas = areas;
    this.size = end;
    this.#placed = placed;
  }

  /** `memory`, of `size` bytes and zeros, is kept up to date from now on. */
  open(memory: Uint8Array<ArrayBuffer>): void {
    for (const { file, place } of this.#placed) {
      file.mirror(memory.buffer, memory.byteOffset + place);
    }
    this.#state = new RegisterMemoryState(memory);
    this.#state.valid = !this.#isHeld;
  }

  /** The function stands still: reads come to the device, which refuses them. */
  hold(): void {
    this.#isHeld = true;
    if (this.#state !== undefined) this.#state.valid = false;
  }

  release(): void {
    this.#isHeld = false;
    if (this.#state !== undefined) this.#state.valid = true;
  }

  /** A write to a region was dealt with. */
  writeDone(): void {
    this.#state?.writeDone();
  }
}
