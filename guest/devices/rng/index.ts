/**
 * An entropy source, virtio-rng (VIRTIO 1.2, 5.4): one queue, whose buffers are filled with random bytes.
 * docs/writing-a-virtio-device.md goes through this file.
 */
import { randomBytes } from "node:crypto";
import { promisify } from "node:util";
import { DeviceId } from "../../../shared/spec/virtio.js";
import type { Device } from "../../device.js";
import { virtioDevice } from "../../virtio/index.js";

const random = promisify(randomBytes);

/** Bytes of one buffer that are filled at most: a driver that wants more asks again. */
const MOST = 65536;

export function createRng(): Device {
  let served = 0;
  return virtioDevice({
    id: DeviceId.ENTROPY,
    queues: [
      {
        name: "requestq",
        size: 64,
        async handle(chain) {
          const bytes = await random(Math.min(chain.writable.length, MOST));
          await chain.write(0, bytes);
          served += bytes.length;
          return bytes.length;
        },
      },
    ],
    inspect: () => ({ served }),
  });
}
