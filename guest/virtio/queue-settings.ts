/** What a driver sets a queue up with (VIRTIO 1.2, 4.1.4.3), and whether a queue can run so. */
import { isAligned } from "../../shared/bits.js";
import { NO_VECTOR, RING_ALIGNMENT } from "../../shared/spec/virtio.js";

export const DEFAULT_QUEUE_SIZE = 256;

/** Addresses are the driver VM's. */
export interface QueueSettings {
  size: number;
  vector: number;
  isEnabled: boolean;
  isResetting: boolean;
  descriptors: number;
  available: number;
  used: number;
}

/** As after a reset; `size` is the most that the queue may have. */
export const powerOn = (size: number): QueueSettings => ({
  size,
  vector: NO_VECTOR,
  isEnabled: false,
  isResetting: false,
  descriptors: 0,
  available: 0,
  used: 0,
});

export const isQueueSize = (size: number, most: number) => size <= most && Number.isInteger(Math.log2(size));

/** Why a queue cannot run so; undefined when it can. */
export function problemOf({ size, descriptors, available, used }: QueueSettings, most: number): string | undefined {
  if (!isQueueSize(size, most)) return `a size of ${size}, of at most ${most}`;
  for (const [name, address] of Object.entries({ descriptors, available, used })) {
    const alignment = RING_ALIGNMENT[name as keyof typeof RING_ALIGNMENT];
    if (!Number.isSafeInteger(address) || !isAligned(Math.abs(address), alignment)) return `${name} at ${address}`;
  }
  return undefined;
}
