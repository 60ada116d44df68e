/** The common configuration registers of the virtio device, and the queues that they set up (VIRTIO 4.1.4.3). */
import * as native from "../../native/index.js";
import { F_PROTOCOL_FEATURES } from "../../shared/spec/vhost-user.js";
import { CommonCfg, NO_VECTOR } from "../../shared/spec/virtio.js";
import { getUint } from "../../shared/struct/struct.js";

export class VirtQueue {
  size: number;
  vector = NO_VECTOR;
  enabled = false;
  descriptors = 0;
  available = 0;
  used = 0;
  base = 0;
  /** The guest notifier; made at realization. */
  readonly call = native.eventfd(0);
  readonly error = native.eventfd(0);
  poll: native.Poll | undefined;
  readonly #maxSize: number;
  readonly #kicks: Int32Array;
  readonly #index: number;

  /** Its kick is kicks[index]. */
  constructor(maxSize: number, kicks: Int32Array, index: number) {
    this.#maxSize = maxSize;
    this.#kicks = kicks;
    this.#index = index;
    this.size = maxSize;
  }

  get kick(): number {
    return this.#kicks[this.#index];
  }

  set kick(fd: number) {
    this.#kicks[this.#index] = fd;
  }

  reset(): void {
    Object.assign(this, { size: this.#maxSize, vector: NO_VECTOR, enabled: false, base: 0 });
    Object.assign(this, { descriptors: 0, available: 0, used: 0 });
  }
}

/** What the registers show and change of the machine. */
export interface CommonOwner {
  readonly features: bigint;
  readonly queues: readonly VirtQueue[];
  readonly status: number;
  readonly generation: number;
  setStatus(value: number): void;
  complain(what: string): void;
}

export class CommonRegisters {
  driverFeatures = 0n;
  readonly #owner: CommonOwner;
  readonly #data = new DataView(new ArrayBuffer(CommonCfg.size));
  readonly #view = CommonCfg.view(this.#data);

  constructor(owner: CommonOwner) {
    this.#owner = owner;
  }

  get configMsixVector(): number {
    return this.#view.configMsixVector;
  }

  read(offset: number, width: number): number {
    const { features, queues, status, generation } = this.#owner;
    const view = this.#view;
    const queue = queues[view.queueSelect];
    const select = view.deviceFeatureSelect;
    const offered = features & ~F_PROTOCOL_FEATURES;
    Object.assign(view, {
      deviceFeature: select < 2 ? Number((offered >> BigInt(32 * select)) & 0xffffffffn) : 0,
      numQueues: queues.length,
      deviceStatus: status,
      configGeneration: generation & 0xff,
      queueSize: queue?.size ?? 0,
      queueMsixVector: queue?.vector ?? NO_VECTOR,
      queueEnable: queue?.enabled ? 1 : 0,
      queueNotifyOff: view.queueSelect,
      queueDesc: queue?.descriptors ?? 0,
      queueDriver: queue?.available ?? 0,
      queueDevice: queue?.used ?? 0,
    });
    return getUint(this.#data, offset, width);
  }

  write(offset: number, width: number, value: number): void {
    const { offsets } = CommonCfg;
    const view = this.#view;
    const queue = this.#owner.queues[view.queueSelect];
    const expect = (bytes: number) => {
      if (width !== bytes) this.#owner.complain(`a write of ${width} bytes to the register at ${offset}`);
    };
    if (offset === offsets.deviceFeatureSelect) view.deviceFeatureSelect = value;
    else if (offset === offsets.driverFeatureSelect) view.driverFeatureSelect = value;
    else if (offset === offsets.driverFeature) {
      const shift = BigInt(32 * view.driverFeatureSelect);
      this.driverFeatures = (this.driverFeatures & ~(0xffffffffn << shift)) | (BigInt(value) << shift);
    } else if (offset === offsets.configMsixVector) view.configMsixVector = value;
    else if (offset === offsets.queueSelect) view.queueSelect = value;
    else if (offset === offsets.deviceStatus) {
      expect(1);
      this.#owner.setStatus(value);
    } else if (!queue) return;
    else if (offset === offsets.queueSize) queue.size = value;
    else if (offset === offsets.queueMsixVector) queue.vector = value === 0 ? 0 : NO_VECTOR;
    else if (offset === offsets.queueEnable) queue.enabled = value === 1;
    else {
      expect(4);
      writeAddress(queue, offset, value);
    }
  }
}

/** One half of one of a queue's addresses. */
function writeAddress(queue: VirtQueue, offset: number, value: number): void {
  const { offsets } = CommonCfg;
  for (const [name, at] of [
    ["descriptors", offsets.queueDesc],
    ["available", offsets.queueDriver],
    ["used", offsets.queueDevice],
  ] as const) {
    const low = queue[name] % 2 ** 32;
    const high = Math.floor(queue[name] / 2 ** 32);
    if (offset === at) queue[name] = high * 2 ** 32 + value;
    if (offset === at + 4) queue[name] = low + value * 2 ** 32;
  }
}
