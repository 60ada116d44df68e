/**
 * DMA by messages: DMA_READ and DMA_WRITE of the device process, passed on to the client and answered; for memory that
 * is not in the window. Only so many are in flight at once; then the device process's next messages wait in their
 * queue. What is in flight when the bridge dies the next one goes on with: a write is sent once, a read made again.
 */
import { isAddressRange } from "../../../shared/address.js";
import { Errno, isSystemError, ProtocolError } from "../../../shared/errors.js";
import { Command, DmaAccess, Header, HeaderFlags } from "../../../shared/spec/vfio-user.js";
import type { ClientMemory } from "../../../shared/vfio-user/backend.js";
import { StateError } from "../state/state-bytes.js";
import { MAX_TRANSFERS, type Transfer, Transfers } from "../state/transfers.js";
import type { Channel } from "./channel.js";

const NOTHING = new Uint8Array(0);

export class DmaRelay {
  /** Transfers so far. */
  transfers = 0;
  readonly #channel: Channel;
  readonly #access = DmaAccess.view();
  readonly #table: Transfers;
  /** Of another bridge's. */
  #restored: Transfer[] = [];
  /** Slots whose replies wait in the channel. */
  #replies: number[] = [];
  /** Changes when the client does, or the device process: what comes back later is nobody's. */
  #generation = 0;

  constructor(channel: Channel, table = new Transfers()) {
    this.#channel = channel;
    this.#table = table;
    channel.onDrained(() => this.#drained());
  }

  /**
   * Goes on with what another bridge had in flight; the channel is open, or the device process gone. @throws StateError
   */
  restore(memory: ClientMemory | undefined): void {
    const all = this.#table.load();
    if (all === undefined) throw new StateError("its DMA by messages is damaged");
    const { open, queuedCount } = this.#channel;
    for (const transfer of all) {
      const { slot, reply } = transfer;
      const isAnswered = reply !== undefined && ((queuedCount - reply) | 0) >= 0;
      if (isAnswered || !memory || !open) this.#table.release(slot);
      else this.#restored.push(transfer);
    }
    if (memory) for (const transfer of this.#restored) this.#carryOut(transfer, memory);
  }

  /** The client is gone, or the device process is. */
  drop(): void {
    this.#generation++;
    for (let slot = 0; slot < MAX_TRANSFERS; slot++) this.#table.forget(slot);
    for (const slot of this.#replies.splice(0)) this.#table.release(slot);
    this.#restored = [];
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
      if (!silent) this.#channel.send(id, command, HeaderFlags.TYPE_REPLY | HeaderFlags.ERROR, errno, NOTHING);
    };
    // The message that another bridge dealt with last may come again.
    if (this.#restored.some((each) => each.id === id && each.command === command)) return;
    if (!memory) {
      refuse(Errno.ENODEV);
      return;
    }
    // Transfers of before a reset, which the client has not answered: nothing more is kept until it does.
    if (this.#table.areFull) {
      refuse(Errno.EAGAIN);
      return;
    }
    if ((count > 0 && !isAddressRange(address, count)) || count > most) {
      refuse(Errno.EINVAL);
      return;
    }
    this.transfers++;
    const payload = isWrite ? bytes.subarray(fixed, length) : undefined;
    const slot = this.#table.begin(id, command, flags, address, count, payload);
    if (this.#table.areFull) this.#channel.pause();
    this.#carryOut({ slot, serial: 0, id, command, flags, address, count, isSent: false, reply: undefined }, memory);
  }

  #carryOut(transfer: Transfer, memory: ClientMemory): void {
    const { slot, address, count } = transfer;
    const isWrite = transfer.command === Command.DMA_WRITE;
    const body = new Uint8Array(DmaAccess.size + (isWrite ? 0 : count));
    this.#access.at(new DataView(body.buffer), 0);
    this.#access.address = address;
    this.#access.count = count;
    let work: Promise<void>;
    if (!isWrite) work = memory.read(address, body.subarray(DmaAccess.size));
    else if (transfer.isSent) work = memory.settled();
    else work = memory.write(address, this.#table.bytes(slot, count), () => this.#table.sent(slot));
    const generation = this.#generation;
    void work.then(
      () => this.#answer(transfer, generation, 0, body),
      (error) => {
        const errno = error instanceof ProtocolError || isSystemError(error) ? error.errno : Errno.EIO;
        this.#answer(transfer, generation, errno, NOTHING);
      },
    );
  }

  #answer({ slot, id, command, flags }: Transfer, generation: number, errno: number, body: Uint8Array): void {
    const isWanted = generation === this.#generation && (flags & HeaderFlags.NO_REPLY) === 0;
    if (isWanted) {
      const type = HeaderFlags.TYPE_REPLY | (errno > 0 ? HeaderFlags.ERROR : 0);
      this.#table.answering(slot, (this.#channel.queuedCount + 1) >>> 0);
      this.#channel.send(id, command, type, errno, body);
    }
    if (this.#restored.length > 0) this.#restored = this.#restored.filter((each) => each.slot !== slot);
    // Until the device process has the reply.
    if (isWanted && this.#channel.backlog > 0) this.#replies.push(slot);
    else this.#table.release(slot);
    this.#resume();
  }

  #drained(): void {
    if (this.#channel.backlog === 0) for (const slot of this.#replies.splice(0)) this.#table.release(slot);
    this.#resume();
  }

  /** Lets the device process go on, if there is room for what it may ask. */
  #resume(): void {
    if (this.#channel.congested) this.#channel.pause();
    else if (!this.#table.areFull) this.#channel.resume();
  }
}
