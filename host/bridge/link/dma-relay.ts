/**
 * DMA by messages: DMA_READ and DMA_WRITE of the device process, passed on to the client and answered; for memory that
 * is not in the window. Only so many are in flight at once; then the device process's next messages wait in their
 * queue.
 */
import { isAddressRange } from "../../../shared/address.js";
import { Errno, isSystemError, ProtocolError } from "../../../shared/errors.js";
import { Command, DmaAccess, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import type { ClientMemory } from "../../../shared/vfio-user/backend.js";
import type { Channel } from "./channel.js";

/** Transfers in flight; each holds at most one largest transfer in memory. */
const MAX_TRANSFERS = 16;

export class DmaRelay {
  /** Transfers so far. */
  transfers = 0;
  readonly #channel: Channel;
  readonly #access = DmaAccess.view();
  #inFlight = 0;
  /** Changes when the client does, or the device process: what comes back later is nobody's. */
  #generation = 0;

  constructor(channel: Channel) {
    this.#channel = channel;
    channel.onDrained(() => this.#resume());
  }

  /** The client is gone, or the device process is. */
  drop(): void {
    this.#generation++;
  }

  /**
   * Passes on the message bytes[0, length). `memory` is undefined when no client is connected; a transfer of more than
   * `most` bytes is refused. @throws ProtocolError when the message is malformed
   */
  relay(
    id: number,
    command: number,
    flags: number,
    bytes: Uint8Array,
    data: DataView,
    length: number,
    memory: ClientMemory | undefined,
    most: number,
  ): void {
    const isWrite = command === Command.DMA_WRITE;
    const fixed = Header.size + DmaAccess.size;
    if (length < fixed) throw new ProtocolError(`a DMA of ${length} bytes`);
    const { address, count } = this.#access.at(data, Header.size);
    if (length !== fixed + (isWrite ? count : 0)) throw new ProtocolError(`a DMA of ${count} bytes in ${length}`);
    const silent = (flags & HeaderFlags.NO_REPLY) !== 0;
    const refuse = (errno: number) => {
      if (!silent)
        this.#channel.send(id, command, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno, new Uint8Array(0));
    };
    if (!memory) {
      refuse(Errno.ENODEV);
      return;
    }
    // Transfers of before a reset, which the client has not answered: nothing more is kept until it does.
    if (this.#inFlight >= MAX_TRANSFERS) {
      refuse(Errno.EAGAIN);
      return;
    }
    if ((count > 0 && !isAddressRange(address, count)) || count > most) {
      refuse(Errno.EINVAL);
      return;
    }

    const body = new Uint8Array(DmaAccess.size + count);
    body.set(bytes.subarray(Header.size, length));
    const payload = body.subarray(DmaAccess.size);
    const generation = this.#generation;
    this.transfers++;
    if (++this.#inFlight >= MAX_TRANSFERS) this.#channel.pause();
    const transfer = isWrite ? memory.write(address, payload) : memory.read(address, payload);
    void transfer
      .then(
        () => {
          if (silent || generation !== this.#generation) return;
          const size = isWrite ? DmaAccess.size : body.length;
          this.#channel.send(id, command, HeaderFlags.TYPE_REPLY, 0, body, 0, size);
        },
        (error) => {
          if (generation === this.#generation)
            refuse(error instanceof ProtocolError || isSystemError(error) ? error.errno : Errno.EIO);
        },
      )
      .finally(() => {
        this.#inFlight--;
        this.#resume();
      });
  }

  /** Lets the device process go on, if there is room for what it may ask. */
  #resume(): void {
    if (this.#channel.congested) this.#channel.pause();
    else if (this.#inFlight < MAX_TRANSFERS) this.#channel.resume();
  }
}
