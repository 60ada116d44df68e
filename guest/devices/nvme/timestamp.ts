/**
 * NVM Express 1.4, section 5.21.1.14: the controller's clock, which counts from what the driver sets, or from its
 * reset.
 */
import { TIMESTAMP_SET_BY_HOST, Timestamp } from "./spec.js";

const view = Timestamp.view();

export class Clock {
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
    view.at(new DataView(bytes.buffer, bytes.byteOffset), 0);
    this.#set = view.LOW + view.HIGH * 0x1_0000_0000;
    this.#isSet = true;
    this.#setAt = performance.now();
  }

  /** Get Features' data. */
  get(): Uint8Array {
    const now = Math.floor(this.#set + performance.now() - this.#setAt);
    return Timestamp.encode({
      LOW: now >>> 0,
      // 48 bits, which turn over.
      HIGH: Math.floor(now / 0x1_0000_0000) & 0xffff,
      ATTRIBUTES: this.#isSet ? TIMESTAMP_SET_BY_HOST : 0,
    });
  }
}
