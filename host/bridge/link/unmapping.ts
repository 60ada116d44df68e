/**
 * Taking memory back from the device process: it is asked to let go, and waited for only so long
 * (docs/virtio-vfio-user.md, "DMA_UNMAP").
 */
import { formatAddress } from "../../../shared/address.js";
import { startDeadline } from "../../../shared/deadline.js";
import { Errno, PeerGone, ProtocolError } from "../../../shared/errors.js";
import { UNMAP_DEADLINE_MS } from "../../../shared/limits.js";
import type { Log } from "../../../shared/log.js";
import { Command } from "../../../shared/spec/vfio-user.js";
import type { DirtyRequest, UnmapRequest } from "../../../shared/vfio-user/backend.js";
import { setBits } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { unmapBody } from "./bodies.js";
import type { Conversation } from "./conversation.js";

export class Unmapping {
  readonly #conversation: Conversation;
  readonly #log: Log;
  readonly #broken: (reason: string) => void;
  readonly #isPaused: () => boolean;
  /** Unmaps that the device process has not answered, and that are done all the same. */
  #late = 0;

  constructor(conversation: Conversation, log: Log, broken: (reason: string) => void, isPaused: () => boolean) {
    this.#conversation = conversation;
    this.#log = log;
    this.#broken = broken;
    this.#isPaused = isPaused;
  }

  /**
   * Asks the device process to let go of all maps in a range, with one message, so that they have one deadline. False
   * when it does not say so in time: they are then taken by force. What is not known to be unwritten is told as
   * written.
   * @throws ProtocolError when the device process cannot give the bitmap that is wanted; it then keeps the maps
   */
  async letGo(request: UnmapRequest): Promise<boolean> {
    const { address, size, maps, dirty } = request;
    const body = unmapBody(request);
    const answer = this.#conversation.send(Command.DMA_UNMAP, body);
    let stop = () => {};
    const late = new Promise<never>((_, reject) => {
      // One that is late already is not waited for again: the client's deadline is for all of its unmaps together.
      const deadline = this.#late > 0 ? 0 : UNMAP_DEADLINE_MS;
      const giveUp = () => {
        this.#late++;
        const answered = () => this.#late--;
        answer.then(answered, answered);
        reject(new ProtocolError("the device process does not answer", Errno.ETIMEDOUT));
      };
      stop = startDeadline(deadline, giveUp, this.#isPaused);
    });
    try {
      const reply = await Promise.race([answer, late]);
      if (dirty) this.#takeBitmap(reply, body.length, dirty);
      return true;
    } catch (error) {
      if (dirty && error instanceof ProtocolError && error.errno !== Errno.ETIMEDOUT) throw error;
      const reason = (error as Error).message;
      const range = { address: formatAddress(address), size, maps: maps.length };
      this.#log.warn({ ...range, reason }, "the device did not let go of memory: it is taken by force");
      allDirty(request);
      return false;
    } finally {
      stop();
    }
  }

  /**
   * The bitmap follows the request's body in the reply. @throws PeerGone, the link broken, when it is of another length
   */
  #takeBitmap(reply: Uint8Array, offset: number, { bitmap }: DirtyRequest): void {
    if (reply.length !== offset + bitmap.length) {
      this.#broken(`a reply of ${reply.length} bytes to DMA_UNMAP with a bitmap`);
      throw new PeerGone("the device process broke the link");
    }
    bitmap.set(reply.subarray(offset));
  }
}

/** A device process that cannot be asked may have written everything. */
export function allDirty({ size, dirty }: UnmapRequest): void {
  if (dirty) setBits(dirty.bitmap, 0, Math.ceil(size / dirty.pageSize) - 1);
}
