/**
 * Accesses to a function's regions by message (vfio-user, "VFIO_USER_REGION_READ", "..._WRITE", "..._WRITE_MULTI"):
 * bounds, and what a device that throws is answered. Nothing is allocated for an access.
 */
import { inBounds } from "../../shared/bits.js";
import { Errno } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import {
  Region,
  RegionAccess,
  RegionInfoFlags,
  WRITE_MULTI_MAX_DATA,
  WriteMulti,
  WriteMultiEntry,
} from "../../shared/spec/vfio-user.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import type { WordAccesses } from "../../shared/vfio-user/device-access.js";
import { type DeviceRegion, FIRST_DEVICE_REGION } from "../pci/identity.js";
import type { Regions } from "./regions.js";

/** What a read gives that the device does not answer; of fewer bytes the lower ones count. */
const ALL_ONES = 0xffff_ffff;

/** Whether the device can be reached. */
export interface RunState {
  /** It stands still for a migration: then nothing reaches it. */
  isStopped: boolean;
  /** Resets that it has not finished: until it has, it is as dead as a PCI device that does not answer. */
  resets: number;
}

/**
 * What may be done with each region by message: RegionInfoFlags.READ and WRITE. A ROM ignores writes, but does not
 * refuse them; it only says that they are for nothing.
 */
export function accessFlags(sizes: readonly number[], own: readonly DeviceRegion[] = []): number[] {
  return sizes.map((size, index) => {
    const region = own[index - FIRST_DEVICE_REGION];
    const read = region?.readable === false ? 0 : RegionInfoFlags.READ;
    const write = region?.writable === false || index === Region.ROM ? 0 : RegionInfoFlags.WRITE;
    return size > 0 ? read | write : 0;
  });
}

/**
 * Each method returns 0, or the errno of the refusal; those for words, which C++ calls and has checked bounds for, what
 * WordAccesses says.
 */
export class RegionAccesses implements WordAccesses {
  readonly readable: number;
  readonly writable: number;
  readonly #sizes: readonly number[];
  readonly #flags: readonly number[];
  readonly #regions: Regions;
  readonly #state: Readonly<RunState>;
  readonly #log: Log;
  readonly #access = RegionAccess.view();
  readonly #multi = WriteMulti.view();
  readonly #multiEntry = WriteMultiEntry.view();

  /** `flags`: RegionInfoFlags.READ and WRITE of each region. */
  constructor(regions: Regions, flags: readonly number[], state: Readonly<RunState>, log: Log) {
    this.#sizes = regions.sizes;
    this.#flags = flags;
    this.#regions = regions;
    this.#state = state;
    this.#log = log;
    const bits = (may: (region: number) => boolean) =>
      flags.reduce((bits, _, region) => bits | (may(region) ? 1 << region : 0), 0);
    this.readable = bits((region) => (flags[region] & RegionInfoFlags.READ) !== 0);
    // A write to config space may begin what its reply waits for.
    this.writable = bits((region) => {
      return region !== Region.CONFIG && (flags[region] & RegionInfoFlags.WRITE) !== 0 && !regions.hasEvents(region);
    });
  }

  readWord(region: number, offset: number, size: number): number {
    if (!this.#mayReach(region, offset, size)) return -Errno.EINVAL;
    if (this.#isDead(region, offset, size)) return ALL_ONES;
    try {
      return this.#regions.readWord(region, offset, size) >>> 0;
    } catch (error) {
      this.#log.error({ err: error, region, offset, count: size }, "the device threw in a register read");
      return ALL_ONES;
    }
  }

  writeWord(region: number, offset: number, size: number, value: number): number {
    if (!this.#mayReach(region, offset, size)) return -Errno.EINVAL;
    if (this.#isDead(region, offset, size)) return 0;
    try {
      this.#regions.writeWord(region, offset, size, value);
      return 0;
    } catch (error) {
      this.#log.error({ err: error, region, offset, count: size }, "the device threw in a register write");
      return -Errno.EIO;
    }
  }

  /** Replies. */
  read(command: PendingCommand): number {
    const request = this.#access.at(command.data, command.offset);
    const { offset, region, count } = request;
    if (!this.#mayAccess(region, offset, count, RegionInfoFlags.READ)) return Errno.EINVAL;
    const length = RegionAccess.size + count;
    command.reserve(length);
    const reply = this.#access.at(command.replyData, command.replyOffset);
    reply.offset = offset;
    reply.region = region;
    reply.count = count;
    const start = command.replyOffset + RegionAccess.size;
    if (this.#isDead(region, offset, count)) {
      command.replyBytes.fill(0xff, start, start + count);
      command.reply(length);
      return 0;
    }
    try {
      this.#regions.read(region, offset, count, command.replyData, start);
    } catch (error) {
      this.#log.error({ err: error, region, offset, count }, "the device threw in a register read");
      command.replyBytes.fill(0xff, start, start + count);
    }
    command.reply(length);
    return 0;
  }

  /** The reply's body, RegionAccess.size bytes, is there to be sent when what the write caused is done. */
  write(command: PendingCommand): number {
    const request = this.#access.at(command.data, command.offset);
    const { offset, region, count } = request;
    const start = command.offset + RegionAccess.size;
    if (!inBounds(RegionAccess.size, count, command.length)) return Errno.EINVAL;
    if (!this.#mayAccess(region, offset, count, RegionInfoFlags.WRITE)) return Errno.EINVAL;
    if (!this.#tryWrite(region, offset, count, command.data, start)) return Errno.EIO;
    command.reserve(RegionAccess.size);
    const reply = this.#access.at(command.replyData, command.replyOffset);
    reply.offset = offset;
    reply.region = region;
    reply.count = count;
    return 0;
  }

  /** As `write`; the body has WriteMulti.size bytes. */
  writeMulti(command: PendingCommand): number {
    const writes = this.#multi.at(command.data, command.offset).writes;
    // Division instead of multiplication: the count is the peer's, and may be anything up to 2^64.
    if (writes > (command.length - WriteMulti.size) / WriteMultiEntry.size) return Errno.EINVAL;
    const first = command.offset + WriteMulti.size;
    const end = first + writes * WriteMultiEntry.size;
    // All are checked before the first is done, so that a refused command changed nothing.
    for (let at = first; at < end; at += WriteMultiEntry.size) {
      const { offset, region, count } = this.#multiEntry.at(command.data, at);
      if (count > WRITE_MULTI_MAX_DATA || !this.#mayAccess(region, offset, count, RegionInfoFlags.WRITE))
        return Errno.EINVAL;
    }
    for (let at = first; at < end; at += WriteMultiEntry.size) {
      const { offset, region, count } = this.#multiEntry.at(command.data, at);
      const data = at + WriteMultiEntry.offsets.data;
      if (!this.#tryWrite(region, offset, count, command.data, data)) return Errno.EIO;
    }
    command.reserve(WriteMulti.size);
    this.#multi.at(command.replyData, command.replyOffset).writes = writes;
    return 0;
  }

  /**
   * Whether an access lies within its region, is of a kind that a region of the device's own has, and does not reach
   * the device while that stands still.
   */
  #mayAccess(region: number, offset: number, count: number, kind: number): boolean {
    if (!inBounds(offset, count, this.#sizes[region] ?? 0)) return false;
    if (region >= FIRST_DEVICE_REGION && (this.#flags[region] & kind) === 0) return false;
    return this.#mayReach(region, offset, count);
  }

  /** A device that stands still is not reached. */
  #mayReach(region: number, offset: number, count: number): boolean {
    return !this.#state.isStopped || !this.#regions.reachesDevice(region, offset, count);
  }

  #isDead(region: number, offset: number, count: number): boolean {
    return this.#state.resets > 0 && this.#regions.reachesDevice(region, offset, count);
  }

  /** False when the device threw, which was logged. */
  #tryWrite(region: number, offset: number, count: number, data: DataView, from: number): boolean {
    if (this.#isDead(region, offset, count)) return true;
    try {
      this.#regions.write(region, offset, count, data, from);
      return true;
    } catch (error) {
      this.#log.error({ err: error, region, offset, count }, "the device threw in a register write");
      return false;
    }
  }
}
