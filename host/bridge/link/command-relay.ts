/**
 * The client's commands on their way to the device process: passed on in order, answered early where they are posted,
 * held back while the process takes no messages, and answered without it where it is not there.
 *
 * While the device VM is paused they wait, but only so long: a driver VM stands still while it waits, and gives the
 * device up permanently after 5 s. Posted writes are promised: they follow when it goes on, behind what changed
 * meanwhile. After that time all writes are, a register is read from memory where it is there, as it was before the
 * pause, and anything else is answered as by a device that is not there. A driver that resets the device meanwhile, as
 * a driver VM that boots does, finds it, and waits for its registers to change as it waits for a slow device.
 */
import { Errno } from "../../../shared/errors.js";
import { KiB } from "../../../shared/limits.js";
import { Command, RegionAccess } from "../../../shared/spec/vfio-user.js";
import { answerWithoutDevice, copyAccess, replyToWrite } from "../../../shared/vfio-user/absent-device.js";
import {
  type DeviceSummary,
  type DirectAccesses,
  isPosted,
  type PendingCommand,
} from "../../../shared/vfio-user/backend.js";
import { isWrite } from "../../../shared/vfio-user/register-memory.js";
import { type AccessPath, Stop } from "../../../shared/vfio-user/socket/access-path.js";
import { copyBytes } from "../../../shared/virtqueue/memory.js";
import type { DeviceProcess } from "./device-process.js";
import type { DeviceState } from "./device-state.js";
import type { RequestChannel } from "./request-channel.js";

/** Bytes of writes that wait for the end of a pause. */
const MAX_PROMISED = 256 * KiB;

export class CommandRelay {
  #commands = 0;
  #postedWrites = 0;
  readonly #path: AccessPath;
  #accesses: DirectAccesses | undefined;
  readonly #state: DeviceState;
  readonly #requests: RequestChannel;
  readonly #process: DeviceProcess;
  readonly #access = RegionAccess.view();
  /** Posted writes that wait for the ring, and whose clients do so, too: until then nobody else knows of them. */
  readonly #heldBack: PendingCommand[] = [];
  /** Commands that came while the device process was being told of their client, or its VM was paused. */
  readonly #early: PendingCommand[] = [];
  /** Bodies of writes that came while its VM was paused, and their bytes. */
  readonly #promised: Uint8Array[] = [];
  #promisedBytes = 0;
  /** A reset that the client was told of, and that the device process has yet to make. */
  #owesReset = false;

  constructor(state: DeviceState, requests: RequestChannel, process: DeviceProcess, path: AccessPath) {
    this.#path = path;
    this.#state = state;
    this.#requests = requests;
    this.#process = process;
    requests.channel.onDrained(() => this.#drained());
  }

  /** Passed on so far, and how many of them were posted. */
  get statistics() {
    const { sent, postedWrites } = this.#path.counts;
    return { commands: this.#commands + sent, postedWrites: this.#postedWrites + postedWrites };
  }

  handle(command: PendingCommand): void {
    if (command.isAgain) {
      const was = this.#requests.resumed(command);
      if (was === "in flight") return;
      if (was === "passed on" && isWrite(command.command)) {
        replyToWrite(command);
        return;
      }
    }
    const { summary } = this.#process;
    switch (this.#state.command) {
      case "passed on":
        if (summary === undefined) break;
        this.#passOn(command, isPostedWrite(command, summary));
        return;
      // The device process was just started again, or goes on: what the driver VM asks meanwhile waits the moment that
      // this takes.
      case "held":
        this.#early.push(command);
        return;
      case "held for a while":
        if (summary === undefined || !isPostedWrite(command, summary) || !this.#promise(command)) {
          this.#early.push(command);
        }
        return;
      case "without waiting":
        this.#answerPaused(command);
        return;
    }
    answerWithoutDevice(command);
  }

  #passOn(command: PendingCommand, posted: boolean): void {
    if (!this.#requests.relay(command, posted)) {
      command.fail(Errno.EBUSY);
      this.#state.raise("silent", "it answers nothing");
      return;
    }
    this.#commands++;
    if (isWrite(command.command)) this.#process.registers?.writeSent();
    if (!posted) return;
    this.#postedWrites++;
    if (this.#requests.channel.backlog > 0) this.#heldBack.push(command);
    else replyToWrite(command);
  }

  /** The device process has the client: what waited for that goes on, and accesses go by the path. */
  introduced(accesses: DirectAccesses): void {
    const { summary, registers } = this.#process;
    if (summary) this.#path.setDevice(summary.regionSizes, summary.postedRegions);
    this.#path.native.registers(registers?.bytes);
    if (registers?.held) this.#path.stop(Stop.REGISTERS);
    else this.#path.start(Stop.REGISTERS);
    this.#path.start(Stop.DEVICE);
    this.#accesses = accesses;
    accesses.passBy(this.#path);
    const areCounted = !this.#owesReset;
    this.#owesReset = false;
    this.#promisedBytes = 0;
    for (const body of this.#promised.splice(0)) {
      if (!areCounted) this.#process.registers?.writeSent();
      this.#requests.post(Command.REGION_WRITE, body);
      this.#commands++;
      this.#postedWrites++;
    }
    // What was answered meanwhile is not to be carried out any more.
    for (const command of this.#early.splice(0)) if (command.active) this.handle(command);
  }

  /** Memory of the device VM's has come or gone, and register memory may be in it. */
  memoryChanged(): void {
    this.#process.memoryChanged();
    const { registers } = this.#process;
    if (registers === undefined || registers.held !== this.#process.hasRegisters) return;
    if (registers.held) {
      registers.release();
      this.#path.start(Stop.REGISTERS);
    } else {
      registers.hold();
      this.#path.stop(Stop.REGISTERS);
    }
    const isRead = !registers.held && this.#state.name === "connected";
    this.#accesses?.readFrom(isRead ? registers : undefined);
  }

  /** The device process is not to be asked for the time being. */
  stopPath(): void {
    this.#path.stop(Stop.DEVICE);
  }

  /** The client is gone, and with it those that wait for an answer. */
  clientGone(): void {
    this.#accesses = undefined;
    this.#breakPromises();
    this.#early.length = 0;
  }

  /** The device process is not waited for any more. */
  processLeft(): void {
    this.#breakPromises();
    this.#drained();
    const access = this.#accesses?.take();
    if (access) answerWithoutDevice(access);
    for (const command of this.#early.splice(0)) answerWithoutDevice(command);
  }

  /** The device VM is paused for longer than the client can be kept waiting. */
  graceOver(): void {
    this.#drained();
    this.#requests.abandonRelayed((command, isSent) => {
      const isWithdrawn = isWrite(command.command) && !isSent;
      if (isWithdrawn) this.#process.registers?.writeWithdrawn();
      if (isSent) this.#answerSent(command);
      else this.#answerPaused(command);
    });
    const access = this.#accesses?.take();
    if (access) this.#answerSent(access);
    for (const command of this.#early.splice(0)) this.#answerPaused(command);
  }

  /** What the device process has: a write is made when it goes on, once. */
  #answerSent(command: PendingCommand): void {
    if (isWrite(command.command)) answerWithoutDevice(command);
    else this.#answerPaused(command);
  }

  /** The device process takes messages again. */
  #drained(): void {
    for (const command of this.#heldBack.splice(0)) replyToWrite(command);
  }

  /** Takes a write for later, if there is room for it; the client goes on. */
  #promise(command: PendingCommand): boolean {
    const { bytes, offset, length } = command;
    if (this.#promisedBytes + length > MAX_PROMISED) return false;
    this.#promisedBytes += length;
    this.#promised.push(bytes.slice(offset, offset + length));
    // After a reset the counts begin again when that is made.
    if (!this.#owesReset) this.#process.registers?.writeSent();
    replyToWrite(command);
    return true;
  }

  #breakPromises(): void {
    this.#owesReset = false;
    this.#promised.length = 0;
    this.#promisedBytes = 0;
  }

  /** Without the device process, which has not gone. */
  #answerPaused(command: PendingCommand): void {
    switch (command.command) {
      case Command.DEVICE_RESET:
        // What was written before it goes nowhere.
        this.#breakPromises();
        this.#owesReset = true;
        this.#requests.withdrawPosted();
        this.#state.raise("resetOwed");
        command.reply(0);
        return;
      case Command.REGION_WRITE:
        if (this.#promise(command)) return;
        break;
      case Command.REGION_READ:
        if (this.#readFromMemory(command)) return;
    }
    answerWithoutDevice(command);
  }

  #readFromMemory(command: PendingCommand): boolean {
    const { registers } = this.#process;
    const { offset, region, count } = this.#access.at(command.data, command.offset);
    const place = registers?.find(region, offset, count) ?? -1;
    if (registers === undefined || place < 0) return false;
    command.reserve(RegionAccess.size + count);
    copyAccess(command);
    const { replyBytes, replyOffset } = command;
    copyBytes(registers.bytes, place, replyBytes, replyOffset + RegionAccess.size, count);
    command.reply(RegionAccess.size + count);
    return true;
  }
}

/** Whether a command is a write that is answered as soon as it is queued. */
function isPostedWrite(command: PendingCommand, device: DeviceSummary): boolean {
  if (command.command !== Command.REGION_WRITE) return false;
  return isPosted(device, command.data.getUint32(command.offset + RegionAccess.offsets.region, true));
}
