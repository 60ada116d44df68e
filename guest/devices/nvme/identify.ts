/** NVM Express 1.4, section 5.15: what Identify answers, built once as bytes. */
import { createHash } from "node:crypto";
import { MAX_EVENT_REQUESTS } from "./events.js";
import { WARNING_TEMPERATURE } from "./features.js";
import { ERROR_ENTRIES } from "./log-pages.js";
import type { Namespace } from "./namespace.js";
import {
  CNTRLTYPE_IO,
  CQES,
  IDENTIFY_SIZE,
  IdentifyController,
  IdentifyNamespace,
  LPA,
  NamespaceDescriptor,
  NIDT_UUID,
  Oncs,
  SQES,
  VERSION,
  VWC_PRESENT,
} from "./spec.js";

/** Who the controller says it is. */
export interface Identity {
  readonly vendorId: number;
  readonly subsystemVendorId: number;
  /** ASCII, at most 20 characters. */
  readonly serial: string;
  /** ASCII, at most 40 characters. */
  readonly model: string;
  /** ASCII, at most 8 characters. */
  readonly firmware: string;
  /** Maximum Data Transfer Size, as a power of two in units of the smallest page (4 KiB). */
  readonly mdts: number;
}

/** Kelvin. */
const CRITICAL_TEMPERATURE = 353;

export function identifyController(identity: Identity, namespace: Namespace): Uint8Array {
  const { offsets, encode } = IdentifyController;
  const bytes = encode({
    VID: identity.vendorId,
    SSVID: identity.subsystemVendorId,
    MDTS: identity.mdts,
    VER: VERSION,
    CNTRLTYPE: CNTRLTYPE_IO,
    // 0's based: 4 aborts, MAX_EVENT_REQUESTS, ERROR_ENTRIES.
    ACL: 3,
    AERL: MAX_EVENT_REQUESTS - 1,
    ELPE: ERROR_ENTRIES - 1,
    // One firmware slot, and it is read-only.
    FRMW: 0x03,
    LPA,
    WCTEMP: WARNING_TEMPERATURE,
    CCTEMP: CRITICAL_TEMPERATURE,
    TNVMCAP: namespace.blockCount * namespace.blockSize,
    // Required and maximum sizes are the same.
    SQES: (SQES << 4) | SQES,
    CQES: (CQES << 4) | CQES,
    NN: 1,
    ONCS: Oncs.COMPARE | Oncs.WRITE_ZEROES | Oncs.SAVE_AND_SELECT,
    VWC: VWC_PRESENT,
  });
  putText(bytes, offsets.SN, 20, identity.serial);
  putText(bytes, offsets.MN, 40, identity.model);
  putText(bytes, offsets.FR, 8, identity.firmware);
  // 7.9: a unique NQN by UUID; a NUL-terminated string, unlike those above.
  const nqn = `nqn.2014-08.org.nvmexpress:uuid:${uuidText(uuidOf(`${identity.model}:${identity.serial}`))}`;
  bytes.set(Buffer.from(nqn, "ascii"), offsets.SUBNQN);
  return bytes;
}

export function identifyNamespace({ blockSize, blockCount }: Namespace): Uint8Array {
  return IdentifyNamespace.encode({
    NSZE: blockCount,
    NCAP: blockCount,
    NUSE: blockCount,
    NVMCAP: blockCount * blockSize,
    LBAF0_LBADS: Math.log2(blockSize),
  });
}

/** The namespaces with an identifier above `after`: there is one at all. */
export function activeNamespaceList(after: number): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  if (after < 1) bytes[0] = 1;
  return bytes;
}

export function namespaceDescriptors(identity: Identity): Uint8Array {
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  bytes.set(NamespaceDescriptor.encode({ NIDT: NIDT_UUID, NIDL: 16 }));
  bytes.set(uuidOf(`${identity.model}:${identity.serial}:namespace 1`), NamespaceDescriptor.offsets.NID);
  return bytes;
}

/** ASCII, padded with spaces (1.5). */
function putText(bytes: Uint8Array, offset: number, length: number, text: string): void {
  bytes.set(Buffer.from(text.padEnd(length, " "), "ascii").subarray(0, length), offset);
}

/** A UUID that is the same each time for the same name (RFC 9562, version 8). */
function uuidOf(name: string): Uint8Array {
  const bytes = createHash("sha256").update(name).digest().subarray(0, 16);
  bytes[6] = (bytes[6] & 0x0f) | 0x80;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return bytes;
}

function uuidText(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
