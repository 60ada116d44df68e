/**
 * NVM Express 1.4, sections 5.13 and 5.21: Get Features and Set Features. A table of what each feature's dword holds;
 * those that the controller only remembers are marked by nothing else reading them. None is saved over a reset. Left
 * out: features with data structures (LBA range type, autonomous power states, host memory buffer).
 */
import { Feature, HostBehavior, OAES_NAMESPACE_ATTRIBUTE, Status, TIMESTAMP_SET_BY_HOST, Timestamp } from "../spec.js";

/** CDW11 of a feature: its value after reset, and the bits that Set Features may change. */
interface FeatureValue {
  readonly reset: number;
  readonly mask: number;
  /** Bits that ask for what is not there. The others beyond the mask have no meaning, and are ignored. */
  readonly refused?: number;
}

/** Kelvin; made up, as of a disk that is neither cold nor hot. */
export const TEMPERATURE = 313;
export const WARNING_TEMPERATURE = 343;

const ALL = 0xffff_ffff;
/** What setTimeout takes. */
const MAX_KEEP_ALIVE_MS = 0x7fff_ffff;

/** Error Recovery, DULBE: an error for reads of deallocated blocks. */
const DEALLOCATED_BLOCK_ERROR = 1 << 16;
/** SMART's critical warnings, and the notices of OAES. */
const EVENTS = 0xff | OAES_NAMESPACE_ATTRIBUTE;

const FEATURES: ReadonlyMap<number, FeatureValue> = new Map([
  [Feature.ARBITRATION, { reset: 4, mask: ALL }],
  // One power state, number 0.
  [Feature.POWER_MANAGEMENT, { reset: 0, mask: 0xff }],
  [Feature.TEMPERATURE_THRESHOLD, { reset: WARNING_TEMPERATURE, mask: 0xffff }],
  [Feature.ERROR_RECOVERY, { reset: 0, mask: 0xffff, refused: DEALLOCATED_BLOCK_ERROR }],
  [Feature.VOLATILE_WRITE_CACHE, { reset: 1, mask: 1 }],
  [Feature.NUMBER_OF_QUEUES, { reset: 0, mask: 0 }],
  [Feature.INTERRUPT_COALESCING, { reset: 0, mask: 0xffff }],
  [Feature.INTERRUPT_VECTOR_CONFIGURATION, { reset: 0, mask: 0 }],
  [Feature.WRITE_ATOMICITY_NORMAL, { reset: 0, mask: 1 }],
  [Feature.ASYNC_EVENT_CONFIGURATION, { reset: 0, mask: EVENTS, refused: ~EVENTS }],
  // Its value is data: `clock`.
  [Feature.TIMESTAMP, { reset: 0, mask: 0 }],
  // Milliseconds.
  [Feature.KEEP_ALIVE_TIMER, { reset: 0, mask: ALL }],
  // Its value is data: `hostBehavior`.
  [Feature.HOST_BEHAVIOR_SUPPORT, { reset: 0, mask: 0 }],
]);

/** Get Features, SEL. */
const SELECT_CURRENT = 0;
const SELECT_CAPABILITIES = 3;
const SAVE = 0x8000_0000;
/** Bit 0 saveable, bit 1 namespace specific, bit 2 changeable. */
const CAPABILITY_CHANGEABLE = 1 << 2;
/** Temperature Threshold: the sensor and which of its two thresholds. */
const THRESHOLD_SELECT = 0x003f_0000;
const THRESHOLD_UNDER = 0x0010_0000;
const THRESHOLD_RESERVED = 0x0020_0000;
const THRESHOLD_SENSOR = 0x000f_0000;
/** Of Set Features alone. */
const THRESHOLD_ALL_SENSORS = 0x000f_0000;
/** Interrupt Vector Configuration: Coalescing Disable. */
const COALESCING_DISABLE = 0x1_0000;

const timestamp = Timestamp.view();

/** 5.21.1.14: the controller's clock, which counts from what the driver sets, or from its reset. */
class Clock {
  /** Milliseconds since 1970 that the driver said, or 0. */
  #set = 0;
  #isSet = false;
  /** On the process's monotonic clock. */
  #setAt = performance.now();

  reset(): void {
    this.#set = 0;
    this.#isSet = false;
    this.#setAt = performance.now();
  }

  /** Set Features' data, Timestamp.size bytes. */
  set(bytes: Uint8Array): void {
    timestamp.at(new DataView(bytes.buffer, bytes.byteOffset), 0);
    this.#set = timestamp.LOW + timestamp.HIGH * 0x1_0000_0000;
    this.#isSet = true;
    this.#setAt = performance.now();
  }

  /** Get Features' data. */
  get(): Uint8Array {
    const now = Math.floor(this.#set + performance.now() - this.#setAt);
    return Timestamp.encode({
      LOW: now >>> 0,
      // 48 bits, which wrap around.
      HIGH: Math.floor(now / 0x1_0000_0000) & 0xffff,
      ATTRIBUTES: this.#isSet ? TIMESTAMP_SET_BY_HOST : 0,
    });
  }
}

export class Features {
  /** Dword 0 of the completion of the last successful `get` or `set`. */
  result = 0;
  readonly clock = new Clock();
  readonly #values = new Map<number, number>();
  /** No status has a Command Retry Delay, so what the host knows of it is only remembered. */
  #retryDelays = 0;
  readonly #coalescingDisabled: Uint8Array;
  #temperatureUnder = 0;

  constructor(
    /** I/O queues of each kind. */
    readonly queues: number,
    readonly vectors: number,
  ) {
    this.#coalescingDisabled = new Uint8Array(vectors);
    this.reset();
  }

  reset(): void {
    for (const [identifier, { reset }] of FEATURES) this.#values.set(identifier, reset);
    this.#coalescingDisabled.fill(0);
    this.#temperatureUnder = 0;
    this.#retryDelays = 0;
    this.clock.reset();
  }

  get writeCache(): boolean {
    return this.#values.get(Feature.VOLATILE_WRITE_CACHE) === 1;
  }

  /** Milliseconds; 0 when there is no timer. */
  get keepAliveMs(): number {
    return this.#values.get(Feature.KEEP_ALIVE_TIMER) ?? 0;
  }

  /** Which SMART critical warnings raise an event, and which notices (OAES). */
  get events(): number {
    return this.#values.get(Feature.ASYNC_EVENT_CONFIGURATION) ?? 0;
  }

  /** Bytes of the data that the value of a feature is; 0 where it is a number. */
  dataSize(cdw10: number): number {
    const identifier = cdw10 & 0xff;
    if (identifier === Feature.TIMESTAMP) return Timestamp.size;
    return identifier === Feature.HOST_BEHAVIOR_SUPPORT ? HostBehavior.size : 0;
  }

  /** Get Features' data, where it answers with data. */
  getData(cdw10: number): Uint8Array | undefined {
    const select = (cdw10 >>> 8) & 0x7;
    if (this.dataSize(cdw10) === 0 || select === SELECT_CAPABILITIES) return undefined;
    if ((cdw10 & 0xff) === Feature.TIMESTAMP) return this.clock.get();
    return HostBehavior.encode({ ACRE: select === SELECT_CURRENT ? this.#retryDelays : 0 });
  }

  /** Set Features' data, as many bytes as `dataSize` says. Returns a status. */
  setData(cdw10: number, bytes: Uint8Array): number {
    if ((cdw10 & 0xff) === Feature.TIMESTAMP) {
      this.clock.set(bytes);
      return Status.SUCCESS;
    }
    const [acre] = bytes;
    if (acre > 1) return Status.INVALID_FIELD;
    this.#retryDelays = acre;
    return Status.SUCCESS;
  }

  /** Get Features. Returns a status; the value is in `result`. */
  get(cdw10: number, cdw11: number): number {
    const identifier = cdw10 & 0xff;
    const select = (cdw10 >>> 8) & 0x7;
    const feature = FEATURES.get(identifier);
    if (feature === undefined || select > SELECT_CAPABILITIES) return Status.INVALID_FIELD;
    if (select === SELECT_CAPABILITIES) {
      this.result = CAPABILITY_CHANGEABLE;
      return Status.SUCCESS;
    }
    const current = select === SELECT_CURRENT;
    this.result = current ? (this.#values.get(identifier) ?? 0) : feature.reset;
    switch (identifier) {
      case Feature.NUMBER_OF_QUEUES:
        this.result = this.#queueNumbers();
        break;
      case Feature.TEMPERATURE_THRESHOLD:
        return this.#getThreshold(cdw11, current);
      case Feature.INTERRUPT_VECTOR_CONFIGURATION: {
        const vector = cdw11 & 0xffff;
        if (vector >= this.vectors) return Status.INVALID_FIELD;
        this.result = vector | (current && this.#coalescingDisabled[vector] ? COALESCING_DISABLE : 0);
        break;
      }
    }
    return Status.SUCCESS;
  }

  /** Set Features. Returns a status; `hasQueues`: I/O queues exist. */
  set(cdw10: number, cdw11: number, hasQueues: boolean): number {
    const identifier = cdw10 & 0xff;
    this.result = 0;
    const feature = FEATURES.get(identifier);
    if (feature === undefined) return Status.INVALID_FIELD;
    if ((cdw10 & SAVE) !== 0) return Status.FEATURE_NOT_SAVEABLE;
    if ((cdw11 & (feature.refused ?? 0)) !== 0) return Status.INVALID_FIELD;
    switch (identifier) {
      case Feature.NUMBER_OF_QUEUES:
        if ((cdw11 & 0xffff) === 0xffff || cdw11 >>> 16 === 0xffff) return Status.INVALID_FIELD;
        if (hasQueues) return Status.COMMAND_SEQUENCE_ERROR;
        this.result = this.#queueNumbers();
        return Status.SUCCESS;
      case Feature.TEMPERATURE_THRESHOLD:
        return this.#setThreshold(cdw11);
      case Feature.INTERRUPT_VECTOR_CONFIGURATION: {
        const vector = cdw11 & 0xffff;
        if (vector >= this.vectors) return Status.INVALID_FIELD;
        this.#coalescingDisabled[vector] = (cdw11 & COALESCING_DISABLE) === 0 ? 0 : 1;
        return Status.SUCCESS;
      }
      case Feature.KEEP_ALIVE_TIMER:
        if (cdw11 > MAX_KEEP_ALIVE_MS) return Status.KEEP_ALIVE_TIMEOUT_INVALID;
        break;
      case Feature.POWER_MANAGEMENT:
        if ((cdw11 & 0x1f) !== 0) return Status.INVALID_FIELD;
        break;
    }
    this.#values.set(identifier, (cdw11 & feature.mask) >>> 0);
    return Status.SUCCESS;
  }

  /** Both numbers are 0's based. */
  #queueNumbers(): number {
    return ((this.queues - 1) | ((this.queues - 1) << 16)) >>> 0;
  }

  /** There is one sensor, the composite temperature, with a threshold over and one under it. */
  #getThreshold(cdw11: number, current: boolean): number {
    const select = cdw11 & THRESHOLD_SELECT;
    if (select !== 0 && select !== THRESHOLD_UNDER) return Status.INVALID_FIELD;
    if (select === THRESHOLD_UNDER) this.result = current ? this.#temperatureUnder : 0;
    return Status.SUCCESS;
  }

  #setThreshold(cdw11: number): number {
    const isAll = (cdw11 & THRESHOLD_SENSOR) === THRESHOLD_ALL_SENSORS;
    const select = cdw11 & (isAll ? THRESHOLD_UNDER : THRESHOLD_SELECT);
    if ((cdw11 & THRESHOLD_RESERVED) !== 0) return Status.INVALID_FIELD;
    if (select === 0) this.#values.set(Feature.TEMPERATURE_THRESHOLD, cdw11 & 0xffff);
    else if (select === THRESHOLD_UNDER) this.#temperatureUnder = cdw11 & 0xffff;
    else return Status.INVALID_FIELD;
    return Status.SUCCESS;
  }

  /** SMART critical warning bit 1: the temperature is beyond a threshold. */
  get temperatureWarning(): boolean {
    return (
      TEMPERATURE >= (this.#values.get(Feature.TEMPERATURE_THRESHOLD) ?? 0) || TEMPERATURE <= this.#temperatureUnder
    );
  }
}
