/** What an author may declare of regions of the device's own, and what not. */
import test from "ava";
import type { Device, DeviceRegion } from "../../../guest/device.js";
import { Regions } from "../../../guest/function/regions.js";
import { Sharing } from "../../../guest/function/sharing.js";
import { ConfigSpace } from "../../../guest/pci/config-space.js";
import { checkDeviceRegions } from "../../../guest/pci/declared-regions.js";
import { msixLayout } from "../../../guest/pci/msix.js";
import { RegisterFile } from "../../../guest/pci/registers.js";
import { GiB, MAX_REGIONS } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";

const identity = { vendorId: 1, deviceId: 1, classCode: 0xff0000, bars: { 0: { size: 0x1000 } } };

/** What the endpoint makes of a device. */
function declare(device: Omit<Device, "identity">): Regions {
  const whole = { ioEvent: () => {}, ...device, identity };
  const sharing = new Sharing(whole, msixLayout(identity), quietLog);
  return new Regions(whole, new ConfigSpace(identity, () => {}), undefined, sharing);
}
const region = (fields: Partial<DeviceRegion> = {}): DeviceRegion => ({ type: 1, subtype: 1, size: 16, ...fields });

test("sizes follow those of PCI's regions; a device without any has nine", (t) => {
  t.deepEqual(declare({}).sizes, [0x1000, 0, 0, 0, 0, 0, 0, 4096, 0]);
  t.deepEqual(declare({ regions: [region(), region({ subtype: 2, size: 3 })] }).sizes.slice(8), [0, 16, 3]);
  t.notThrows(() => declare({ regions: [region({ type: 0xffff_ffff, size: Number.MAX_SAFE_INTEGER })] }));
});

test("as many as there may be", (t) => {
  const many = (count: number) => Array.from({ length: count }, (_, subtype) => region({ subtype }));
  t.is(declare({ regions: many(23) }).sizes.length, MAX_REGIONS);
  t.throws(() => checkDeviceRegions(many(24)), { instanceOf: RangeError, message: /24 regions .* at most 23/ });
});

const bad: Record<string, [readonly DeviceRegion[], RegExp]> = {
  "no bytes": [[region({ size: 0 })], /region 9 of 0 bytes/],
  "half a byte": [[region({ size: 0.5 })], /region 9/],
  "2^53 bytes": [[region({ size: 2 ** 53 })], /region 9/],
  "NaN bytes": [[region({ size: Number.NaN })], /region 9/],
  "a type of 33 bits": [[region({ type: 2 ** 32 })], /not 32 bits/],
  "a negative type": [[region({ type: -1 })], /not 32 bits/],
  "half a subtype": [[region({ subtype: 0.5 })], /not 32 bits/],
  "no access": [[region({ readable: false, writable: false })], /region 9 can be neither/],
  "one type twice": [[region(), region({ subtype: 2 }), region()], /region 11: another/],
  "memory of half a page": [[region({ size: 0x1800, shared: true })], /region 9: the shared part/],
  "memory behind the end": [[region({ shared: [{ offset: 0, size: 0x1000 }] })], /region 9: the shared part/],
  "more memory than there may be": [[region({ size: 2 * GiB, shared: true })], /shared memory/],
  "an ioeventfd behind the end": [[region({ ioeventfds: [{ offset: 16, size: 0 }] })], /region 9: the ioeventfd/],
};
for (const [what, [regions, message]] of Object.entries(bad)) {
  test(`refused: ${what}`, (t) => {
    t.throws(() => declare({ regions }), { instanceOf: RangeError, message });
  });
}

test("registers go into regions of the author's alone, in front of shared parts", (t) => {
  const registers = (index: number, size = 16) => ({ [index]: new RegisterFile(size, {}) });
  const regions = [region(), region({ subtype: 2, size: 0x2000, shared: [{ offset: 0x1000, size: 0x1000 }] })];
  t.notThrows(() => declare({ regions, registers: { ...registers(0), ...registers(9), ...registers(10, 0x1000) } }));
  for (const index of [6, 7, 8, 11]) {
    t.throws(() => declare({ regions, registers: registers(index) }), {
      message: new RegExp(`registers\\[${index}\\]`),
    });
  }
  t.throws(() => declare({ regions, registers: registers(9, 20) }), { instanceOf: RangeError });
  t.throws(() => declare({ regions, registers: registers(10, 0x1004) }), { message: /shared part/ });
});
