/**
 * NVM Express 1.4, section 3.1: the controller's registers as a data sheet, for BAR 0. 64-bit registers are two of 32
 * bits (LOW, HIGH), as drivers access them. Left out: boot partitions, controller memory buffer, persistent memory
 * region; CAP says so.
 */
import { alignUp } from "../../../shared/bits.js";
import { PAGE_SIZE } from "../../../shared/limits.js";
import type { RegisterTable } from "../../pci/registers.js";
import { VERSION } from "./spec.js";

/** BAR 0: registers, then doorbells (3.1.24, 3.1.25) of 4 bytes each, then the MSI-X table. */
export const REGISTERS_SIZE = 0x50;
export const DOORBELL_OFFSET = 0x1000;
export const DOORBELL_STRIDE = 4;

/** Where things are in BAR 0, in bytes. */
export interface BarLayout {
  /** From one doorbell to the next. */
  readonly stride: number;
  /** Of all doorbells, in whole pages. */
  readonly doorbellsSize: number;
  readonly msixOffset: number;
  readonly size: number;
}

const TRAPPED: BarLayout = { stride: DOORBELL_STRIDE, doorbellsSize: 0x1000, msixOffset: 0x2000, size: 0x4000 };
/**
 * CAP.DSTRD: each doorbell that is shared has a cache line of its own, so that who polls one does not slow writes to
 * others.
 */
const SHARED_DSTRD = 4;
/** What the MSI-X table and its pending bits take. */
const MSIX_SIZE = 0x2000;

/** `queues`: I/O queues of each kind. */
export function barLayout(queues: number, shared: boolean): BarLayout {
  if (!shared) return TRAPPED;
  const stride = DOORBELL_STRIDE << SHARED_DSTRD;
  const doorbellsSize = alignUp((queues + 1) * 2 * stride, PAGE_SIZE);
  const msixOffset = DOORBELL_OFFSET + doorbellsSize;
  return { stride, doorbellsSize, msixOffset, size: 2 ** Math.ceil(Math.log2(msixOffset + MSIX_SIZE)) };
}

/** Entries of an I/O queue at most (CAP.MQES plus one). */
export const MAX_QUEUE_ENTRIES = 1024;
/** CAP.TO: half seconds that a driver waits for CSTS.RDY; a disable waits for file I/O in flight, so it is generous. */
const TIMEOUT_HALF_SECONDS = 60;
/** CAP.MPSMIN and MPSMAX, as powers of two above 4 KiB. */
const MPSMIN = 0;
export const MPSMAX = 4;
export const MINIMUM_PAGE_SIZE = 4096;

/**
 * 3.1.1 Controller Capabilities, but for DSTRD (35:32). CQR (bit 16): queues are contiguous. NSSRS (36): NSSR. CSS
 * (37): the NVM command set.
 */
const CAP_LOW = (MAX_QUEUE_ENTRIES - 1) | (1 << 16) | (TIMEOUT_HALF_SECONDS << 24);
const CAP_HIGH = (1 << (36 - 32)) | (1 << (37 - 32)) | (MPSMIN << (48 - 32)) | (MPSMAX << (52 - 32));

/** 3.1.5 Controller Configuration. */
export const Cc = {
  EN: 1 << 0,
  cssOf: (cc: number): number => (cc >>> 4) & 0x7,
  /** Memory page size in bytes. */
  pageSizeOf: (cc: number): number => MINIMUM_PAGE_SIZE * 2 ** ((cc >>> 7) & 0xf),
  mpsOf: (cc: number): number => (cc >>> 7) & 0xf,
  amsOf: (cc: number): number => (cc >>> 11) & 0x7,
  /** 0 no notification, 1 normal, 2 abrupt. */
  shnOf: (cc: number): number => (cc >>> 14) & 0x3,
  iosqesOf: (cc: number): number => (cc >>> 16) & 0xf,
  iocqesOf: (cc: number): number => (cc >>> 20) & 0xf,
} as const;

/** 3.1.6 Controller Status. */
export const Csts = {
  RDY: 1 << 0,
  CFS: 1 << 1,
  SHST_MASK: 3 << 2,
  SHST_OCCURRING: 1 << 2,
  SHST_COMPLETE: 2 << 2,
  /** NVM Subsystem Reset Occurred; written as 1 to clear. */
  NSSRO: 1 << 4,
} as const;

/** 3.1.7 NVM Subsystem Reset: "NVMe", and nothing else, resets. */
const NSSR_MAGIC = 0x4e56_4d65;

/** 3.1.8 Admin Queue Attributes: entries of the admin submission and completion queue. */
export const Aqa = {
  asqsOf: (aqa: number): number => (aqa & 0xfff) + 1,
  acqsOf: (aqa: number): number => ((aqa >>> 16) & 0xfff) + 1,
} as const;

export type RegisterName =
  | "CAP_LOW"
  | "CAP_HIGH"
  | "VS"
  | "INTMS"
  | "INTMC"
  | "CC"
  | "CSTS"
  | "NSSR"
  | "AQA"
  | "ASQ_LOW"
  | "ASQ_HIGH"
  | "ACQ_LOW"
  | "ACQ_HIGH";

/** What the controller does when software writes. */
export interface RegisterHooks {
  readonly onMaskSet: (bits: number) => void;
  readonly onMaskClear: (bits: number) => void;
  readonly maskOf: () => number;
  readonly onConfiguration: (value: number, previous: number) => void;
  readonly onSubsystemReset: () => void;
}

const ALL = 0xffff_ffff;

/** Figure 68: Register Definition. */
export function registerTable({ stride }: BarLayout, hooks: RegisterHooks): RegisterTable<RegisterName> {
  const dstrd = Math.log2(stride / DOORBELL_STRIDE);
  return {
    CAP_LOW: { offset: 0x00, size: 4, reset: CAP_LOW >>> 0 },
    CAP_HIGH: { offset: 0x04, size: 4, reset: (CAP_HIGH | dstrd) >>> 0 },
    VS: { offset: 0x08, size: 4, reset: VERSION },
    // Both read as the mask; each write acts on the bits that are 1.
    INTMS: { offset: 0x0c, size: 4, onRead: hooks.maskOf, onWrite: (_value, _previous, bits) => hooks.onMaskSet(bits) },
    INTMC: {
      offset: 0x10,
      size: 4,
      onRead: hooks.maskOf,
      onWrite: (_value, _previous, bits) => hooks.onMaskClear(bits),
    },
    CC: { offset: 0x14, size: 4, writable: 0x00ff_fff1, onWrite: hooks.onConfiguration },
    CSTS: { offset: 0x1c, size: 4, writeOneToClear: Csts.NSSRO },
    NSSR: {
      offset: 0x20,
      size: 4,
      onWrite: (_value, _previous, bits) => {
        if (bits === NSSR_MAGIC) hooks.onSubsystemReset();
      },
    },
    AQA: { offset: 0x24, size: 4, writable: 0x0fff_0fff },
    ASQ_LOW: { offset: 0x28, size: 4, writable: 0xffff_f000 },
    ASQ_HIGH: { offset: 0x2c, size: 4, writable: ALL },
    ACQ_LOW: { offset: 0x30, size: 4, writable: 0xffff_f000 },
    ACQ_HIGH: { offset: 0x34, size: 4, writable: ALL },
  };
}
