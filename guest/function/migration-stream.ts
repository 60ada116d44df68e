/**
 * What MIG_DATA_READ gives and MIG_DATA_WRITE takes: a function's whole state as a stream of sections, little-endian.
 * To the client it is opaque; whoever reads it checks all of it before any of it is used.
 *
 *     header, then sections: PIECE* CONFIG MSIX? INTERRUPTS REGISTERS SHARED DEVICE END
 */
import { inBounds } from "../../shared/bits.js";
import { KiB, MAX_MIGRATION_STREAM } from "../../shared/limits.js";
import { struct } from "../../shared/struct/struct.js";

const INITIAL_SIZE = 4 * KiB;
/** "vvum". */
const MAGIC = 0x6d757676;
/** Counts up when what is in the sections changes; there is no reading of other versions. */
const VERSION = 1;
const StreamHeader = struct({ magic: "u32", version: "u16", reserved: 2 });
const SectionHeader = struct({ kind: "u32", length: "u32" });

const Section = {
  /** What a device's preCopy gave, in order. */
  PIECE: 1,
  /** ConfigSpace.save */
  CONFIG: 2,
  /** MsixTable.save, of a function that has one. */
  MSIX: 3,
  /** InterruptController.savePending */
  INTERRUPTS: 4,
  /** Regions.saveRegisters */
  REGISTERS: 5,
  /** Sharing.save */
  SHARED: 6,
  /** What the device's own save gave. */
  DEVICE: 7,
  /** Empty: nothing is missing. */
  END: 8,
} as const;

/** A function's state in parts. */
export interface FunctionState {
  readonly config: Uint8Array;
  readonly msix: Uint8Array | undefined;
  readonly interrupts: Uint8Array;
  readonly registers: Uint8Array;
  readonly shared: Uint8Array;
  readonly device: Uint8Array;
}

export function encodeHeader(): Uint8Array {
  return StreamHeader.encode({ magic: MAGIC, version: VERSION });
}

export function encodePiece(piece: Uint8Array): Uint8Array[] {
  return section(Section.PIECE, piece);
}

/** All that comes behind the header and the pieces. */
export function encodeState({ config, msix, interrupts, registers, shared, device }: FunctionState): Uint8Array[] {
  return [
    ...section(Section.CONFIG, config),
    ...(msix === undefined ? [] : section(Section.MSIX, msix)),
    ...section(Section.INTERRUPTS, interrupts),
    ...section(Section.REGISTERS, registers),
    ...section(Section.SHARED, shared),
    ...section(Section.DEVICE, device),
    ...section(Section.END, new Uint8Array(0)),
  ];
}

function section(kind: number, payload: Uint8Array): Uint8Array[] {
  const header = SectionHeader.encode({ kind, length: payload.length });
  return payload.length === 0 ? [header] : [header, payload];
}

/** Reads a whole stream; the parts are views of it. @throws RangeError that says what is wrong with it */
export function parseStream(stream: Uint8Array): FunctionState & { readonly pieces: readonly Uint8Array[] } {
  const data = new DataView(stream.buffer, stream.byteOffset, stream.length);
  if (stream.length < StreamHeader.size) throw new RangeError(`${stream.length} bytes are no migration stream`);
  const { magic, version } = StreamHeader.view(data);
  if (magic !== MAGIC) throw new RangeError("no migration stream");
  if (version !== VERSION) throw new RangeError(`a migration stream of version ${version}, not ${VERSION}`);
  const pieces: Uint8Array[] = [];
  const parts = new Map<number, Uint8Array>();
  let last = 0;
  const header = SectionHeader.view();
  for (let at = StreamHeader.size; last !== Section.END; ) {
    if (!inBounds(at, SectionHeader.size, stream.length)) throw new RangeError("the migration stream is cut off");
    const { kind, length } = header.at(data, at);
    at += SectionHeader.size;
    if (!inBounds(at, length, stream.length)) throw new RangeError("the migration stream is cut off");
    if (kind < Section.PIECE || kind > Section.END || kind < last || (kind === last && kind !== Section.PIECE)) {
      throw new RangeError(`section ${kind} behind section ${last} of the migration stream`);
    }
    const payload = stream.subarray(at, at + length);
    if (kind === Section.PIECE) pieces.push(payload);
    else parts.set(kind, payload);
    at += length;
    last = kind;
    if (kind === Section.END && (length > 0 || at < stream.length))
      throw new RangeError("bytes behind the stream's end");
  }
  const part = (kind: number): Uint8Array => {
    const payload = parts.get(kind);
    if (payload === undefined) throw new RangeError(`the migration stream has no section ${kind}`);
    return payload;
  };
  return {
    config: part(Section.CONFIG),
    msix: parts.get(Section.MSIX),
    interrupts: part(Section.INTERRUPTS),
    registers: part(Section.REGISTERS),
    shared: part(Section.SHARED),
    device: part(Section.DEVICE),
    pieces,
  };
}

/** Bytes that are put in at one end and taken out at the other, as many altogether as one migration may have. */
export class StreamBuffer {
  #bytes = new Uint8Array(INITIAL_SIZE);
  #from = 0;
  #to = 0;

  constructor(readonly limit = MAX_MIGRATION_STREAM) {}

  /** Bytes that can be taken. */
  get length(): number {
    return this.#to - this.#from;
  }

  /** Copies `bytes` to the end. @throws RangeError when that were more than the limit since the last `clear` */
  push(bytes: Uint8Array): void {
    const end = this.#to + bytes.length;
    if (end > this.limit) throw new RangeError(`a stream of more than ${this.limit} bytes`);
    if (end > this.#bytes.length) {
      let size = this.#bytes.length;
      while (size < end) size *= 2;
      const larger = new Uint8Array(size);
      larger.set(this.#bytes.subarray(0, this.#to));
      this.#bytes = larger;
    }
    this.#bytes.set(bytes, this.#to);
    this.#to = end;
  }

  /** Takes the first `size` bytes, or all when there are fewer; they are the caller's. */
  take(size: number): Uint8Array {
    const bytes = this.#bytes.slice(this.#from, Math.min(this.#from + size, this.#to));
    this.#from += bytes.length;
    return bytes;
  }

  clear(): void {
    this.#bytes = new Uint8Array(INITIAL_SIZE);
    this.#from = 0;
    this.#to = 0;
  }
}
