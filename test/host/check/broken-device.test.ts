/**
 * The checker can fail: devices that do one thing wrong each, behind a good server, and exactly the checks that find
 * it.
 */
import test from "ava";
import { close } from "../../../native/index.js";
import {
  Command,
  IoEventFd,
  MigData,
  MigrationFlags,
  MigrationState,
  Region,
  RegionInfo,
  RegionIoFds,
} from "../../../shared/spec/vfio-user.js";
import type { PendingCommand, UnmapRequest } from "../../../shared/vfio-user/backend.js";
import { check, expectFailures, withServer } from "./fixture.js";
import { FullDevice, OWN_REGION, type Reply } from "./full-device.js";

interface Case {
  readonly name: string;
  readonly device: () => FullDevice;
  readonly fails: readonly string[];
  readonly timeoutMs?: number;
}

/** The device with one of its parts changed. */
function changed(change: (device: FullDevice) => void): () => FullDevice {
  return () => {
    const device = new FullDevice();
    change(device);
    return device;
  };
}

/** The device with replies to one command changed. */
function replying(command: number, change: (reply: Buffer, fds: readonly number[]) => Reply): () => FullDevice {
  class Changed extends FullDevice {
    protected override answer(pending: PendingCommand): Reply {
      const { body, fds = [] } = super.answer(pending);
      return pending.command === command ? change(Buffer.from(body), fds) : { body, fds };
    }
  }
  return () => new Changed();
}

class Bools extends FullDevice {
  protected override wanted(): boolean {
    return true;
  }
}

class NeverUnbound extends FullDevice {
  protected override bind(key: number, fd: number): void {
    if (fd !== -1) super.bind(key, fd);
  }
}

class NeverDisabled extends FullDevice {
  protected override disable(): void {}
}

/** Eventfds are kept for the next client. */
class Faithful extends FullDevice {
  override async disconnect(): Promise<void> {
    this.logging = false;
  }
  override end(): void {
    void super.disconnect();
    super.end();
  }
}

class FirstEventfd extends FullDevice {
  readonly #bound = new Set<number>();
  override async disconnect(): Promise<void> {
    this.#bound.clear();
    await super.disconnect();
  }
  protected override bind(key: number, fd: number): void {
    if (fd !== -1 && this.#bound.has(key)) {
      close(fd);
    } else {
      this.#bound.add(key);
      super.bind(key, fd);
    }
  }
}

class SmallBar extends FullDevice {
  protected override get barSize(): number {
    return 4096;
  }
}

class AnyState extends FullDevice {
  protected override changeState(state: number): void {
    this.state = state;
  }
}

class EndlessState extends FullDevice {
  protected override readState(command: PendingCommand): Reply {
    if (this.state === MigrationState.STOP_COPY) return super.readState(command);
    return { body: Buffer.alloc(8) };
  }
}

class LostDevice extends FullDevice {
  #lost = false;
  protected override changeState(state: number): void {
    if (this.#lost) this.state = MigrationState.ERROR;
    try {
      super.changeState(state);
    } finally {
      this.#lost ||= this.state === MigrationState.ERROR;
    }
  }
  protected override answer(command: PendingCommand): Reply {
    const reply = super.answer(command);
    if (this.#lost) this.state = MigrationState.ERROR;
    return reply;
  }
  override async disconnect(): Promise<void> {
    this.#lost = false;
    this.state = MigrationState.RUNNING;
    await super.disconnect();
  }
}

class TalkativeDevice extends FullDevice {
  protected override writeState(command: PendingCommand): Reply {
    super.writeState(command);
    return { body: new Uint8Array(8) };
  }
}

class EndlessResume extends FullDevice {
  protected override readState(command: PendingCommand): Reply {
    if (this.state !== MigrationState.RESUMING) return super.readState(command);
    return { body: MigData.encode({ argsz: MigData.size, size: 0 }) };
  }
}

class EndlessLog extends FullDevice {
  protected override stopLogging(): void {}
}

class StrayBits extends FullDevice {
  protected override report(payload: Uint8Array): Uint8Array {
    return super.report(payload).fill(0xff);
  }
}

class ShortBitmap extends FullDevice {
  protected override report(payload: Uint8Array): Uint8Array {
    return super.report(payload).subarray(0, -1);
  }
}

class StrayUnmap extends FullDevice {
  override async unmap(request: UnmapRequest): Promise<void> {
    await super.unmap(request);
    request.dirty?.bitmap.fill(0xff);
  }
}

class OddPages extends FullDevice {
  protected override startLogging(payload: Uint8Array): Uint8Array {
    const reply = Uint8Array.from(super.startLogging(payload));
    reply[0] = 1;
    return reply;
  }
}

class LoopingCapability extends FullDevice {
  protected override capabilities(index: number): Uint8Array {
    const bytes = Buffer.from(super.capabilities(index));
    bytes.writeUInt32LE(RegionInfo.size, 4);
    return bytes;
  }
}

const { DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO } = Command;

/** Those that walk the list. */
const CHAIN_CHECKS = [
  "region-info-capabilities",
  "region-info-capability-versions",
  "region-info-type",
  "region-info-areas",
  "region-info-mmap",
];

const CASES: readonly Case[] = [
  {
    name: "no PCI device",
    device: replying(DEVICE_GET_INFO, (body) => {
      body.writeUInt32LE(1, 4);
      return { body };
    }),
    fails: ["device-info"],
  },
  {
    name: "argsz of the device info",
    device: replying(DEVICE_GET_INFO, (body) => {
      body.writeUInt32LE(15, 0);
      return { body };
    }),
    fails: ["device-info", "device-info-argsz-large"],
  },
  {
    name: "another region's index",
    device: replying(DEVICE_GET_REGION_INFO, (body) => {
      body.writeUInt32LE(body.readUInt32LE(8) ^ 1, 8);
      return { body };
    }),
    fails: ["region-info", "region-info-mmap"],
  },
  {
    name: "no fd for a region that can be mapped",
    device: replying(DEVICE_GET_REGION_INFO, (body) => ({ body })),
    fails: ["region-info-mmap"],
  },
  {
    name: "an fd that cannot be mapped",
    device: replying(DEVICE_GET_REGION_INFO, (body, fds) => ({ body, fds: fds.length > 0 ? [0] : [] })),
    fails: ["region-info-mmap"],
  },
  {
    name: "areas outside of the region",
    device: changed(({ regions }) => regions[0].areas.push({ offset: 4 * 4096, size: 4096 })),
    fails: ["region-info-areas"],
  },
  {
    name: "areas that are not whole pages",
    device: changed(({ regions }) => {
      regions[0].areas[0].size = 100;
    }),
    fails: ["region-info-areas"],
  },
  {
    name: "areas that overlap",
    device: changed(({ regions }) => {
      regions[0].areas[0].size = 3 * 4096;
    }),
    fails: ["region-info-areas"],
  },
  {
    name: "a capability list without an end",
    device: () => new LoopingCapability(),
    fails: CHAIN_CHECKS,
  },
  {
    name: "a region of its own without a type",
    device: changed(({ regions }) => {
      delete regions[OWN_REGION].type;
    }),
    fails: ["region-info-type"],
  },
  {
    name: "areas outside of a region of its own",
    device: changed(({ regions }) => {
      regions[OWN_REGION].size = 2 * 4096;
    }),
    fails: ["region-info-areas"],
  },
  {
    name: "regions that are not counted",
    device: replying(DEVICE_GET_INFO, (body) => {
      body.writeUInt32LE(OWN_REGION, 8);
      return { body };
    }),
    fails: ["region-info-index", "region-read-index", "region-write-index"],
  },
  {
    name: "capabilities although they do not fit",
    device: replying(DEVICE_GET_REGION_INFO, (body, fds) => ({
      body: body.length === RegionInfo.size && body.readUInt32LE(0) > body.length ? Buffer.concat([body, body]) : body,
      fds,
    })),
    fails: ["region-info-argsz-growth"],
  },
  {
    name: "an I/O fd that is not there",
    device: replying(DEVICE_GET_REGION_IO_FDS, (body, fds) => {
      body.writeUInt32LE(1, RegionIoFds.size + IoEventFd.offsets.fdIndex);
      return { body, fds };
    }),
    fails: ["region-io-fds"],
  },
  {
    name: "another interrupt type's index",
    device: replying(DEVICE_GET_IRQ_INFO, (body) => {
      body.writeUInt32LE(0, 8);
      return { body };
    }),
    fails: ["irq-info"],
  },
  { name: "DATA_BOOL's bytes are not looked at", device: () => new Bools(), fails: ["irq-trigger-bool"] },
  { name: "eventfds are not taken away", device: () => new NeverUnbound(), fails: ["irq-unbind", "irq-disable"] },
  { name: "interrupt types are not disabled", device: () => new NeverDisabled(), fails: ["irq-disable"] },
  { name: "eventfds outlive the client", device: () => new Faithful(), fails: ["irq-disconnect"] },
  {
    name: "the first eventfd stays",
    device: () => new FirstEventfd(),
    fails: ["irq-rebind"],
    timeoutMs: 1500,
  },
  {
    name: "no vendor id",
    device: changed(({ config }) => config.setUint16(0, 0xffff, true)),
    fails: ["config-header"],
  },
  { name: "no interrupt pin", device: changed(({ config }) => config.setUint8(0x3d, 0)), fails: ["config-intx"] },
  {
    name: "a region that is no power of two",
    device: changed(({ regions }) => {
      regions[Region.BAR2] = { size: 0x3000, flags: 3, areas: [] };
    }),
    fails: ["config-bar-sizes"],
  },
  {
    name: "a region for the upper half of a BAR",
    device: changed(({ regions }) => {
      regions[Region.BAR1] = { size: 0x1000, flags: 3, areas: [] };
    }),
    fails: ["config-bar-sizes"],
  },
  {
    name: "a BAR of another size than its region",
    device: () => new SmallBar(),
    fails: ["config-bar-probe"],
  },
  {
    name: "a capability list in a circle",
    device: changed(({ config }) => config.setUint8(0x51, 0x40)),
    fails: ["config-capabilities", "config-msix", "config-msi"],
  },
  {
    name: "more MSI-X vectors than interrupts",
    device: changed(({ config }) => config.setUint16(0x42, 7, true)),
    fails: ["config-msix"],
  },
  {
    name: "an MSI-X table outside of its BAR",
    device: changed(({ config }) => config.setUint32(0x44, 0x3fe0, true)),
    fails: ["config-msix"],
  },
  {
    name: "migration without STOP_COPY",
    device: changed((device) => {
      device.migrationFlags = MigrationFlags.PRE_COPY;
    }),
    fails: ["migration-get"],
  },
  {
    name: "any state may be asked for",
    device: () => new AnyState(),
    fails: ["migration-save", "migration-state-error", "migration-state-unknown"],
  },
  {
    name: "no way back from ERROR, not even a reset",
    device: () => new LostDevice(),
    fails: ["migration-resume-cut"],
  },
  {
    name: "a reply with a body to migration data",
    device: () => new TalkativeDevice(),
    fails: ["migration-resume", "migration-resume-again", "migration-resume-cut"],
  },
  {
    name: "data from a device that is resuming",
    device: () => new EndlessResume(),
    fails: ["migration-resume-read"],
  },
  {
    name: "a log that never ends",
    device: () => new EndlessLog(),
    fails: ["dma-logging", "dma-logging-ranges"],
  },
  {
    name: "bits for pages that were not asked for",
    device: () => new StrayBits(),
    fails: ["dma-logging", "dma-logging-ranges", "dma-logging-report-sizes", "dma-logging-disconnect"],
  },
  {
    name: "a bitmap of bytes, not of words",
    device: () => new ShortBitmap(),
    fails: ["dma-logging", "dma-logging-ranges", "dma-logging-report-sizes", "dma-logging-disconnect"],
  },
  {
    name: "an unmap that reports pages behind the map",
    device: () => new StrayUnmap(),
    fails: ["dma-unmap-dirty"],
  },
  {
    name: "another page size than can be",
    device: () => new OddPages(),
    fails: [
      "dma-logging",
      "dma-logging-ranges",
      "dma-logging-report-sizes",
      "dma-logging-disconnect",
      "dma-logging-start-twice",
      "dma-logging-report-page-size",
      "dma-logging-report-page-size-0",
      "dma-logging-report-short",
      "dma-unmap-dirty",
    ],
  },
  {
    name: "migration data from a running device",
    device: () => new EndlessState(),
    fails: ["mig-read-running", "migration-resume-read"],
  },
];

for (const { name, device, fails, timeoutMs = 5000 } of CASES) {
  test.serial(name, async (t) => {
    const results = await withServer({ device: device() }, (path) =>
      check(path, { timeoutMs, only: /^(?!dma-map|dma-unmap-[^d]|version-|header-|stream-)/ }),
    );
    expectFailures(t, results, fails);
  });
}
