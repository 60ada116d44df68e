/** DMA that is not done at once, so that an unmap or a reset can wait for what concerns it. */

/** A read or write that is not done at once, and what it concerns. */
interface Transfer {
  readonly address: number;
  readonly length: number;
  /** Never rejects. */
  readonly ended: Promise<void>;
}

export class TransfersInFlight {
  readonly #transfers = new Set<Transfer>();

  /** Whether no transfer to or from the range is in flight. */
  isIdle(address = 0, length = Number.POSITIVE_INFINITY): boolean {
    for (const transfer of this.#transfers) if (overlaps(transfer, address, length)) return false;
    return true;
  }

  /** Resolves when the transfers to and from the range that are in flight now have ended. */
  async settled(address = 0, length = Number.POSITIVE_INFINITY): Promise<void> {
    const concerned = [...this.#transfers].filter((transfer) => overlaps(transfer, address, length));
    await Promise.all(concerned.map(({ ended }) => ended));
  }

  async track(address: number, length: number, work: Promise<void>): Promise<void> {
    const transfer = { address, length, ended: work.catch(() => {}) };
    this.#transfers.add(transfer);
    try {
      await work;
    } finally {
      this.#transfers.delete(transfer);
    }
  }
}

function overlaps(transfer: Transfer, address: number, length: number): boolean {
  return transfer.address < address + length && address < transfer.address + transfer.length;
}
