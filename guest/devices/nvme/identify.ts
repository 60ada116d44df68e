/** NVM Express 1.4, section 5.15: what Identify answers, as bytes. */
import { createHash } from "node:crypto";
import { PAGE_SIZE } from "../../../shared/limits.js";
import { MAX_COPY_LENGTH, MAX_COPY_RANGES } from "./copy-blocks.js";
import { MAX_EVENT_REQUESTS } from "./events.js";
import { WARNING_TEMPERATURE } from "./features.js";
import { ERROR_ENTRIES } from "./log-pages.js";
import { LBA_FORMATS, type Namespace } from "./namespace.js";
import { CQES, SQES, VERSION } from "./spec.js";
import {
  CNTRLTYPE_IO,
  DLFEAT,
  IDENTIFY_SIZE,
  IdentifyController,
  IdentifyNamespace,
  LbaFormat,
  LPA,
  NamespaceDescriptor,
  NamespaceIdentifier,
  NSATTR_WRITE_PROTECTED,
  Nsfeat,
  OAES_NAMESPACE_ATTRIBUTE,
  OCFS_FORMAT_0,
  Oncs,
  SGLS_DWORDS,
  VWC_PRESENT,
} from "./spec-identify.js";

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

/** How long a shutdown may take, which syncs all disks, in microseconds: as long as Linux waits for one at most. */
const SHUTDOWN_US = 60_000_000;
/** Kelvin. */
const CRITICAL_TEMPERATURE = 353;

/** `oacs`: optional admin commands, as bits of Oacs. */
export function identifyController(identity: Identity, namespaces: readonly Namespace[], oacs: number): Uint8Array {
  const { offsets, encode } = IdentifyController;
  const bytes = encode({
    VID: identity.vendorId,
    SSVID: identity.subsystemVendorId,
    MDTS: identity.mdts,
    VER: VERSION,
    RTD3E: SHUTDOWN_US,
    OAES: OAES_NAMESPACE_ATTRIBUTE,
    CNTRLTYPE: CNTRLTYPE_IO,
    OACS: oacs,
    // 0's based: 4 aborts, MAX_EVENT_REQUESTS, ERROR_ENTRIES.
    ACL: 3,
    AERL: MAX_EVENT_REQUESTS - 1,
    ELPE: ERROR_ENTRIES - 1,
    // One firmware slot, and it is read-only.
    FRMW: 0x03,
    LPA,
    WCTEMP: WARNING_TEMPERATURE,
    CCTEMP: CRITICAL_TEMPERATURE,
    TNVMCAP: namespaces.reduce((sum, { blockCount, blockSize }) => sum + BigInt(blockCount * blockSize), 0n),
    // The Keep Alive Timer counts in units of 100 ms.
    KAS: 1,
    // Required and maximum sizes are the same.
    SQES: (SQES << 4) | SQES,
    CQES: (CQES << 4) | CQES,
    NN: namespaces.length,
    ONCS: Object.values(Oncs).reduce((bits, bit) => bits | bit),
    VWC: VWC_PRESENT,
    OCFS: OCFS_FORMAT_0,
    SGLS: SGLS_DWORDS,
  });
  putText(bytes, offsets.SN, 20, identity.serial);
  putText(bytes, offsets.MN, 40, identity.model);
  putText(bytes, offsets.FR, 8, identity.firmware);
  // 7.9: a unique NQN by UUID; a NUL-terminated string, unlike those above.
  const nqn = `nqn.2014-08.org.nvmexpress:uuid:${uuidText(uuidOf(`${identity.model}:${identity.serial}`))}`;
  bytes.set(Buffer.from(nqn, "ascii"), offsets.SUBNQN);
  return bytes;
}

export function identifyNamespace(identity: Identity, namespace: Namespace): Uint8Array {
  const { blockSize, blockCount, blocksInUse, storage } = namespace;
  const { offsets, encode } = IdentifyNamespace;
  const preferred = storage.preferredSize / blockSize - 1;
  const bytes = encode({
    NSZE: blockCount,
    NCAP: blockCount,
    NUSE: blocksInUse,
    NSFEAT: Nsfeat.THINP | Nsfeat.OPTPERF,
    NLBAF: LBA_FORMATS.length - 1,
    FLBAS: LBA_FORMATS.indexOf(blockSize),
    DLFEAT,
    NVMCAP: blockCount * blockSize,
    // 0's based, in blocks: write and deallocate granularity and alignment.
    NPWG: preferred,
    NPWA: preferred,
    NPDG: preferred,
    NPDA: preferred,
    // A multiple of NPWG: mkfs.xfs and others warn of a disk whose optimal size is below its smallest.
    NOWS: preferred,
    // What one Copy may take: blocks of one range and of all, and (0's based) ranges.
    MSSRL: MAX_COPY_LENGTH / blockSize,
    MCL: MAX_COPY_LENGTH / blockSize,
    MSRC: MAX_COPY_RANGES - 1,
    NSATTR: storage.readOnly ? NSATTR_WRITE_PROTECTED : 0,
  });
  for (const [n, size] of LBA_FORMATS.entries()) {
    // A format without a size is not there for this namespace. Relative Performance: 0 is best.
    const format = LbaFormat.encode(
      size < storage.smallestBlock ? {} : { LBADS: Math.log2(size), RP: size === PAGE_SIZE ? 0 : 1 },
    );
    bytes.set(format, offsets.LBAF + n * LbaFormat.size);
  }
  const { eui64, nguid } = namespaceIdentifiers(identity, namespace);
  bytes.set(nguid, offsets.NGUID);
  bytes.set(eui64, offsets.EUI64);
  return bytes;
}

/** 5.15.2.3, Figure 249: all identifiers of a namespace, as descriptors one behind the other. */
export function namespaceDescriptors(identity: Identity, namespace: Namespace): Uint8Array {
  const { eui64, nguid, uuid } = namespaceIdentifiers(identity, namespace);
  const bytes = new Uint8Array(IDENTIFY_SIZE);
  let at = 0;
  for (const [NIDT, identifier] of [
    [NamespaceIdentifier.EUI64, eui64],
    [NamespaceIdentifier.NGUID, nguid],
    [NamespaceIdentifier.UUID, uuid],
  ] as const) {
    bytes.set(NamespaceDescriptor.encode({ NIDT, NIDL: identifier.length }), at);
    bytes.set(identifier, at + NamespaceDescriptor.size);
    at += NamespaceDescriptor.size + identifier.length;
  }
  return bytes;
}

/**
 * What a namespace is known by, the same each time for the same serial number (7.10). EUI-64 and NGUID are big-endian;
 * the 24 bits in them that the IEEE would assign to a company are ones that it leaves to local administration.
 */
function namespaceIdentifiers({ model, serial }: Identity, { id }: Namespace) {
  const name = `${model}:${serial}:namespace ${id}`;
  const digest = (what: string) => createHash("sha256").update(`${name}:${what}`).digest();
  const eui64 = digest("EUI64").subarray(0, 8);
  eui64[0] = localOui(eui64[0]);
  const nguid = digest("NGUID").subarray(0, 16);
  nguid[8] = localOui(nguid[8]);
  return { eui64, nguid, uuid: uuidOf(name) };
}

/** The first byte of an address that is locally administered and no group's. */
function localOui(byte: number): number {
  return (byte | 0x02) & 0xfe;
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
