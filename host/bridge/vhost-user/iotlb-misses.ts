/**
 * The IOTLB's messages. What is not in it is asked of the front-end, a page at a time (it answers with as much as is
 * in one page of the IOMMU's): by a request on its back-end channel, whose reply says whether there is anything at that
 * address, and an update on its own socket. Nothing can be relied on of their order.
 *
 * An answer may be late: whoever needs the memory waits, without a deadline of its own. One that is said to be there
 * and does not come is asked for again. What there is not, is an error of the driver's, and is said once, to who asks
 * next.
 */
import { alignDown } from "../../../shared/bits.js";
import { startDeadline } from "../../../shared/deadline.js";
import { ProtocolError } from "../../../shared/errors.js";
import { PAGE_SIZE, RETRY_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { BackendRequest, HeaderFlags, IotlbAccess, IotlbMessage, IotlbType } from "../../../shared/spec/vhost-user.js";
import { MISSING } from "../../../shared/virtqueue/memory.js";
import type { Message } from "./connection.js";
import type { Iotlb } from "./iotlb.js";
import type { DeviceVmMemory } from "./memory.js";
import type { Window } from "./window.js";

/** Requests without a reply: fewer than fill a socket whose front-end stands still. */
const MAX_SENT = 32;
/** Pages that are waited for, and those of one range that are asked for at a time. */
const MAX_PAGES = 4096;
const MAX_PAGES_OF_RANGE = 64;

interface Miss {
  readonly page: number;
  state: "waits" | "sent" | "answered" | "refused";
  /** Since it was in this state. */
  ticks: number;
}

/** After so many ticks of RETRY_MS in a state a page is asked for again. */
const TICKS = { waits: Number.POSITIVE_INFINITY, sent: 8, answered: 2, refused: Number.POSITIVE_INFINITY } as const;

export class IotlbMisses {
  #misses = 0;
  readonly #memory: DeviceVmMemory;
  readonly #iotlb: Iotlb;
  readonly #window: Window;
  readonly #log: Log;
  readonly #changed: () => void;
  readonly #pages = new Map<number, Miss>();
  /** Those without a reply, in their order; some may not be waited for any more. */
  readonly #sent: Miss[] = [];
  readonly #payload = IotlbMessage.encode({
    size: PAGE_SIZE,
    access: IotlbAccess.READ_WRITE,
    type: IotlbType.MISS,
  });
  readonly #request = IotlbMessage.view(new DataView(this.#payload.buffer));
  #isStarted = false;
  #stopTicks: (() => void) | undefined;

  /** `changed` is called when memory has come or gone, or it is known that there is no such memory. */
  constructor(memory: DeviceVmMemory, window: Window, log: Log, changed: () => void) {
    this.#memory = memory;
    this.#iotlb = memory.iotlb;
    memory.ask = (iova, length) => this.#ask(iova, length);
    this.#changed = changed;
    this.#window = window;
    this.#log = log;
    window.misses = this;
  }

  /** For diagnostics. */
  inspect(): object {
    const { ranges, runs } = this.#iotlb;
    return { misses: this.#misses, waiting: this.#pages.size, inFlight: this.inFlight, ranges, runs: runs.length };
  }

  /** Replies that are to come. */
  get inFlight(): number {
    return this.#sent.length;
  }

  /**
   * The front-end answers from now on: what is in the IOTLB may be old, as it says nothing of changes while the device
   * is stopped.
   */
  start(): void {
    this.stop();
    this.#iotlb.clear();
    this.#isStarted = true;
  }

  /** The device is stopped, and what is asked for would be refused. */
  stop(): void {
    this.#isStarted = false;
    this.#stopTicks?.();
    this.#stopTicks = undefined;
    this.#pages.clear();
  }

  /** The front-end is gone, and its replies with it. */
  reset(): void {
    this.stop();
    this.#sent.length = 0;
  }

  /** Asks for what of [iova, iova + length) is not here: MISSING, or -1 when there is no such thing. */
  #ask(iova: number, length: number): number {
    const end = iova + length;
    if (!(iova >= 0 && length > 0) || !Number.isSafeInteger(end + PAGE_SIZE)) return -1;
    let isRefused = false;
    let asked = 0;
    for (let page = alignDown(iova, PAGE_SIZE); asked < MAX_PAGES_OF_RANGE; page += PAGE_SIZE, asked++) {
      page = page < end ? this.#iotlb.missing(page, end - page) : -1;
      if (page < 0) break;
      const miss = this.#pages.get(page);
      if (miss?.state === "refused") {
        isRefused = true;
        this.#pages.delete(page);
      } else if (miss === undefined && this.#pages.size < MAX_PAGES) {
        this.#pages.set(page, { page, state: "waits", ticks: 0 });
      }
    }
    if (isRefused) return -1;
    this.#send();
    return MISSING;
  }

  /**
   * The front-end's IOTLB_MSG: memory that is there from now on, or is not any more. @throws ProtocolError, SystemError
   */
  handle(message: Message): void {
    const { iova, size, userAddress, access, type } = IotlbMessage.view(message.data);
    if (!this.#memory.translates) throw new ProtocolError("an IOTLB message without VIRTIO_F_ACCESS_PLATFORM");
    if (type === IotlbType.INVALIDATE) {
      if (this.#iotlb.remove(iova, size)) this.#changed();
      return;
    }
    if (type !== IotlbType.UPDATE) throw new ProtocolError(`an IOTLB message of type ${type}`);
    if (access !== IotlbAccess.READ_WRITE)
      throw new ProtocolError("memory that the driver may not both read and write");
    try {
      this.#memory.translate(iova, size, userAddress);
    } finally {
      for (const page of this.#pages.keys()) if (this.#iotlb.missing(page, PAGE_SIZE) < 0) this.#pages.delete(page);
      this.#changed();
    }
  }

  #send(): void {
    if (!this.#isStarted || this.#sent.length >= MAX_SENT) return;
    for (const miss of this.#pages.values()) {
      if (miss.state !== "waits") continue;
      this.#request.iova = miss.page;
      try {
        this.#window.channel?.send(BackendRequest.IOTLB_MSG, HeaderFlags.NEED_REPLY, this.#payload, IotlbMessage.size);
      } catch {
        // The window has detached the channel.
      }
      if (!this.#window.channel) return;
      this.#misses++;
      miss.state = "sent";
      miss.ticks = 0;
      this.#sent.push(miss);
      this.#stopTicks ??= startDeadline(RETRY_MS, () => this.#tick());
      if (this.#sent.length >= MAX_SENT) return;
    }
  }

  /** See Window. */
  replied(value: number): void {
    const miss = this.#sent.shift();
    // What the bridge before has asked for is nobody's.
    if (miss === undefined) return;
    if (this.#pages.get(miss.page) === miss) {
      miss.state = value === 0 ? "answered" : "refused";
      miss.ticks = 0;
      if (value !== 0) {
        this.#log.warn({ iova: `0x${miss.page.toString(16)}` }, "the driver names memory that its IOMMU does not have");
        this.#changed();
      }
    }
    this.#send();
  }

  /** What has not come is asked for again. What was not there, and nobody asked for since, may be there by now. */
  #tick(): void {
    this.#stopTicks = undefined;
    let count = 0;
    for (const miss of this.#pages.values()) {
      if (miss.state === "refused") this.#pages.delete(miss.page);
      if (++miss.ticks < TICKS[miss.state]) continue;
      miss.state = "waits";
      count++;
    }
    if (count > 0) this.#log.warn({ pages: count }, "the front-end has not sent what its IOMMU has: asking again");
    if (this.#pages.size > 0) this.#stopTicks = startDeadline(RETRY_MS, () => this.#tick());
    this.#send();
  }
}
