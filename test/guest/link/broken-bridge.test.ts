/** The virtio link against a bridge that breaks the framing or the rings: the link is lost, the process lives. */
import test from "ava";
import { MiB } from "../../../shared/limits.js";
import { Queue } from "../../../shared/spec/link.js";
import { Command, DmaMapFlags, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import { Status } from "../../../shared/spec/virtio.js";
import type { PciBridge } from "../../fakes/pci-bridge.js";
import { ADDRESS, setUp } from "./in-process.js";

const command = (size: number, flags = 0) => Header.encode({ id: 1, command: Command.DEVICE_RESET, size, flags });

const BREAKS: readonly [string, (bridge: PciBridge) => void][] = [
  ["an empty buffer", (bridge) => bridge.sendRaw(new Uint8Array(0))],
  ["a message shorter than a header", (bridge) => bridge.sendRaw(command(16).subarray(0, 15))],
  ["a size below the header's", (bridge) => bridge.sendRaw(command(15))],
  ["a size above the largest", (bridge) => bridge.sendRaw(command(MiB + 1))],
  ["a size of 2^32-1", (bridge) => bridge.sendRaw(command(0xffffffff))],
  ["a message that ends too early", (bridge) => bridge.sendRaw(command(100))],
  ["bytes behind a message's end", (bridge) => bridge.sendRaw(Buffer.concat([command(16), new Uint8Array(4)]))],
  ["a used length larger than the buffer", (bridge) => bridge.sendRaw(command(16), 0x7fffffff)],
  ["a reply to nothing", (bridge) => bridge.sendRaw(command(16, HeaderFlags.TYPE_REPLY))],
  ["a message of an unknown type", (bridge) => bridge.sendRaw(command(16, 2))],
  [
    "a used ring that jumps",
    (bridge) => {
      const { buffer, offset } = bridge.find(bridge.addresses(Queue.TO_DEVICE)[2]);
      new DataView(buffer).setUint16(offset + 2, 500, true);
      bridge.raiseInterrupt();
    },
  ],
  [
    "a transmit buffer that comes back twice, found when a reply is sent",
    (bridge) => {
      const { buffer, offset } = bridge.find(bridge.addresses(Queue.FROM_DEVICE)[2]);
      new DataView(buffer).setUint16(offset + 2, 77, true);
      bridge.send(Command.DEVICE_GET_INFO, new Uint8Array(Uint32Array.of(16, 0, 0, 0).buffer));
    },
  ],
  [
    "a device that needs a reset",
    (bridge) => {
      bridge.status |= Status.DEVICE_NEEDS_RESET;
      bridge.raiseInterrupt();
    },
  ],
];

for (const [what, breakIt] of BREAKS) {
  test(`the link is lost, the process lives: ${what}`, async (t) => {
    const { bridge, link, device, connect, map, enable } = await setUp(t);
    await connect();
    await map({ flags: DmaMapFlags.READ });
    await enable();
    const dma = device.context.dma.read(ADDRESS, new Uint8Array(4));
    await bridge.receive();
    breakIt(bridge);
    await t.throwsAsync(dma);
    await link.closed;
    t.deepEqual(device.events, ["start", "reset"]);
    await t.throwsAsync(link.readMemory(ADDRESS, new Uint8Array(4), false), { name: "PeerGone" });
    bridge.notified.length = 0;
    device.context.interrupts.trigger(0);
    bridge.raiseInterrupt();
    t.deepEqual(bridge.notified, []);
    await link.close();
    t.is(bridge.status, 0);
  });
}
