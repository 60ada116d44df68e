/** vfio-user commands as a client sends them: valid first, for a device like FuzzDevice, and then bent. */
import {
  Bitmap,
  Command,
  DeviceFeature,
  DeviceFeatureFlags,
  DeviceInfo,
  DmaAccess,
  DmaLoggingControl,
  DmaLoggingRange,
  DmaLoggingReport,
  DmaMap,
  DmaMapFlags,
  DmaUnmap,
  DmaUnmapFlags,
  Feature,
  FeatureMigDeviceState,
  Header,
  HeaderFlags,
  Irq,
  IrqInfo,
  IrqSet,
  IrqSetFlags,
  MigData,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionInfo,
  RegionIoFds,
  Version,
  WriteMulti,
  WriteMultiEntry,
} from "../../shared/spec/vfio-user.js";
import { Commands, Registers } from "../fakes/copy-device.js";
import type { Choices } from "./choices.js";
import type { FdPool } from "./fds.js";
import { bend, type Layout, type Message, oddNumber, spoil } from "./mutate.js";

const PAGE = 4096;

/** A command's body, and where its fields are. */
export interface Body {
  readonly command: number;
  readonly layout: Layout | undefined;
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
}

export function pack(id: number, command: number, flags: number, body: Uint8Array, errno = 0): Uint8Array<ArrayBuffer> {
  const message = new Uint8Array(Header.size + body.length);
  message.set(Header.encode({ id, command, size: message.length, flags, errno }));
  message.set(body, Header.size);
  return message;
}

/** Near the beginning of the address space, or near its end. */
const address = (random: Choices) => (random.below(64) - random.pick([0, 0, 0, 64])) * 16 * PAGE;
const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer);
const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);

function access(random: Choices): { region: number; offset: number; data: Uint8Array } {
  switch (random.below(6)) {
    case 0:
      return {
        region: Region.BAR0,
        offset: random.pick([Registers.SOURCE, Registers.TARGET]),
        data: u64(address(random)),
      };
    case 1:
      return { region: Region.BAR0, offset: Registers.LENGTH, data: u32(random.below(0x4000)) };
    case 2: {
      const command = random.pick([Commands.COPY, Commands.COPY, Commands.COPY_SYNC, Commands.TRIGGER]);
      return { region: Region.BAR0, offset: Registers.COMMAND, data: u32(command) };
    }
    case 3: {
      // Command register: memory decoding and bus mastering.
      return { region: Region.CONFIG, offset: 4, data: Uint8Array.of(random.chance(80) ? 6 : 0, 0) };
    }
    case 4:
      return { region: Region.CONFIG, offset: random.below(256), data: random.bytes(random.pick([1, 2, 4, 8])) };
    default: {
      const region = random.pick([Region.BAR0, Region.BAR2, NUM_PCI_REGIONS, NUM_PCI_REGIONS + 2]);
      const data = random.bytes(random.pick([1, 2, 4, 8, 16, 256]));
      return { region, offset: random.below(4096 - data.length + 1), data };
    }
  }
}

function irqSet(random: Choices, fds: FdPool): Body {
  const index = random.pick([Irq.INTX, Irq.MSIX, Irq.MSIX, Irq.MSIX]);
  const most = index === Irq.MSIX ? 8 : 1;
  const start = random.below(most);
  const count = random.between(0, most - start);
  const kind = random.pick([IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD]);
  const action = random.pick([
    IrqSetFlags.ACTION_TRIGGER,
    IrqSetFlags.ACTION_TRIGGER,
    IrqSetFlags.ACTION_MASK,
    IrqSetFlags.ACTION_UNMASK,
  ]);
  const tail = kind === IrqSetFlags.DATA_BOOL ? random.bytes(count).map((byte) => byte & 1) : new Uint8Array(0);
  const bytes = Buffer.concat([
    IrqSet.encode({ argsz: IrqSet.size + tail.length, flags: kind | action, index, start, count }),
    tail,
  ]);
  const sent = kind === IrqSetFlags.DATA_EVENTFD ? Array.from({ length: count }, () => fds.eventfd()) : [];
  return { command: Command.DEVICE_SET_IRQS, layout: IrqSet, bytes, fds: sent };
}

function dmaMap(random: Choices, fds: FdPool): Body {
  const size = random.pick([1, 1, 2, 16, 256]) * PAGE;
  const offset = random.pick([0, 0, PAGE]);
  const flags = random.pick([DmaMapFlags.READ | DmaMapFlags.WRITE, DmaMapFlags.READ, DmaMapFlags.WRITE]);
  const bytes = DmaMap.encode({ argsz: DmaMap.size, flags, offset, address: address(random), size });
  const fd = random.chance(70) ? [fds.memory(random, offset + size)] : [];
  return { command: Command.DMA_MAP, layout: DmaMap, bytes, fds: fd };
}

function dmaUnmap(random: Choices): Body {
  const all = random.chance(10);
  const size = all ? 0 : random.pick([1, 1, 2, 16, 256, 2 ** 30, 2 ** 51]) * PAGE;
  const flags = all ? DmaUnmapFlags.ALL : random.chance(10) ? DmaUnmapFlags.GET_DIRTY_BITMAP : 0;
  const fixed = DmaUnmap.encode({ argsz: DmaUnmap.size, flags, address: all ? 0 : address(random), size });
  const bytes =
    flags === DmaUnmapFlags.GET_DIRTY_BITMAP
      ? Buffer.concat([fixed, Bitmap.encode({ pageSize: PAGE, size: 8 })])
      : fixed;
  return { command: Command.DMA_UNMAP, layout: DmaUnmap, bytes, fds: [] };
}

function writeMulti(random: Choices): Body {
  const entries = Array.from({ length: random.between(1, 5) }, () => {
    const { region, offset, data } = access(random);
    const count = Math.min(data.length, 8);
    const entry = WriteMultiEntry.encode({ region, offset, count });
    entry.set(data.subarray(0, count), WriteMultiEntry.offsets.data);
    return entry;
  });
  if (random.chance(30)) spoil(random, random.pick(entries), WriteMultiEntry);
  const bytes = Buffer.concat([WriteMulti.encode({ writes: entries.length }), ...entries]);
  return { command: Command.REGION_WRITE_MULTI, layout: WriteMulti, bytes, fds: [] };
}

function feature(random: Choices): Body {
  const index = random.pick(Object.values(Feature));
  const { GET, SET, PROBE } = DeviceFeatureFlags;
  const usual = index === Feature.MIGRATION || index === Feature.DMA_LOGGING_REPORT ? GET : SET;
  const flags = index | (random.chance(70) ? usual : random.pick([GET, SET, PROBE, PROBE | GET, GET | SET, 0]));
  const payload = random.chance(80) ? featureData(random, index) : random.bytes(random.pick([0, 8, 24]));
  const argsz = DeviceFeature.size + (random.chance(80) ? Math.max(payload.length, 1024) : random.below(64));
  const fixed = DeviceFeature.encode({ argsz, flags });
  return { command: Command.DEVICE_FEATURE, layout: DeviceFeature, bytes: Buffer.concat([fixed, payload]), fds: [] };
}

/** What a client sends with a feature, now and then with an odd field. */
function featureData(random: Choices, index: number): Uint8Array {
  const pageSize = PAGE * random.pick([1, 2, 512]);
  const range = () => ({ iova: 0x1_0000 * random.below(64), length: PAGE * random.pick([1, 8, 64, 4096]) });
  if (index === Feature.DMA_LOGGING_START) {
    const ranges = random.chance(50) ? [] : Array.from({ length: random.between(1, 3) }, range);
    const control = DmaLoggingControl.encode({ pageSize, numRanges: ranges.length });
    if (random.chance(20)) spoil(random, control, DmaLoggingControl);
    return Buffer.concat([control, ...ranges.map((each) => DmaLoggingRange.encode(each))]);
  }
  if (index === Feature.DMA_LOGGING_REPORT) {
    const report = DmaLoggingReport.encode({ ...range(), pageSize });
    if (random.chance(20)) spoil(random, report, DmaLoggingReport);
    return report;
  }
  return FeatureMigDeviceState.encode({ deviceState: random.below(9) });
}

function migration(random: Choices): Body {
  const isRead = random.chance(50);
  const size = random.below(4096);
  const fixed = MigData.encode({ argsz: MigData.size + size, size });
  const bytes = isRead ? fixed : Buffer.concat([fixed, random.bytes(size)]);
  return { command: isRead ? Command.MIG_DATA_READ : Command.MIG_DATA_WRITE, layout: MigData, bytes, fds: [] };
}

function info(random: Choices): Body {
  const none: readonly number[] = [];
  switch (random.below(4)) {
    case 0:
      return {
        command: Command.DEVICE_GET_INFO,
        layout: DeviceInfo,
        bytes: DeviceInfo.encode({ argsz: 16 }),
        fds: none,
      };
    case 1: {
      const bytes = RegionInfo.encode({ argsz: 32, index: random.below(10) });
      return { command: Command.DEVICE_GET_REGION_INFO, layout: RegionInfo, bytes, fds: none };
    }
    case 2: {
      const bytes = IrqInfo.encode({ argsz: 16, index: random.below(6) });
      return { command: Command.DEVICE_GET_IRQ_INFO, layout: IrqInfo, bytes, fds: none };
    }
    default: {
      const bytes = RegionIoFds.encode({ argsz: 16, index: random.below(9) });
      return { command: Command.DEVICE_GET_REGION_IO_FDS, layout: RegionIoFds, bytes, fds: none };
    }
  }
}

function regionAccess(random: Choices): Body {
  const { region, offset, data } = access(random);
  const fixed = RegionAccess.encode({ offset, region, count: data.length });
  if (random.chance(40)) return { command: Command.REGION_READ, layout: RegionAccess, bytes: fixed, fds: [] };
  return { command: Command.REGION_WRITE, layout: RegionAccess, bytes: Buffer.concat([fixed, data]), fds: [] };
}

/** One valid command, or one that a client may not send. */
function validBody(random: Choices, fds: FdPool): Body {
  return random.weighted<() => Body>([
    [8, () => regionAccess(random)],
    [3, () => dmaMap(random, fds)],
    [2, () => dmaUnmap(random)],
    [3, () => irqSet(random, fds)],
    [2, () => info(random)],
    [2, () => writeMulti(random)],
    [1, () => feature(random)],
    [1, () => migration(random)],
    [1, () => ({ command: Command.DEVICE_RESET, layout: undefined, bytes: new Uint8Array(0), fds: [] })],
    [1, () => ({ command: random.below(24), layout: undefined, bytes: random.bytes(random.below(64)), fds: [] })],
    [1, () => ({ command: Command.DMA_READ, layout: DmaAccess, bytes: DmaAccess.encode({ count: 4 }), fds: [] })],
  ])();
}

/** A command of a hostile client: mostly one mistake, now and then none. */
export function hostileCommand(random: Choices, id: number, fds: FdPool): Message {
  const body = validBody(random, fds);
  let { bytes } = body;
  let sent: readonly number[] = body.fds;
  if (random.chance(35) && body.layout) {
    bytes = new Uint8Array(bytes);
    spoil(random, bytes, body.layout, 0, random.between(1, 2));
  }
  if (random.chance(8)) bytes = bend(random, bytes);
  if (random.chance(15)) sent = Array.from({ length: random.pick([0, 1, 1, 2, 9]) }, () => fds.any(random));
  const flags = random.chance(10) ? HeaderFlags.NO_REPLY : 0;
  const message = pack(id, body.command, flags, bytes);
  if (random.chance(6)) spoil(random, message, Header);
  return { bytes: message, fds: sent };
}

const JSONS = [
  "{}",
  '{"capabilities":{}}',
  '{"capabilities":null}',
  '{"capabilities":[]}',
  '{"capabilities":{"max_msg_fds":0,"max_data_xfer_size":1,"max_dma_maps":0,"pgsizes":1}}',
  '{"capabilities":{"max_data_xfer_size":9007199254740993}}',
  '{"capabilities":{"max_data_xfer_size":-1}}',
  '{"capabilities":{"max_data_xfer_size":1e400}}',
  '{"capabilities":{"max_msg_fds":"16","migration":{"pgsize":0,"max_bitmap_size":true}}}',
  '{"capabilities":{"migration":7,"twin_socket":{"supported":1}}}',
  '{"__proto__":{"capabilities":{}},"capabilities":{"__proto__":{"max_msg_fds":3},"constructor":1}}',
  '{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}',
  "null",
  "[]",
  '"x"',
  "{",
  '{"a":"\\ud800"}',
  `${"[".repeat(2000)}`,
  `{"capabilities":{"max_msg_fds":${"9".repeat(3000)}}}`,
  `${" ".repeat(4090)}{}`,
];

export const GOOD_VERSION = '{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"write_multiple":true}}';

const TWIN_VERSION = '{"capabilities":{"max_msg_fds":1,"twin_socket":{"supported":true,"fd_index":0}}}';

/** VERSION, right (four times of five) or odd; now and then of one who wants or has a twin socket. */
export function version(random: Choices, id: number, type: number = HeaderFlags.TYPE_COMMAND): Message {
  const good = random.chance(80);
  let json: Uint8Array = Buffer.from(
    `${good ? random.pick([GOOD_VERSION, GOOD_VERSION, TWIN_VERSION]) : random.pick(JSONS)}\0`,
  );
  if (!good && random.chance(40)) json = bend(random, json);
  const fixed = Version.encode({
    major: good || random.chance(80) ? 0 : oddNumber(random, 2),
    minor: good ? 2 : oddNumber(random, 2),
  });
  return { bytes: pack(id, Command.VERSION, type, Buffer.concat([fixed, json])), fds: [] };
}

/** The reply to a DMA_READ or DMA_WRITE of the server's, whose whole message this is; right or odd. */
export function dmaReply(random: Choices, request: Buffer): Message {
  const { id, command } = Header.view(new DataView(request.buffer, request.byteOffset, Header.size));
  const fixed = request.subarray(Header.size, Header.size + DmaAccess.size);
  const wanted = request.readUInt32LE(Header.size + DmaAccess.offsets.count);
  // The first asks for 2^32 bytes, to see what we are.
  if (random.chance(20) || request.readUInt32LE(Header.size + DmaAccess.offsets.count + 4) > 0) {
    const flags = HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR;
    return { bytes: pack(id, command, flags, new Uint8Array(0), random.pick([22, 0, 14])), fds: [] };
  }
  const data = command === Command.DMA_READ ? random.bytes(Math.min(wanted, 0x10000)) : new Uint8Array(0);
  const bytes = pack(id, command, HeaderFlags.TYPE_REPLY, Buffer.concat([fixed, data]));
  if (random.chance(20)) spoil(random, bytes, Header);
  if (random.chance(20)) spoil(random, bytes, DmaAccess, Header.size);
  return { bytes: random.chance(5) ? bend(random, bytes) : bytes, fds: [] };
}
