/**
 * The common configuration structure (VIRTIO 1.2, 4.1.4.3): the device status (2.1), feature negotiation (2.2) and what
 * the driver sets queues up with. What depends on a selection is loaded into the registers when it is selected, so that
 * every read finds a plain value.
 */
import { CommonCfg, CommonCfgMore, Feature, NO_VECTOR, Status } from "../../shared/spec/virtio.js";
import { pair, RegisterFile } from "../pci/registers.js";
import { isQueueSize, powerOn, type QueueSettings } from "./queue-settings.js";

const ALL = 0xffff_ffff;

type Address = "QUEUE_DESC" | "QUEUE_DRIVER" | "QUEUE_DEVICE";
type Register =
  | "DEVICE_FEATURE_SELECT"
  | "DEVICE_FEATURE"
  | "DRIVER_FEATURE_SELECT"
  | "DRIVER_FEATURE"
  | "CONFIG_VECTOR"
  | "NUM_QUEUES"
  | "STATUS"
  | "CONFIG_GENERATION"
  | "QUEUE_SELECT"
  | "QUEUE_SIZE"
  | "QUEUE_VECTOR"
  | "QUEUE_ENABLE"
  | "QUEUE_NOTIFY_OFF"
  | "QUEUE_RESET"
  | `${Address}_${"LOW" | "HIGH"}`;

export interface CommonOptions {
  readonly features: bigint;
  /** By queue, the most entries that it may have. */
  readonly queueSizes: readonly number[];
  readonly vectors: number;
}

/** What the driver does by these registers. */
export interface DriverActions {
  /** Whether the device can go with these features. */
  accepts(features: bigint): boolean;
  /** FEATURES_OK was accepted. */
  negotiated(features: bigint): void;
  driverOk(): void;
  /** It wrote 0 to the status, which is to become 0 (by `toPowerOn`) when nothing goes on any more. */
  reset(): void;
  enableQueue(index: number): void;
  /** The queue's registers are to say so (by `queueIsReset`) when nothing of it goes on any more. */
  resetQueue(index: number): void;
}

export class CommonConfig {
  readonly registers: RegisterFile<Register>;
  readonly queues: QueueSettings[];
  readonly #options: CommonOptions;
  readonly #driver: DriverActions;
  /** What the driver has written of features, confirmed or not. */
  #accepted = 0n;
  #isResetting = false;

  constructor(options: CommonOptions, driver: DriverActions) {
    this.#options = options;
    this.#driver = driver;
    this.queues = options.queueSizes.map(powerOn);
    this.registers = this.#table();
  }

  get status(): number {
    return this.registers.get("STATUS");
  }

  get configVector(): number {
    return this.registers.get("CONFIG_VECTOR");
  }

  addStatus(bits: number): void {
    this.registers.set("STATUS", this.status | bits);
  }

  nextGeneration(): void {
    this.registers.set("CONFIG_GENERATION", (this.registers.get("CONFIG_GENERATION") + 1) & 0xff);
  }

  /** Everything as after a reset. */
  toPowerOn(): void {
    this.#isResetting = false;
    this.#accepted = 0n;
    this.#options.queueSizes.forEach((size, n) => {
      this.queues[n] = powerOn(size);
    });
    this.registers.reset();
  }

  queueIsReset(index: number): void {
    this.queues[index] = { ...powerOn(this.#options.queueSizes[index]), vector: this.queues[index].vector };
    if (this.registers.get("QUEUE_SELECT") === index) this.#show();
  }

  /** The driver's request to enable it is refused. */
  queueIsDisabled(index: number): void {
    this.queues[index].isEnabled = false;
    if (this.registers.get("QUEUE_SELECT") === index) this.#show();
  }

  /** What another process had, whose registers these are. */
  restore(features: bigint, queues: readonly QueueSettings[]): void {
    this.#accepted = features;
    queues.forEach((each, n) => {
      this.queues[n] = each;
    });
  }

  #table(): RegisterFile<Register> {
    const at = CommonCfg.offsets;
    const { features, vectors, queueSizes } = this.#options;
    const vector = (value: number) => (value < vectors ? value : NO_VECTOR);
    const half = (name: "descriptors" | "available" | "used", register: Address) => ({
      writable: ALL,
      accept: (value: number, previous: number) => (this.#mayChange() ? value : previous),
      onWrite: () => this.#change({ [name]: this.registers.getAddress(register) }),
    });
    return new RegisterFile<Register>(CommonCfgMore.size, {
      DEVICE_FEATURE_SELECT: {
        offset: at.deviceFeatureSelect,
        size: 4,
        writable: ALL,
        onWrite: (select) => this.registers.set("DEVICE_FEATURE", word(features, select)),
      },
      DEVICE_FEATURE: { offset: at.deviceFeature, size: 4, reset: word(features, 0) },
      DRIVER_FEATURE_SELECT: {
        offset: at.driverFeatureSelect,
        size: 4,
        writable: ALL,
        onWrite: (select) => this.registers.set("DRIVER_FEATURE", word(this.#accepted, select)),
      },
      DRIVER_FEATURE: {
        offset: at.driverFeature,
        size: 4,
        writable: ALL,
        // 2.2: not after FEATURES_OK.
        accept: (value, previous) => (this.status & Status.FEATURES_OK ? previous : value),
        onWrite: (value) => this.#setFeatures(value),
      },
      CONFIG_VECTOR: { offset: at.configMsixVector, size: 2, reset: NO_VECTOR, writable: 0xffff, accept: vector },
      NUM_QUEUES: { offset: at.numQueues, size: 2, reset: queueSizes.length },
      STATUS: {
        offset: at.deviceStatus,
        size: 1,
        writable: 0xff,
        accept: (value, previous) => this.#acceptStatus(value, previous),
        onWrite: (value, previous, written) => this.#statusWritten(value, previous, written),
      },
      CONFIG_GENERATION: { offset: at.configGeneration, size: 1 },
      QUEUE_SELECT: { offset: at.queueSelect, size: 2, writable: 0xffff, onWrite: () => this.#show() },
      QUEUE_SIZE: {
        offset: at.queueSize,
        size: 2,
        reset: queueSizes[0],
        writable: 0xffff,
        accept: (value, previous) => {
          const most = queueSizes[this.registers.get("QUEUE_SELECT")] ?? 0;
          return this.#mayChange() && isQueueSize(value, most) ? value : previous;
        },
        onWrite: (size) => this.#change({ size }),
      },
      QUEUE_VECTOR: {
        offset: at.queueMsixVector,
        size: 2,
        reset: NO_VECTOR,
        writable: 0xffff,
        accept: (value) => (this.#selected() ? vector(value) : NO_VECTOR),
        onWrite: (value) => this.#change({ vector: value }),
      },
      QUEUE_ENABLE: {
        offset: at.queueEnable,
        size: 2,
        writable: 0xffff,
        // 4.1.4.3.2: a driver must not write 0.
        accept: (value, previous) => (value === 1 && this.#mayEnable() ? 1 : previous),
        onWrite: (value, previous) => {
          if (value === 1 && previous === 0) this.#enable();
        },
      },
      QUEUE_NOTIFY_OFF: { offset: at.queueNotifyOff, size: 2 },
      ...pair("QUEUE_DESC", at.queueDesc, half("descriptors", "QUEUE_DESC")),
      ...pair("QUEUE_DRIVER", at.queueDriver, half("available", "QUEUE_DRIVER")),
      ...pair("QUEUE_DEVICE", at.queueDevice, half("used", "QUEUE_DEVICE")),
      QUEUE_RESET: {
        offset: CommonCfgMore.offsets.queueReset,
        size: 2,
        writable: 0xffff,
        accept: (value, previous) => (value === 1 && this.#mayReset() ? 1 : previous),
        onWrite: (value, previous) => {
          if (value === 1 && previous === 0) this.#resetQueue();
        },
      },
    });
  }

  #setFeatures(value: number): void {
    const select = this.registers.get("DRIVER_FEATURE_SELECT");
    if (select > 1) return;
    const shift = BigInt(32 * select);
    this.#accepted = (this.#accepted & ~(0xffff_ffffn << shift)) | (BigInt(value) << shift);
  }

  #acceptStatus(value: number, previous: number): number {
    // 2.1.2: it reads 0 when the reset is complete.
    if (value === 0 || this.#isResetting) return previous;
    const next = value | (previous & Status.DEVICE_NEEDS_RESET);
    const isNew = (next & ~previous & Status.FEATURES_OK) !== 0;
    return isNew && !this.#featuresAreFine() ? next & ~Status.FEATURES_OK : next;
  }

  #featuresAreFine(): boolean {
    const features = this.#accepted;
    if ((features & ~this.#options.features) !== 0n || (features & Feature.VERSION_1) === 0n) return false;
    return this.#driver.accepts(features);
  }

  #statusWritten(value: number, previous: number, written: number): void {
    if (this.#isResetting) return;
    if (written === 0) {
      this.#isResetting = true;
      this.#driver.reset();
      return;
    }
    const added = value & ~previous;
    if (added & Status.FEATURES_OK) this.#driver.negotiated(this.#accepted);
    const isSetUp = (value & Status.FEATURES_OK) !== 0 && (value & Status.DEVICE_NEEDS_RESET) === 0;
    if (added & Status.DRIVER_OK && isSetUp) this.#driver.driverOk();
  }

  #selected(): QueueSettings | undefined {
    return this.queues[this.registers.get("QUEUE_SELECT")];
  }

  #change(changed: Partial<QueueSettings>): void {
    Object.assign(this.#selected() ?? {}, changed);
  }

  /** Addresses and sizes stay while a queue may be in use. */
  #mayChange(): boolean {
    const queue = this.#selected();
    return queue !== undefined && !queue.isEnabled && !queue.isResetting && !this.#isResetting;
  }

  #mayEnable(): boolean {
    return this.#mayChange() && (this.status & Status.FEATURES_OK) !== 0;
  }

  #enable(): void {
    const index = this.registers.get("QUEUE_SELECT");
    this.queues[index].isEnabled = true;
    this.#driver.enableQueue(index);
  }

  #mayReset(): boolean {
    const isNegotiated = (this.#accepted & Feature.RING_RESET) !== 0n && (this.status & Status.FEATURES_OK) !== 0;
    return isNegotiated && this.#selected()?.isEnabled === true && !this.#isResetting;
  }

  #resetQueue(): void {
    const index = this.registers.get("QUEUE_SELECT");
    this.queues[index].isResetting = true;
    this.#driver.resetQueue(index);
  }

  /** Loads the registers that are of the selected queue; of one that is not there, zeros. */
  #show(): void {
    const index = this.registers.get("QUEUE_SELECT");
    const queue = this.#selected();
    const set = (register: Register, value: number) => this.registers.set(register, value);
    set("QUEUE_SIZE", queue?.size ?? 0);
    set("QUEUE_VECTOR", queue?.vector ?? NO_VECTOR);
    set("QUEUE_ENABLE", queue?.isEnabled ? 1 : 0);
    set("QUEUE_NOTIFY_OFF", queue === undefined ? 0 : index);
    set("QUEUE_RESET", queue?.isResetting ? 1 : 0);
    const addresses = { QUEUE_DESC: queue?.descriptors, QUEUE_DRIVER: queue?.available, QUEUE_DEVICE: queue?.used };
    for (const [name, address = 0] of Object.entries(addresses)) {
      set(`${name as Address}_LOW`, address >>> 0);
      set(`${name as Address}_HIGH`, Math.floor(address / 2 ** 32) >>> 0);
    }
  }
}

/** 32 bits of feature bits. */
const word = (features: bigint, select: number) =>
  select > 1 ? 0 : Number((features >> BigInt(32 * select)) & 0xffff_ffffn);
