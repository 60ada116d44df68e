/** GET_INFO, DEVICE_RESET. */
import { Command, DeviceInfo, DeviceInfoFlags, NUM_PCI_REGIONS } from "../../../shared/spec/vfio-user.js";
import { topic, vfioUser } from "../check.js";
import { expectThat, Skip } from "../expect.js";
import { GET_INFO_BODY, NO_BYTES } from "../messages.js";

const { DEVICE_GET_INFO, DEVICE_RESET } = Command;
const INFO = { section: vfioUser("VFIO_USER_DEVICE_GET_INFO"), command: DEVICE_GET_INFO };
const RESET = { section: vfioUser("VFIO_USER_DEVICE_RESET"), command: DEVICE_RESET };

export const device = [
  ...topic(INFO, [
    {
      id: "device-info",
      title: "The device is a PCI device with all the regions of one",
      connected: async (session) => {
        const { data } = await session.success(DEVICE_GET_INFO, GET_INFO_BODY, DeviceInfo.size);
        const { argsz, flags, numRegions, numIrqs } = DeviceInfo.view(data);
        expectThat(argsz >= DeviceInfo.size, `argsz to be at least ${DeviceInfo.size}`, argsz);
        expectThat((flags & DeviceInfoFlags.PCI) !== 0, "VFIO_DEVICE_FLAGS_PCI", `flags 0x${flags.toString(16)}`);
        expectThat(numRegions >= NUM_PCI_REGIONS, `num_regions to be at least ${NUM_PCI_REGIONS}`, numRegions);
        const reset = flags & DeviceInfoFlags.RESET ? ", can be reset" : "";
        return `${numRegions} regions, ${numIrqs} interrupt types${reset}`;
      },
    },
    {
      id: "device-info-argsz-large",
      section: vfioUser("Message sizes"),
      title: "An argsz larger than needed is good, and the reply says what was needed",
      connected: async (session) => {
        const { data, body } = await session.success(DEVICE_GET_INFO, DeviceInfo.encode({ argsz: 4096 }));
        expectThat(body.length >= DeviceInfo.size, `at least ${DeviceInfo.size} bytes`, body.length);
        const { argsz } = DeviceInfo.view(data);
        expectThat(argsz === body.length, "argsz to be the size of the reply", `${argsz}, with ${body.length} bytes`);
      },
    },
  ]),
  ...topic({ ...INFO, prefix: "device-info-", answer: "error" }, [
    { id: "no-body", title: "A request without a body is refused", body: NO_BYTES },
    { id: "short", title: "A request of 3 bytes is refused", body: new Uint8Array(3) },
  ]),
  ...topic({ ...INFO, prefix: "device-info-", answer: "any" }, [
    { id: "argsz-zero", title: "An argsz of 0 is survived", body: DeviceInfo.encode({ argsz: 0 }) },
    { id: "argsz-small", title: "An argsz of 15 is survived", body: DeviceInfo.encode({ argsz: 15 }) },
    {
      id: "fields-set",
      title: "Fields that must be 0 in the request and are not are survived",
      body: DeviceInfo.encode({ argsz: 16, flags: 0xffff_ffff, numRegions: 0xffff_ffff, numIrqs: 0xffff_ffff }),
    },
  ]),
  ...topic(RESET, [
    {
      id: "device-reset",
      title: "A device that can be reset is reset, and goes on",
      destructive: true,
      described: async (session, device) => {
        if (!(device.flags & DeviceInfoFlags.RESET)) throw new Skip("the device does not announce a reset");
        const before = await device.readConfig(session, 0, 4);
        await session.success(DEVICE_RESET, NO_BYTES, 0);
        const after = await device.readConfig(session, 0, 4);
        const same = before.getUint32(0) === after.getUint32(0);
        expectThat(same, "the same vendor and device id as before", after.getUint32(0, true).toString(16));
      },
    },
    {
      id: "device-reset-unannounced",
      title: "A reset that was not announced is answered",
      destructive: true,
      described: async (session, device, context) => {
        if (device.flags & DeviceInfoFlags.RESET) throw new Skip("the device announces a reset");
        const note = await session.reply(DEVICE_RESET);
        await context.expectConnectionKept(session);
        return note;
      },
    },
    {
      id: "device-reset-body",
      title: "A reset with a body, which it does not have, is survived",
      body: new Uint8Array(8),
      answer: "any",
      destructive: true,
    },
  ]),
];
