/** GET_INFO, DEVICE_RESET. */
import { Command, DeviceInfo, DeviceInfoFlags, NUM_PCI_REGIONS } from "../../../shared/spec/vfio-user.js";
import { badRequests } from "../bad-request.js";
import { type Check, vfioUser } from "../check.js";
import { expectReply, expectSuccess, expectThat } from "../expect.js";
import { Skip } from "../verdict.js";

const SECTION = vfioUser("VFIO_USER_DEVICE_GET_INFO");
const RESET = vfioUser("VFIO_USER_DEVICE_RESET");
const GET_INFO = Command.DEVICE_GET_INFO;

const info: Check[] = [
  {
    id: "device-info",
    section: SECTION,
    title: "The device is a PCI device with all the regions of one",
    run: async (context) => {
      const session = await context.connect();
      const answer = await session.request(GET_INFO, DeviceInfo.encode({ argsz: DeviceInfo.size }));
      const { data } = expectSuccess(answer, GET_INFO, DeviceInfo.size);
      const { argsz, flags, numRegions, numIrqs } = DeviceInfo.view(data);
      expectThat(argsz >= DeviceInfo.size, `argsz to be at least ${DeviceInfo.size}`, argsz);
      expectThat((flags & DeviceInfoFlags.PCI) !== 0, "VFIO_DEVICE_FLAGS_PCI", `flags 0x${flags.toString(16)}`);
      expectThat(numRegions >= NUM_PCI_REGIONS, `num_regions to be at least ${NUM_PCI_REGIONS}`, numRegions);
      return `${numRegions} regions, ${numIrqs} interrupt types${flags & DeviceInfoFlags.RESET ? ", can be reset" : ""}`;
    },
  },
  {
    id: "device-info-argsz-large",
    section: vfioUser("Message sizes"),
    title: "An argsz larger than needed is good, and the reply says what was needed",
    run: async (context) => {
      const session = await context.connect();
      const answer = await session.request(GET_INFO, DeviceInfo.encode({ argsz: 4096 }));
      const { data, body } = expectSuccess(answer, GET_INFO);
      expectThat(body.length >= DeviceInfo.size, `at least ${DeviceInfo.size} bytes`, body.length);
      const { argsz } = DeviceInfo.view(data);
      expectThat(argsz === body.length, "argsz to be the size of the reply", `${argsz}, with ${body.length} bytes`);
      return undefined;
    },
  },
];

const badInfo = badRequests(SECTION, [
  {
    id: "device-info-no-body",
    title: "A request without a body is refused",
    command: GET_INFO,
    body: new Uint8Array(0),
    answer: "error",
  },
  {
    id: "device-info-short",
    title: "A request of 3 bytes is refused",
    command: GET_INFO,
    body: new Uint8Array(3),
    answer: "error",
  },
  {
    id: "device-info-argsz-zero",
    title: "An argsz of 0 is survived",
    command: GET_INFO,
    body: DeviceInfo.encode({ argsz: 0 }),
    answer: "any",
  },
  {
    id: "device-info-argsz-small",
    title: "An argsz of 15 is survived",
    command: GET_INFO,
    body: DeviceInfo.encode({ argsz: 15 }),
    answer: "any",
  },
  {
    id: "device-info-fields-set",
    title: "Fields that must be 0 in the request and are not are survived",
    command: GET_INFO,
    body: DeviceInfo.encode({ argsz: 16, flags: 0xffff_ffff, numRegions: 0xffff_ffff, numIrqs: 0xffff_ffff }),
    answer: "any",
  },
]);

const reset: Check[] = [
  {
    id: "device-reset",
    section: RESET,
    title: "A device that can be reset is reset, and goes on",
    destructive: true,
    run: async (context) => {
      const device = context.device();
      if (!(device.flags & DeviceInfoFlags.RESET)) throw new Skip("the device does not announce a reset");
      const session = await context.connect();
      const before = await device.readConfig(session, 0, 4);
      expectSuccess(await session.request(Command.DEVICE_RESET), Command.DEVICE_RESET, 0);
      const after = await device.readConfig(session, 0, 4);
      const same = before.getUint32(0) === after.getUint32(0);
      expectThat(same, "the same vendor and device id as before", after.getUint32(0, true).toString(16));
      return undefined;
    },
  },
  {
    id: "device-reset-unannounced",
    section: RESET,
    title: "A reset that was not announced is answered",
    destructive: true,
    run: async (context) => {
      const device = context.device();
      if (device.flags & DeviceInfoFlags.RESET) throw new Skip("the device announces a reset");
      const session = await context.connect();
      const note = expectReply(await session.request(Command.DEVICE_RESET), Command.DEVICE_RESET);
      await context.expectConnectionKept(session);
      return note;
    },
  },
];

const badReset = badRequests(RESET, [
  {
    id: "device-reset-body",
    title: "A reset with a body, which it does not have, is survived",
    command: Command.DEVICE_RESET,
    body: new Uint8Array(8),
    answer: "any",
    destructive: true,
  },
]);

export const deviceChecks: readonly Check[] = [...info, ...badInfo, ...reset, ...badReset];
