/**
 * Which structures a message consists of: for each command of vfio-user, and for each of the link's, the parts of its
 * request and of its reply, in wire order. The descriptions for other languages and the Wireshark dissector are made
 * from this and from the field tables (`npm run protocol`); our own code has views of its own, and tests compare both.
 *
 * A body that ends before a part is complete, other than by an `optional` part, is malformed; bytes behind the last
 * part are too, unless the body says `padded`. An error reply has no body.
 */
import type { Struct } from "../struct/struct.js";
import * as link from "./link.js";
import * as vfio from "./vfio-user.js";

// biome-ignore lint/suspicious/noExplicitAny: a table of any fields
export type AnyStruct = Struct<any>;

/** How often a part occurs: a number, what an earlier field of the same body says, or until the body's end. */
export type Count = number | { readonly field: string; readonly of: string } | "rest";

export type Part =
  /** One structure; `optional`: it may be missing together with all that follows. */
  | { readonly kind: "struct"; readonly name: string; readonly struct: string; readonly optional?: true }
  | { readonly kind: "structs"; readonly name: string; readonly struct: string; readonly count: Count }
  | { readonly kind: "words"; readonly name: string; readonly type: "u32" | "u64"; readonly count: Count }
  /** Bytes that nothing is said of. */
  | { readonly kind: "bytes"; readonly name: string; readonly count: Count }
  /** Text that ends with a NUL. */
  | { readonly kind: "text"; readonly name: string }
  /** One of several bodies, by `field & mask` of a structure before; none for a value that is not there. */
  | {
      readonly kind: "choice";
      readonly name: string;
      readonly of: string;
      readonly field: string;
      readonly mask: number;
      readonly bodies: Readonly<Record<number, Body>>;
    }
  /** A list of capabilities, whose first is at `capOffset` of the structure before when `flags & flag`. */
  | { readonly kind: "capabilities"; readonly name: string; readonly of: string; readonly flag: number };

export interface Body {
  /** What a type is called that a language wants for it. */
  readonly name: string;
  readonly parts: readonly Part[];
  readonly padded?: true;
}

export interface Message {
  readonly command: number;
  readonly name: string;
  readonly request: Body;
  readonly reply: Body;
  /** `errno` of a reply that is none of an error is a number of u32 handles, behind the body (the link's alone). */
  readonly handles?: true;
}

export interface Protocol {
  readonly id: string;
  readonly title: string;
  readonly doc: string;
  /** All structures that the parts name. */
  readonly structs: Readonly<Record<string, AnyStruct>>;
  readonly messages: readonly Message[];
}

const one = (name: string, struct: string): Part => ({ kind: "struct", name, struct });
const maybe = (name: string, struct: string): Part => ({ kind: "struct", name, struct, optional: true });
const some = (name: string, struct: string, count: Count): Part => ({ kind: "structs", name, struct, count });
const words = (name: string, type: "u32" | "u64", count: Count): Part => ({ kind: "words", name, type, count });
const bytes = (name: string, count: Count = "rest"): Part => ({ kind: "bytes", name, count });
const counted = (of: string, field: string): Count => ({ of, field });
const body = (name: string, ...parts: Part[]): Body => ({ name, parts });
const padded = (name: string, ...parts: Part[]): Body => ({ name, parts, padded: true });
const EMPTY: Body = body("empty");

const message = (command: number, name: string, request: Body, reply: Body): Message => ({
  command,
  name,
  request,
  reply,
});

const { Command } = vfio;

/** Requests whose body may be as long as the reply that they make room for. */
const infoRequest = (name: string, struct: string) => padded(`${name}_request`, one("info", struct));

/** DEVICE_FEATURE, either way: a request that gets, or probes, has nothing behind its head. */
const featureBody = (name: string): Body =>
  body(name, one("head", "DeviceFeature"), {
    kind: "choice",
    name: "data",
    of: "head",
    field: "flags",
    mask: vfio.DeviceFeatureFlags.FEATURE_MASK,
    bodies: {
      [vfio.Feature.MIGRATION]: body(`${name}_migration`, maybe("migration", "FeatureMigration")),
      [vfio.Feature.MIG_DEVICE_STATE]: body(`${name}_mig_device_state`, maybe("state", "FeatureMigDeviceState")),
      [vfio.Feature.DMA_LOGGING_START]: body(
        `${name}_dma_logging_start`,
        maybe("control", "DmaLoggingControl"),
        some("ranges", "DmaLoggingRange", "rest"),
      ),
      [vfio.Feature.DMA_LOGGING_STOP]: body(`${name}_dma_logging_stop`),
      [vfio.Feature.DMA_LOGGING_REPORT]: body(
        `${name}_dma_logging_report`,
        maybe("report", "DmaLoggingReport"),
        bytes("bitmap"),
      ),
    },
  });

const ACCESS_DATA = bytes("data", counted("access", "count"));

/** What vfio-user and the link have alike. */
const COMMON: readonly Message[] = [
  message(
    Command.DMA_UNMAP,
    "dma_unmap",
    body("dma_unmap_request", one("unmap", "DmaUnmap"), maybe("bitmap", "Bitmap")),
    body("dma_unmap_reply", maybe("unmap", "DmaUnmap"), maybe("bitmap", "Bitmap"), bytes("dirty")),
  ),
  message(
    Command.DEVICE_GET_INFO,
    "device_get_info",
    infoRequest("device_get_info", "DeviceInfo"),
    body("device_get_info_reply", one("info", "DeviceInfo")),
  ),
  message(
    Command.DEVICE_GET_IRQ_INFO,
    "device_get_irq_info",
    infoRequest("device_get_irq_info", "IrqInfo"),
    body("device_get_irq_info_reply", one("info", "IrqInfo")),
  ),
  message(
    Command.REGION_READ,
    "region_read",
    body("region_read_request", one("access", "RegionAccess")),
    body("region_read_reply", one("access", "RegionAccess"), ACCESS_DATA),
  ),
  message(
    Command.REGION_WRITE,
    "region_write",
    body("region_write_request", one("access", "RegionAccess"), ACCESS_DATA),
    body("region_write_reply", one("access", "RegionAccess")),
  ),
  message(
    Command.DMA_READ,
    "dma_read",
    body("dma_read_request", one("access", "DmaAccess")),
    body("dma_read_reply", one("access", "DmaAccess"), ACCESS_DATA),
  ),
  message(
    Command.DMA_WRITE,
    "dma_write",
    body("dma_write_request", one("access", "DmaAccess"), ACCESS_DATA),
    body("dma_write_reply", one("access", "DmaAccess")),
  ),
  message(Command.DEVICE_RESET, "device_reset", EMPTY, EMPTY),
  message(
    Command.REGION_WRITE_MULTI,
    "region_write_multi",
    body(
      "region_write_multi_request",
      one("multi", "WriteMulti"),
      some("entries", "WriteMultiEntry", counted("multi", "writes")),
    ),
    body("region_write_multi_reply", one("multi", "WriteMulti")),
  ),
  message(
    Command.DEVICE_FEATURE,
    "device_feature",
    featureBody("device_feature_request"),
    featureBody("device_feature_reply"),
  ),
  message(
    Command.MIG_DATA_READ,
    "mig_data_read",
    body("mig_data_read_request", one("data", "MigData")),
    body("mig_data_read_reply", one("data", "MigData"), bytes("bytes", counted("data", "size"))),
  ),
  message(
    Command.MIG_DATA_WRITE,
    "mig_data_write",
    body("mig_data_write_request", one("data", "MigData"), bytes("bytes", counted("data", "size"))),
    body("mig_data_write_reply", maybe("data", "MigData")),
  ),
];

const REGION_INFO_REPLY = body("device_get_region_info_reply", one("info", "RegionInfo"), {
  kind: "capabilities",
  name: "capabilities",
  of: "info",
  flag: vfio.RegionInfoFlags.CAPS,
});
const REGION_INFO = message(
  Command.DEVICE_GET_REGION_INFO,
  "device_get_region_info",
  infoRequest("device_get_region_info", "RegionInfo"),
  REGION_INFO_REPLY,
);
const REGION_IO_FDS = message(
  Command.DEVICE_GET_REGION_IO_FDS,
  "device_get_region_io_fds",
  infoRequest("device_get_region_io_fds", "RegionIoFds"),
  body(
    "device_get_region_io_fds_reply",
    one("info", "RegionIoFds"),
    // None, where argsz has no room for them.
    some("sub_regions", "IoEventFd", "rest"),
  ),
);

const VFIO_STRUCTS = {
  DmaMap: vfio.DmaMap,
  DmaUnmap: vfio.DmaUnmap,
  Bitmap: vfio.Bitmap,
  DeviceInfo: vfio.DeviceInfo,
  RegionInfo: vfio.RegionInfo,
  RegionCapHeader: vfio.RegionCapHeader,
  SparseMmap: vfio.SparseMmap,
  SparseMmapArea: vfio.SparseMmapArea,
  RegionType: vfio.RegionType,
  RegionIoFds: vfio.RegionIoFds,
  IoEventFd: vfio.IoEventFd,
  IrqInfo: vfio.IrqInfo,
  IrqSet: vfio.IrqSet,
  RegionAccess: vfio.RegionAccess,
  DmaAccess: vfio.DmaAccess,
  WriteMulti: vfio.WriteMulti,
  WriteMultiEntry: vfio.WriteMultiEntry,
  DeviceFeature: vfio.DeviceFeature,
  FeatureMigration: vfio.FeatureMigration,
  FeatureMigDeviceState: vfio.FeatureMigDeviceState,
  DmaLoggingControl: vfio.DmaLoggingControl,
  DmaLoggingRange: vfio.DmaLoggingRange,
  DmaLoggingReport: vfio.DmaLoggingReport,
  MigData: vfio.MigData,
};

/** On the client's socket, and on its twin. */
export const VFIO_USER: Protocol = {
  id: "vfio_user",
  title: "vfio-user",
  doc:
    "A message of vfio-user, versions 0.0 to 0.2, as it is on the socket; file descriptors come beside it. DMA_READ " +
    "and DMA_WRITE have the specification's layout, with a 64-bit count.",
  structs: { Version: vfio.Version, ...VFIO_STRUCTS },
  messages: [
    message(
      Command.VERSION,
      "version",
      body("version_request", one("version", "Version"), { kind: "text", name: "capabilities" }),
      body("version_reply", one("version", "Version"), { kind: "text", name: "capabilities" }),
    ),
    message(Command.DMA_MAP, "dma_map", body("dma_map_request", one("map", "DmaMap")), EMPTY),
    REGION_INFO,
    REGION_IO_FDS,
    message(
      Command.DEVICE_SET_IRQS,
      "device_set_irqs",
      body("device_set_irqs_request", one("set", "IrqSet"), bytes("values")),
      EMPTY,
    ),
    ...COMMON,
  ],
};

const { LinkCommand } = link;

/** Between the bridge and a device process (docs/virtio-vfio-user.md, "Messages"). */
export const VIRTIO_VFIO_USER: Protocol = {
  id: "virtio_vfio_user",
  title: "virtio-vfio-user",
  doc:
    "A message between the bridge and a device process, on the queues todevice and fromdevice: vfio-user's, with " +
    "handles in place of file descriptors, and commands of the link's own.",
  structs: {
    ...VFIO_STRUCTS,
    Hello: link.Hello,
    ClientConnected: link.ClientConnected,
    ClientGone: link.ClientGone,
    AllocateMemory: link.AllocateMemory,
    MemoryArea: link.MemoryArea,
    MemoryAllocated: link.MemoryAllocated,
    AllocateEvents: link.AllocateEvents,
    IoEvent: link.IoEvent,
    ShareRegisters: link.ShareRegisters,
    RegisterArea: link.RegisterArea,
    Inspect: link.Inspect,
  },
  messages: [
    message(Command.DMA_MAP, "dma_map", body("dma_map_request", one("map", "DmaMap")), EMPTY),
    { ...REGION_INFO, handles: true },
    { ...REGION_IO_FDS, handles: true },
    message(
      Command.DEVICE_SET_IRQS,
      "device_set_irqs",
      body("device_set_irqs_request", one("set", "IrqSet"), {
        kind: "choice",
        name: "values",
        of: "set",
        field: "flags",
        mask: vfio.IrqSetFlags.DATA_MASK,
        bodies: {
          [vfio.IrqSetFlags.DATA_NONE]: body("device_set_irqs_none"),
          [vfio.IrqSetFlags.DATA_BOOL]: body("device_set_irqs_bool", bytes("values")),
          [vfio.IrqSetFlags.DATA_EVENTFD]: body("device_set_irqs_doorbells", words("doorbells", "u32", "rest")),
        },
      }),
      EMPTY,
    ),
    ...COMMON,
    message(
      LinkCommand.HELLO,
      "hello",
      body(
        "hello_request",
        one("hello", "Hello"),
        words("region_sizes", "u64", counted("hello", "regions")),
        words("irq_counts", "u32", vfio.NUM_PCI_IRQS),
      ),
      EMPTY,
    ),
    message(
      LinkCommand.CLIENT_CONNECTED,
      "client_connected",
      body("client_connected_request", one("client", "ClientConnected")),
      EMPTY,
    ),
    message(LinkCommand.CLIENT_GONE, "client_gone", body("client_gone_request", one("client", "ClientGone")), EMPTY),
    message(LinkCommand.QUIESCE, "quiesce", EMPTY, EMPTY),
    message(
      LinkCommand.ALLOCATE_MEMORY,
      "allocate_memory",
      body(
        "allocate_memory_request",
        one("memory", "AllocateMemory"),
        some("areas", "MemoryArea", counted("memory", "areas")),
      ),
      body("allocate_memory_reply", one("memory", "MemoryAllocated"), words("window_offsets", "u64", "rest")),
    ),
    message(
      LinkCommand.ALLOCATE_EVENTS,
      "allocate_events",
      body("allocate_events_request", one("events", "AllocateEvents")),
      body("allocate_events_reply", words("handles", "u32", "rest")),
    ),
    message(LinkCommand.IO_EVENT, "io_event", body("io_event_request", one("event", "IoEvent")), EMPTY),
    message(
      LinkCommand.SHARE_REGISTERS,
      "share_registers",
      body(
        "share_registers_request",
        one("registers", "ShareRegisters"),
        some("areas", "RegisterArea", counted("registers", "areas")),
      ),
      EMPTY,
    ),
    message(
      LinkCommand.INSPECT,
      "inspect",
      body("inspect_request", one("wanted", "Inspect")),
      body("inspect_reply", bytes("json")),
    ),
  ],
};

export const PROTOCOLS = [VFIO_USER, VIRTIO_VFIO_USER] as const;
