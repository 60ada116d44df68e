/** HELLO: what the device process tells the bridge of its device (docs/virtio-vfio-user.md). */
import { ABI_VERSION, Hello, HelloFlags } from "../../../shared/spec/link.js";
import { NUM_PCI_IRQS } from "../../../shared/spec/vfio-user.js";
import { setU64 } from "../../../shared/struct/struct.js";
import type { DeviceSummary } from "../../../shared/vfio-user/backend.js";

/** `isolated`: no driver-VM memory is wanted in the window. */
export function encodeHello(summary: DeviceSummary, isolated: boolean): Uint8Array {
  const { regionSizes, irqCounts, postedRegions } = summary;
  const body = new Uint8Array(Hello.size + regionSizes.length * 8 + NUM_PCI_IRQS * 4);
  const data = new DataView(body.buffer);
  const flags = isolated ? HelloFlags.ISOLATED : 0;
  Object.assign(Hello.view(data), { abiVersion: ABI_VERSION, postedRegions, regions: regionSizes.length, flags });
  for (const [n, size] of regionSizes.entries()) setU64(data, Hello.size + n * 8, size);
  const irqs = Hello.size + regionSizes.length * 8;
  for (let n = 0; n < NUM_PCI_IRQS; n++) data.setUint32(irqs + n * 4, irqCounts[n] ?? 0, true);
  return body;
}
