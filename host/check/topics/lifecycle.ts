/** Clients that come and go, properly or in the middle of something, and what must be left of them. */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, DeviceInfo, Region } from "../../../shared/spec/vfio-user.js";
import { type Performed, topic, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectThat, Skip } from "../expect.js";
import { encode, encodeAccess, encodeMap, GET_INFO_BODY, NO_BYTES, PAGE } from "../messages.js";

const { VERSION, DEVICE_GET_INFO, REGION_WRITE, DMA_MAP } = Command;

async function info(context: Context): Promise<string> {
  const session = await context.connect();
  const { body } = await session.success(DEVICE_GET_INFO, GET_INFO_BODY, DeviceInfo.size);
  session.close();
  return Buffer.from(body).toString("hex");
}

/** Sends these bytes on a new connection and leaves. */
function leave(id: string, title: string, bytes: Uint8Array, negotiate = true): Performed {
  return {
    id: `disconnect-${id}`,
    title: `A client that leaves ${title} does no harm to the next`,
    run: async (context) => {
      const session = await (negotiate ? context.connect() : context.connectRaw());
      if (bytes.length > 0) await session.send(bytes);
      await context.expectNextClient(session);
      return undefined;
    },
  };
}

/** PCI leaves it open; these are in use. */
const INTERRUPT_LINE_AFTER_RESET = [0, 0xff];
const MESSAGE = encode(DEVICE_GET_INFO, GET_INFO_BODY);
const LARGE = encodeAccess({ region: Region.CONFIG, offset: 0, count: 0x10000, bytes: new Uint8Array(0x10000) });

export const lifecycle = topic({ section: vfioUser("Client Disconnection") }, [
  leave("before-version", "without a word", NO_BYTES, false),
  leave("version-half", "in the middle of VERSION", encode(VERSION, new Uint8Array(4), { size: 100 }), false),
  leave("after-version", "right after VERSION", NO_BYTES),
  leave("header-half", "in the middle of a header", MESSAGE.subarray(0, 9)),
  leave("header", "between header and body", MESSAGE.subarray(0, 16)),
  leave("body-half", "in the middle of a body", MESSAGE.subarray(0, 25)),
  leave("large-half", "in the middle of a large body", encode(REGION_WRITE, LARGE).subarray(0, 0x8000)),
  leave("unread", "without reading its reply", MESSAGE),
  leave("unread-64", "without reading 64 replies", Buffer.concat(new Array<Buffer>(64).fill(MESSAGE))),
  {
    id: "disconnect-with-fds",
    title: "A client that leaves in the middle of a message with an fd does no harm to the next",
    connected: async (session, context) => {
      await session.send(encode(DMA_MAP, encodeMap()).subarray(0, 30), [context.memory(PAGE)]);
      await context.expectNextClient(session);
    },
  },
  {
    id: "reconnect",
    title: "A client that comes again finds the same device",
    run: async (context) => {
      const first = await info(context);
      for (let times = 0; times < 3; times++) expectEqual("the device info", await info(context), first);
    },
  },
  {
    id: "reconnect-state",
    // The specification says "should": a server that resets the device is noted, not failed.
    title: "The device's state is retained or reset: so is the interrupt line register, which software may use",
    destructive: true,
    described: async (first, device, context) => {
      const offset = ConfigHeader.INTERRUPT_LINE;
      const encodeLine = (value: number) =>
        encodeAccess({ region: Region.CONFIG, offset, count: 1, bytes: Uint8Array.of(value) });
      const before = (await device.readConfig(first, offset, 1)).getUint8(0);
      const value = before === 0x5a ? 0xa5 : 0x5a;
      await first.success(REGION_WRITE, encodeLine(value));
      if ((await device.readConfig(first, offset, 1)).getUint8(0) !== value) {
        throw new Skip("the interrupt line register does not keep a value");
      }
      first.close();
      const second = await context.connect();
      const after = (await device.readConfig(second, offset, 1)).getUint8(0);
      await second.request(REGION_WRITE, encodeLine(before));
      if (after === value) return "retained";
      const isReset = INTERRUPT_LINE_AFTER_RESET.includes(after);
      expectThat(isReset, `an interrupt line of ${value}, or as after a reset`, after);
      return "reset, though it should be retained";
    },
  },
  {
    id: "second-client",
    section: vfioUser("Socket"),
    title: "A second client does not disturb the first",
    connected: async (first, context) => {
      const second = await context.connectRaw();
      await second.send(encode(VERSION, Uint8Array.of(0, 0, 0, 0)));
      await first.success(DEVICE_GET_INFO, GET_INFO_BODY);
      second.close();
      await context.expectConnectionKept(first);
    },
  },
]);
