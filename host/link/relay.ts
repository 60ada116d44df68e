/**
 * The client's commands on their way to the device process: passed on in order, answered early where they are posted, held
 * back while the process takes no messages, and answered without it where it is not there.
 */
import { Errno } from "../../shared/errors.js";
import type { PendingCommand } from "../../shared/vfio-user/backend.js";
import { isWrite } from "../../shared/vfio-user/register-memory.js";
import { answerWithoutDevice, isPostedWrite, replyToWrite } from "./answers.js";
import type { DeviceProcess } from "./process.js";

export class CommandRelay {
  /** Passed on so far, and how many of them were posted. */
  commands = 0;
  postedWrites = 0;
  readonly #process: DeviceProcess;
  /** Posted writes that are queued, and whose sessions are held back until the device process has taken some. */
  readonly #heldBack: PendingCommand[] = [];
  /** Commands that came while the device process was being told of their client. */
  readonly #early: PendingCommand[] = [];

  constructor(process: DeviceProcess) {
    this.#process = process;
  }

  handle(command: PendingCommand): void {
    const { state, summary, conversation } = this.#process;
    // A device process that was just started again: what the driver VM asks meanwhile waits the moment that this takes.
    if (state === "ready") {
      this.#early.push(command);
      return;
    }
    if (state !== "connected" || !summary) {
      answerWithoutDevice(command);
      return;
    }
    const posted = isPostedWrite(command, summary);
    if (!conversation.relay(command, posted)) {
      command.fail(Errno.EBUSY);
      this.#process.break("the device process answers nothing");
      return;
    }
    this.commands++;
    if (isWrite(command.command)) this.#process.registers?.writeSent();
    if (!posted) return;
    this.postedWrites++;
    if (conversation.channel.congested) this.#heldBack.push(command);
    else replyToWrite(command);
  }

  /** The device process has the client: what waited for that goes on. */
  connected(): void {
    for (const command of this.#early.splice(0)) this.handle(command);
  }

  /** The client is gone, and with it those that wait for an answer. */
  clientGone(): void {
    this.#early.length = 0;
  }

  /** The device process takes messages again. */
  drained(): void {
    for (const command of this.#heldBack.splice(0)) replyToWrite(command);
  }

  /** The device process is not waited for any more. */
  processLeft(): void {
    this.drained();
    for (const command of this.#early.splice(0)) answerWithoutDevice(command);
  }
}
