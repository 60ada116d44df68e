/**
 * NVM Express 1.4, section 5.15: what Identify is asked for and answers with, as tables, and the answers.
 */
import { createHash } from "node:crypto";
import { PAGE_SIZE } from "../../../../shared/limits.js";
import { struct } from "../../../../shared/struct/struct.js";
import type { Command } from "../queues/command.js";
import { MINIMUM_PAGE_SIZE } from "../registers.js";
import { CQES, OAES_NAMESPACE_ATTRIBUTE, SQES, Status, VERSION } from "../spec.js";
import { LBA_FORMATS, type Namespace } from "../storage/namespace.js";
import type { Namespaces } from "../storage/namespaces.js";
import { MAX_EVENT_REQUESTS } from "./events.js";
import { WARNING_TEMPERATURE } from "./features.js";
import { MAX_COPY_LENGTH, MAX_COPY_RANGES } from "./io.js";
import { ERROR_ENTRIES } from "./log-pages.js";

/** Figure 244: Identify, Controller or Namespace Structure (CNS). */
export const Cns = {
  NAMESPACE: 0x00,
  CONTROLLER: 0x01,
  ACTIVE_NAMESPACE_LIST: 0x02,
  NAMESPACE_DESCRIPTOR_LIST: 0x03,
  /** From 2.0, but drivers ask for them whatever the version, and NVMe 1.4 drives then have an error in their log. */
  COMMAND_SET_NAMESPACE: 0x05,
  COMMAND_SET_CONTROLLER: 0x06,
} as const;

/** NVM Express 2.0, Command Set Identifier (CDW11, bits 31:24): the NVM command set. */
const CSI_NVM = 0;

export const IDENTIFY_SIZE = 4096;

/** Figure 247: Identify Controller Data Structure. */
export const IdentifyController = struct({
  VID: "u16",
  SSVID: "u16",
  SN: 20,
  MN: 40,
  FR: 8,
  RAB: "u8",
  IEEE: 3,
  CMIC: "u8",
  MDTS: "u8",
  CNTLID: "u16",
  VER: "u32",
  RTD3R: "u32",
  RTD3E: "u32",
  OAES: "u32",
  CTRATT: "u32",
  RRLS: "u16",
  reserved102: 9,
  CNTRLTYPE: "u8",
  FGUID: 16,
  CRDT1: "u16",
  CRDT2: "u16",
  CRDT3: "u16",
  reserved134: 122,
  OACS: "u16",
  ACL: "u8",
  AERL: "u8",
  FRMW: "u8",
  LPA: "u8",
  ELPE: "u8",
  NPSS: "u8",
  AVSCC: "u8",
  APSTA: "u8",
  WCTEMP: "u16",
  CCTEMP: "u16",
  MTFA: "u16",
  HMPRE: "u32",
  HMMIN: "u32",
  /** The sum of several disks may be larger than a number is exact. */
  TNVMCAP: "u64big",
  TNVMCAP_HIGH: "u64",
  UNVMCAP: 16,
  RPMBS: "u32",
  EDSTT: "u16",
  DSTO: "u8",
  FWUG: "u8",
  KAS: "u16",
  HCTMA: "u16",
  MNTMT: "u16",
  MXTMT: "u16",
  SANICAP: "u32",
  HMMINDS: "u32",
  HMMAXD: "u16",
  NSETIDMAX: "u16",
  ENDGIDMAX: "u16",
  ANATT: "u8",
  ANACAP: "u8",
  ANAGRPMAX: "u32",
  NANAGRPID: "u32",
  PELS: "u32",
  reserved356: 156,
  SQES: "u8",
  CQES: "u8",
  MAXCMD: "u16",
  NN: "u32",
  ONCS: "u16",
  FUSES: "u16",
  FNA: "u8",
  VWC: "u8",
  AWUN: "u16",
  AWUPF: "u16",
  NVSCC: "u8",
  NWPC: "u8",
  ACWU: "u16",
  OCFS: "u16",
  SGLS: "u32",
  MNAN: "u32",
  reserved544: 224,
  SUBNQN: 256,
  reserved1024: 1024,
  PSD0: 32,
  PSD1_TO_31: 31 * 32,
  VENDOR_SPECIFIC: 1024,
});

/** ONCS, Optional NVM Command Support. */
export const Oncs = {
  COMPARE: 1 << 0,
  DATASET_MANAGEMENT: 1 << 2,
  WRITE_ZEROES: 1 << 3,
  SAVE_AND_SELECT: 1 << 4,
  TIMESTAMP: 1 << 6,
  VERIFY: 1 << 7,
  COPY: 1 << 8,
} as const;
/** OACS, Optional Admin Command Support. */
export const Oacs = { FORMAT_NVM: 1 << 1, DOORBELL_BUFFER_CONFIG: 1 << 8 } as const;
/** VWC: a cache is present; Flush with NSID FFFFFFFFh is supported. */
const VWC_PRESENT = 0x7;
/** LPA: Commands Supported and Effects log page; extended data (offset and 32-bit length) for Get Log Page. */
const LPA = 0x6;
const CNTRLTYPE_IO = 1;
const FUSES_COMPARE_AND_WRITE = 1;
/** OCFS: Copy takes source ranges in format 0. */
const OCFS_FORMAT_0 = 1;
/** SGLS: supported, addresses and lengths in dwords. */
const SGLS_DWORDS = 0x2;

/** Figure 245: Identify Namespace Data Structure, NVM command set specific; the first of the 16 LBA formats. */
export const IdentifyNamespace = struct({
  NSZE: "u64",
  NCAP: "u64",
  NUSE: "u64",
  NSFEAT: "u8",
  NLBAF: "u8",
  FLBAS: "u8",
  MC: "u8",
  DPC: "u8",
  DPS: "u8",
  NMIC: "u8",
  RESCAP: "u8",
  FPI: "u8",
  DLFEAT: "u8",
  NAWUN: "u16",
  NAWUPF: "u16",
  NACWU: "u16",
  NABSN: "u16",
  NABO: "u16",
  NABSPF: "u16",
  NOIOB: "u16",
  NVMCAP: "u64",
  NVMCAP_HIGH: "u64",
  NPWG: "u16",
  NPWA: "u16",
  NPDG: "u16",
  NPDA: "u16",
  NOWS: "u16",
  MSSRL: "u16",
  MCL: "u32",
  MSRC: "u8",
  reserved81: 11,
  ANAGRPID: "u32",
  reserved96: 3,
  NSATTR: "u8",
  NVMSETID: "u16",
  ENDGID: "u16",
  NGUID: 16,
  EUI64: 8,
  /** 16 formats of LbaFormat.size bytes. */
  LBAF: 64,
  reserved192: 3904,
});

/** Figure 246: LBA Format. */
export const LbaFormat = struct({ MS: "u16", LBADS: "u8", RP: "u8" });
/** NSFEAT: thin provisioning, so NUSE counts; and the fields from NPWG to NOWS are there. */
const Nsfeat = { THINP: 1 << 0, OPTPERF: 1 << 4 } as const;
/** NSATTR: the namespace is write protected. */
const NSATTR_WRITE_PROTECTED = 1 << 0;
/** DLFEAT: deallocated blocks read as zeros; Write Zeroes can deallocate. */
const DLFEAT = 0x1 | (1 << 3);

/** Figure 249: the fixed part of a Namespace Identification Descriptor, which its identifier of NIDL bytes follows. */
const NamespaceDescriptor = struct({ NIDT: "u8", NIDL: "u8", reserved: 2 });
/** NIDT. */
const NamespaceIdentifier = { EUI64: 1, NGUID: 2, UUID: 3 } as const;

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

/** The data that a command asks for, or a status. `oacs`: optional admin commands, as bits of Oacs. Never rejects. */
export async function identify(
  command: Command,
  identity: Identity,
  namespaces: Namespaces,
  oacs: number,
): Promise<Uint8Array | number> {
  const { namespaceId } = command;
  const namespace = namespaces.find(namespaceId);
  switch (command.cdw10 & 0xff) {
    case Cns.CONTROLLER:
      return identifyController(identity, namespaces.all, oacs);
    case Cns.NAMESPACE:
      if (namespace === undefined) return Status.INVALID_NAMESPACE_OR_FORMAT;
      // As large as it is now, not as it was a second ago.
      await new Promise<void>((done) => namespace.refresh(done));
      return identifyNamespace(identity, namespace);
    case Cns.ACTIVE_NAMESPACE_LIST:
      // FFFFFFFEh and FFFFFFFFh leave no room above them.
      return namespaceId < 0xffff_fffe ? namespaces.listActive(namespaceId) : Status.INVALID_NAMESPACE_OR_FORMAT;
    case Cns.NAMESPACE_DESCRIPTOR_LIST:
      return namespace ? namespaceDescriptors(identity, namespace) : Status.INVALID_NAMESPACE_OR_FORMAT;
    case Cns.COMMAND_SET_NAMESPACE:
      if (namespace === undefined) return Status.INVALID_NAMESPACE_OR_FORMAT;
      return commandSet(command);
    case Cns.COMMAND_SET_CONTROLLER:
      return commandSet(command);
    default:
      return Status.INVALID_FIELD;
  }
}

/** Zeros: nothing beyond what the other structures say, and no other limits than theirs. */
function commandSet({ cdw11 }: Command): Uint8Array | number {
  return cdw11 >>> 24 === CSI_NVM ? new Uint8Array(IDENTIFY_SIZE) : Status.INVALID_FIELD;
}

function identifyController(identity: Identity, namespaces: readonly Namespace[], oacs: number): Uint8Array {
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
    FUSES: FUSES_COMPARE_AND_WRITE,
    // 0's based, in blocks: all of what one command moves, whatever the size of its blocks.
    ACWU: (MINIMUM_PAGE_SIZE * 2 ** identity.mdts) / Math.max(...LBA_FORMATS) - 1,
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

function identifyNamespace(identity: Identity, namespace: Namespace): Uint8Array {
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
function namespaceDescriptors(identity: Identity, namespace: Namespace): Uint8Array {
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
