/**
 * A virtio device's state for a migration: what the driver set up and where its queues are, the configuration, and the
 * device's own state behind it. The common structure's registers move by themselves. All of it came through the driver
 * VM's VMM, and is checked as what a driver writes.
 */
import { struct } from "../../shared/struct/struct.js";
import type { QueueSettings } from "./queue-settings.js";

const VERSION = 1;
/** Then `queues` Queue, `configSize` bytes of the configuration, and the device's own state. */
const Head = struct({ version: "u32", queues: "u32", configSize: "u32", isr: "u32", features: "u64big" });
const Queue = struct({
  descriptors: "i64",
  available: "i64",
  used: "i64",
  size: "u32",
  vector: "u16",
  flags: "u16",
  nextAvailable: "u16",
  nextUsed: "u16",
  reserved: 4,
});
const QueueFlags = { ENABLED: 1, RUNNING: 2 } as const;

export interface VirtioState {
  readonly features: bigint;
  readonly isr: number;
  readonly queues: readonly QueueSettings[];
  /** The next entries of the available and of the used ring; undefined for a queue that does not run. */
  readonly positions: readonly (readonly [number, number] | undefined)[];
  readonly config: Uint8Array;
  /** The device's own. */
  readonly own: Uint8Array;
}

export function encodeState({ features, isr, queues, positions, config, own }: VirtioState): Uint8Array {
  const records = queues.map(({ isEnabled, isResetting: _, ...rest }, n) => {
    const [nextAvailable, nextUsed] = positions[n] ?? [0, 0];
    const flags = (isEnabled ? QueueFlags.ENABLED : 0) | (positions[n] ? QueueFlags.RUNNING : 0);
    return Queue.encode({ ...rest, flags, nextAvailable, nextUsed });
  });
  const head = Head.encode({ version: VERSION, queues: queues.length, configSize: config.length, isr, features });
  return Buffer.concat([head, ...records, config, own]);
}

/** @throws RangeError when it is the state of no device with so many queues and such a configuration */
export function decodeState(bytes: Uint8Array, count: number, configSize: number): VirtioState {
  if (bytes.length < Head.size) throw new RangeError(`a state of ${bytes.length} bytes`);
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const head = Head.view(data);
  const { version, isr, features } = head;
  if (version !== VERSION) throw new RangeError(`a state of version ${version}`);
  const configAt = Head.size + count * Queue.size;
  const isOne = head.queues === count && head.configSize === configSize;
  if (!isOne || bytes.length < configAt + configSize) throw new RangeError("the state of another device");
  const queues: QueueSettings[] = [];
  const positions: VirtioState["positions"][number][] = [];
  const record = Queue.view();
  for (let n = 0; n < count; n++) {
    const { flags, nextAvailable, nextUsed, descriptors, available, used, size, vector } = record.at(
      data,
      Head.size + n * Queue.size,
    );
    const isEnabled = (flags & QueueFlags.ENABLED) !== 0;
    queues.push({ descriptors, available, used, size, vector, isEnabled, isResetting: false });
    positions.push(isEnabled && flags & QueueFlags.RUNNING ? [nextAvailable, nextUsed] : undefined);
  }
  const config = bytes.slice(configAt, configAt + configSize);
  return { features, isr, queues, positions, config, own: bytes.slice(configAt + configSize) };
}
