/**
 * The virtual IOMMU of a device VM, and QEMU's part of it for vhost-user: misses are answered with updates, a page of
 * 4 KiB at a time, and what the guest unmaps is invalidated, in a range that is a power of two and may cover more, as
 * intel-iommu does.
 */
import { alignDown } from "../../shared/bits.js";
import { PAGE_SIZE } from "../../shared/limits.js";
import { HeaderFlags, IotlbAccess, IotlbMessage, IotlbType, Request, U64 } from "../../shared/spec/vhost-user.js";
import type { Wire } from "./front-end-wire.js";

const RAM_USER_ADDRESS = 0x7f12_0000_0000;

/** Where QEMU itself has a guest-physical address of RAM. */
export const userAddress = (guestAddress: number) => RAM_USER_ADDRESS + guestAddress;

/** What becomes of a miss: QEMU's answer, one that does not come, or what a test sends itself. */
export type MissHook = (iova: number) => "answer" | "say nothing" | "refuse" | "promise";

export class FakeIommu {
  /** Misses so far. */
  misses = 0;
  /** Decides what becomes of the next misses. */
  onMiss: MissHook = () => "answer";
  /** By IOVA, the guest-physical address of each page. */
  readonly #pages = new Map<number, number>();
  readonly #wire: Wire;

  constructor(wire: Wire) {
    this.#wire = wire;
  }

  map(iova: number, guestAddress: number): void {
    this.#pages.set(iova, guestAddress);
  }

  /** Where a page is, or undefined. */
  find(iova: number): number | undefined {
    return this.#pages.get(alignDown(iova, PAGE_SIZE));
  }

  /** The guest unmaps a page: what is invalidated is `covered` bytes, a power of two, around it. */
  unmap(iova: number, covered = PAGE_SIZE): number | undefined {
    const found = this.#pages.get(iova);
    this.#pages.delete(iova);
    this.invalidate(alignDown(iova, covered), covered);
    return found;
  }

  invalidate(iova: number, size: number): void {
    this.send({ iova, size, type: IotlbType.INVALIDATE });
  }

  /** Says where a page is, unasked. Whether the back-end takes it. */
  update(iova: number, guestAddress = this.find(iova) ?? 0, size = PAGE_SIZE): boolean {
    const access = IotlbAccess.READ_WRITE;
    return this.send({ iova, size, userAddress: userAddress(guestAddress), access, type: IotlbType.UPDATE });
  }

  /** Any message. Whether the back-end takes it. */
  send(fields: Parameters<typeof IotlbMessage.encode>[0]): boolean {
    const reply = this.#wire.exchange(Request.IOTLB_MSG, IotlbMessage.encode(fields), HeaderFlags.NEED_REPLY);
    return U64.view(reply.data).value === 0;
  }

  /** A request of the back-end's. The reply's value, or undefined for none. */
  missed(data: DataView): number | undefined {
    const { iova, access, type } = IotlbMessage.view(data);
    if (type !== IotlbType.MISS || access !== IotlbAccess.READ_WRITE) throw new Error(`an IOTLB message ${type}`);
    this.misses++;
    const answer = this.onMiss(iova);
    if (answer === "say nothing") return undefined;
    if (answer === "promise") return 0;
    if (answer === "refuse" || this.find(iova) === undefined) return 1;
    this.update(iova);
    return 0;
  }
}
