/** Clients that come and go, properly or in the middle of something, and what must be left of them. */
import { Header as ConfigHeader } from "../../../shared/spec/pci.js";
import { Command, DeviceInfo, Region } from "../../../shared/spec/vfio-user.js";
import { encodeAccess, encodeMap, PAGE } from "../bodies.js";
import { type Check, vfioUser } from "../check.js";
import type { Context } from "../context.js";
import { expectEqual, expectSuccess, expectThat } from "../expect.js";
import { Skip } from "../verdict.js";
import { encode } from "../wire.js";

const DISCONNECTION = vfioUser("Client Disconnection");
const GET_INFO = Command.DEVICE_GET_INFO;
const INFO = DeviceInfo.encode({ argsz: DeviceInfo.size });

async function info(context: Context): Promise<string> {
  const session = await context.connect();
  const { body } = expectSuccess(await session.request(GET_INFO, INFO), GET_INFO, DeviceInfo.size);
  session.close();
  return Buffer.from(body).toString("hex");
}

/** Sends these bytes on a new connection and leaves. */
function leave(id: string, title: string, bytes: Uint8Array, negotiate = true): Check {
  return {
    id: `disconnect-${id}`,
    section: DISCONNECTION,
    title: `A client that leaves ${title} does no harm to the next`,
    run: async (context) => {
      const session = await (negotiate ? context.connect() : context.connectRaw());
      if (bytes.length > 0) await session.send(bytes);
      session.close();
      await context.expectUsable();
      return undefined;
    },
  };
}

/** PCI leaves it open; these are in use. */
const INTERRUPT_LINE_AFTER_RESET = [0, 0xff];
const MESSAGE = encode(GET_INFO, INFO);
const LARGE = encodeAccess({ region: Region.CONFIG, offset: 0, count: 0x10000, bytes: new Uint8Array(0x10000) });

export const lifecycle: readonly Check[] = [
  leave("before-version", "without a word", new Uint8Array(0), false),
  leave("version-half", "in the middle of VERSION", encode(Command.VERSION, new Uint8Array(4), { size: 100 }), false),
  leave("after-version", "right after VERSION", new Uint8Array(0)),
  leave("header-half", "in the middle of a header", MESSAGE.subarray(0, 9)),
  leave("header", "between header and body", MESSAGE.subarray(0, 16)),
  leave("body-half", "in the middle of a body", MESSAGE.subarray(0, 25)),
  leave("large-half", "in the middle of a large body", encode(Command.REGION_WRITE, LARGE).subarray(0, 0x8000)),
  leave("unread", "without reading its reply", MESSAGE),
  leave("unread-64", "without reading 64 replies", Buffer.concat(new Array<Buffer>(64).fill(MESSAGE))),
  {
    id: "disconnect-with-fds",
    section: DISCONNECTION,
    title: "A client that leaves in the middle of a message with an fd does no harm to the next",
    run: async (context) => {
      const session = await context.connect();
      const bytes = encode(Command.DMA_MAP, encodeMap());
      await session.send(bytes.subarray(0, 30), [context.memory(PAGE)]);
      session.close();
      await context.expectUsable();
      return undefined;
    },
  },
  {
    id: "reconnect",
    section: DISCONNECTION,
    title: "A client that comes again finds the same device",
    run: async (context) => {
      const first = await info(context);
      for (let times = 0; times < 3; times++) expectEqual("the device info", await info(context), first);
      return undefined;
    },
  },
  {
    id: "reconnect-state",
    section: DISCONNECTION,
    // The specification says "should": a server that resets the device is noted, not failed.
    title: "The device's state is retained or reset: so is the interrupt line register, which software may use",
    destructive: true,
    run: async (context) => {
      const device = context.device();
      device.config();
      const region = Region.CONFIG;
      const offset = ConfigHeader.INTERRUPT_LINE;
      const first = await context.connect();
      const before = (await device.readConfig(first, offset, 1)).getUint8(0);
      const write = (value: number) => encodeAccess({ region, offset, count: 1, bytes: Uint8Array.of(value) });
      const value = before === 0x5a ? 0xa5 : 0x5a;
      expectSuccess(await first.request(Command.REGION_WRITE, write(value)), Command.REGION_WRITE);
      if ((await device.readConfig(first, offset, 1)).getUint8(0) !== value) {
        throw new Skip("the interrupt line register does not keep a value");
      }
      first.close();
      const second = await context.connect();
      const after = (await device.readConfig(second, offset, 1)).getUint8(0);
      await second.request(Command.REGION_WRITE, write(before));
      if (after === value) return "retained";
      expectThat(
        INTERRUPT_LINE_AFTER_RESET.includes(after),
        `an interrupt line of ${value}, or as after a reset`,
        after,
      );
      return "reset, though it should be retained";
    },
  },
  {
    id: "second-client",
    section: vfioUser("Socket"),
    title: "A second client does not disturb the first",
    run: async (context) => {
      const first = await context.connect();
      const second = await context.connectRaw();
      await second.send(encode(Command.VERSION, Uint8Array.of(0, 0, 0, 0)));
      expectSuccess(await first.request(GET_INFO, INFO), GET_INFO);
      second.close();
      await context.expectConnectionKept(first);
      return undefined;
    },
  },
];
