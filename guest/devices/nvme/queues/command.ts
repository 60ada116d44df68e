/**
 * One command in flight: its entry, read once into plain numbers, and what its data needs. The objects are pooled, so a
 * command allocates nothing once as many have been made as are ever in flight together.
 */
import type { Dma } from "../../../device.js";
import { ScatterList } from "../../../scatter-list.js";
import { Command as Entry, Fuse, Psdt, RW_NLB_MASK, SGL_DESCRIPTOR_SIZE, Status } from "../spec.js";
import type { Namespace } from "../storage/namespace.js";
import type { Task } from "../storage/storage.js";
import { NOT_IN_WINDOW, PrpReader, SglReader } from "./data-pointer.js";
import type { WaitGroup } from "./in-flight.js";
import type { SubmissionQueue } from "./queues.js";
import { SegmentList } from "./segments.js";

/** A command of a queue that no lane serves. */
export const NO_SLOT = -1;

const entry = Entry.view();

export class Command implements Task {
  queue!: SubmissionQueue;
  ended = false;
  waitGroup!: WaitGroup;
  /** The other half of a fused pair that is carried out. */
  partner: Command | undefined;
  /** What an I/O command is about, once that is known. */
  namespace: Namespace | undefined;
  opcode = 0;
  flags = 0;
  id = 0;
  namespaceId = 0;
  /** Above 2^53-1 a PRP is not exact, and refused. */
  prp1 = 0;
  prp2 = 0;
  cdw10 = 0;
  cdw11 = 0;
  cdw12 = 0;
  cdw13 = 0;
  /** Dword 0 of the completion. */
  result = 0;
  /** Where the data is in the storage, in bytes. */
  position = 0;
  length = 0;
  /** Of an admin command, what it counts for as long as it is in flight. */
  adminBytes = 0;
  /** Of its lane, where it came from one (lanes.ts); or NO_SLOT. */
  slot = NO_SLOT;
  /** CC.MPS in bytes. */
  pageSize = 0;
  /** Where the data is in driver-VM memory, after `resolve`. */
  readonly ranges = new ScatterList();
  readonly segments = new SegmentList();
  /** Completes the command; nothing happens when it has ended. */
  readonly complete: (status: number) => void;
  readonly dma: Dma;
  readonly #prps = new PrpReader(this.ranges);
  /** Made for the first command that has an SGL; its first descriptor is kept beside it. */
  #sgl: SglReader | undefined;
  readonly #descriptor = new DataView(new ArrayBuffer(SGL_DESCRIPTOR_SIZE));

  constructor(dma: Dma, onComplete: (command: Command, status: number) => void) {
    this.dma = dma;
    this.complete = (status) => onComplete(this, status);
  }

  /** Reads each field that matters once, as the driver may rewrite it meanwhile. */
  decode(data: DataView, offset: number): void {
    entry.at(data, offset);
    this.opcode = entry.OPC;
    this.flags = entry.FLAGS;
    this.id = entry.CID;
    this.namespaceId = entry.NSID;
    this.prp1 = entry.PRP1;
    this.prp2 = entry.PRP2;
    this.cdw10 = entry.CDW10;
    this.cdw11 = entry.CDW11;
    this.cdw12 = entry.CDW12;
    this.cdw13 = entry.CDW13;
    this.result = 0;
    this.length = 0;
    this.ended = false;
    this.partner = undefined;
    this.slot = NO_SLOT;
    if (this.psdt === Psdt.PRP) return;
    const pointer = offset + Entry.offsets.PRP1;
    for (let at = 0; at < SGL_DESCRIPTOR_SIZE; at += 4) {
      this.#descriptor.setUint32(at, data.getUint32(pointer + at, true), true);
    }
  }

  /** CDW0, PRP or SGL for Data Transfer. */
  get psdt(): number {
    return this.flags >>> 6;
  }

  /** Which half of a fused pair it is, as one of Fuse, or 0. */
  get fuse(): number {
    return this.flags & Fuse.MASK;
  }

  /** Reserved values, and half of a pair where no pair is carried out. */
  get hasInvalidFlags(): boolean {
    const reserved = this.partner === undefined ? 0x3f : 0x3c;
    return (this.flags & reserved) !== 0 || this.psdt === Psdt.RESERVED;
  }

  /** Sets position and length of a command whose CDW10 to CDW12 are SLBA and NLB. Returns a status. */
  setRange(namespace: Namespace, maxLength: number): number {
    const blocks = (this.cdw12 & RW_NLB_MASK) + 1;
    const length = blocks * namespace.blockSize;
    if (length > maxLength) return Status.INVALID_FIELD;
    const position = namespace.positionOf(this.cdw10, this.cdw11, blocks);
    if (position < 0) return Status.LBA_OUT_OF_RANGE;
    this.position = position;
    this.length = length;
    return Status.SUCCESS;
  }

  /**
   * Finds where `length` bytes of data (at least 1) are, as far as PRP lists and SGL segments lie in the window.
   * Returns a status (0 is success) or NOT_IN_WINDOW.
   */
  resolveInWindow(length: number): number {
    const { dma } = this;
    if (this.psdt === Psdt.PRP) return this.#prps.resolve(dma, this.prp1, this.prp2, length, this.pageSize);
    this.#sgl ??= new SglReader(this.ranges);
    return this.#sgl.resolve(dma, this.#descriptor, 0, length);
  }

  /** The same wherever lists and segments are: a status at once, where that is possible. Never rejects. */
  resolve(length: number): number | Promise<number> {
    const status = this.resolveInWindow(length);
    if (status !== NOT_IN_WINDOW) return status;
    const reader = this.psdt === Psdt.PRP ? this.#prps : this.#sgl;
    return (reader as PrpReader | SglReader).resolveByMessages(this.dma, this);
  }
}
