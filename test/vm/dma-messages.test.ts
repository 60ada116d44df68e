/**
 * DMA_READ and DMA_WRITE with stock QEMU, which answers a large read only when it is asked in small parts. No guest
 * runs: QEMU's qtest protocol, on stdin and stdout, plays the processor.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { prepareVmEnvironment } from "../../scripts/vm/environment.js";
import { Vm } from "../../scripts/vm/qemu.js";
import { Errno, ProtocolError } from "../../shared/errors.js";
import {
  Command,
  DeviceInfo,
  IrqInfo,
  NUM_PCI_IRQS,
  NUM_PCI_REGIONS,
  Region,
  RegionAccess,
  RegionInfo,
} from "../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import { Server } from "../../shared/vfio-user/server.js";
import { answer, FakeBackend } from "../shared/vfio-user/fake-backend.js";

const REPLY_MS = 30_000;
const SLOT = 3;
const MIB = 2 ** 20;

/** A PCI function with a config space and nothing else. */
class BareFunction extends FakeBackend {
  readonly #config = new Uint8Array(4096);

  constructor() {
    super();
    const view = new DataView(this.#config.buffer);
    view.setUint32(0, 0x0001_1af4, true);
    view.setUint32(8, 0xff00_0000, true);
    this.device = { regionSizes: [0, 0, 0, 0, 0, 0, 0, 4096, 0], postedRegions: 0, irqCounts: [0, 0, 0, 0, 0] };
  }

  override handle(command: PendingCommand): void {
    const body = this.#reply(command);
    if (body === undefined) {
      answer(command);
      return;
    }
    command.reserve(body.length);
    command.replyBytes.set(body, command.replyOffset);
    command.reply(body.length);
  }

  #reply({ command, bytes, data, offset }: PendingCommand): Uint8Array | undefined {
    switch (command) {
      case Command.DEVICE_GET_INFO:
        return DeviceInfo.encode({ argsz: 16, flags: 3, numRegions: NUM_PCI_REGIONS, numIrqs: NUM_PCI_IRQS });
      case Command.DEVICE_GET_REGION_INFO: {
        const { index } = RegionInfo.view(data, offset);
        const isConfig = index === Region.CONFIG;
        return RegionInfo.encode({ argsz: 32, index, flags: isConfig ? 3 : 0, size: isConfig ? 4096 : 0 });
      }
      case Command.DEVICE_GET_IRQ_INFO:
        return IrqInfo.encode({ argsz: IrqInfo.size, index: IrqInfo.view(data, offset).index });
      case Command.REGION_READ: {
        const access = RegionAccess.view(data, offset);
        const fixed = bytes.subarray(offset, offset + RegionAccess.size);
        return Buffer.concat([fixed, this.#config.subarray(access.offset, access.offset + access.count)]);
      }
      default:
        return undefined;
    }
  }
}

test("DMA by message, read and written by stock QEMU", async (t) => {
  t.timeout(15 * 60_000);
  const environment = await prepareVmEnvironment();
  const directory = await mkdtemp(join(tmpdir(), "dma-messages-"));
  t.teardown(() => rm(directory, { recursive: true }));
  const path = join(directory, "socket");
  const backend = new BareFunction();
  const server = new Server({ backend, socket: path });
  server.open();
  t.teardown(() => server.close());
  const device = JSON.stringify({ driver: "vfio-user-pci", addr: `${SLOT}`, socket: { type: "unix", path } });
  const vm = new Vm(environment, "QEMU", [
    ...["-accel", "qtest", "-qtest", "stdio", "-qtest-log", "none", "-display", "none", "-nodefaults"],
    ...["-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-machine", "q35,memory-backend=mem", "-m", "64M"],
    ...["-device", device],
  ]);
  t.teardown(() => vm.stop());
  const qtest = async (command: string) => {
    const from = vm.nextLine;
    vm.write(`${command}\n`);
    return (await vm.waitForLine(/^OK ?(.*)$/, REPLY_MS, from)).match[1];
  };

  t.is(await qtest(`write ${2 * MIB} 8 0x0102030405060708`), "");
  const ram = backend.maps.find(({ fd }) => fd !== -1);
  t.truthy(ram, "its memory is sealed, so it came with its fd");
  const { memory } = backend;
  if (memory === undefined) return t.fail();
  const target = new Uint8Array(8);
  const refused = await t.throwsAsync(memory.read(2 * MIB, target), { instanceOf: ProtocolError });
  t.like(refused, { errno: Errno.ENODEV }, "the device is no bus master");

  await qtest(`outl 0xcf8 ${(0x8000_0004 | (SLOT << 11)) >>> 0}`);
  await qtest("outw 0xcfc 0x6");
  await memory.read(2 * MIB, target);
  t.deepEqual(target, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  await memory.write(3 * MIB, Uint8Array.of(0xa1, 0xa2, 0xa3, 0xa4, 0xa5));
  t.is(await qtest(`read ${3 * MIB - 4} 13`), "0x00000000a1a2a3a4a500000000");

  // As much as goes into one message, and more.
  const large = Uint8Array.from({ length: 2 * MIB + 100 }, (_, index) => (index * 7 + (index >> 8)) % 256);
  await memory.write(8 * MIB + 3, large);
  const back = new Uint8Array(large.length);
  await memory.read(8 * MIB + 3, back);
  t.true(Buffer.from(back).equals(large));
  t.is(server.stats.errors, 0);
});
