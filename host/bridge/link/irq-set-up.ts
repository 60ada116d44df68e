/**
 * SET_IRQS at the bridge: eventfds that the client waits on become doorbells, eventfds that it masks and unmasks with
 * stay here, and the device process is told the rest (docs/virtio-vfio-user.md, "DEVICE_SET_IRQS").
 */
import { PeerGone } from "../../../shared/errors.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import { NO_DOORBELL } from "../../../shared/spec/link.js";
import { Command, IrqSetFlags } from "../../../shared/spec/vfio-user.js";
import type { IrqSetRequest } from "../../../shared/vfio-user/backend.js";
import { type IrqAction, IrqEventfds } from "../../../shared/vfio-user/irqs/irq-eventfds.js";
import { doorbellBody, plainIrqBody } from "./bodies.js";
import type { DeviceProcess } from "./process.js";

export class IrqSetUp {
  readonly #process: DeviceProcess;
  readonly #eventfds: IrqEventfds;

  /** `act` masks or unmasks as an eventfd says. */
  constructor(process: DeviceProcess, act: IrqAction) {
    this.#process = process;
    this.#eventfds = new IrqEventfds(act);
  }

  /** The client is gone. */
  clear(): void {
    this.#process.doorbells.clear();
    this.#eventfds.clear();
  }

  /**
   * Carries a request out, whose eventfds it takes over. Resolves, when the device process knows of it or is not there,
   * with whether the next one is to be told of it as well. Rejects with ProtocolError when the process refuses, or with
   * ProtocolError or SystemError when there is no place for the eventfds.
   */
  async apply(request: IrqSetRequest): Promise<boolean> {
    const { flags, count, eventfds } = request;
    const isTrigger = (flags & IrqSetFlags.ACTION_TRIGGER) !== 0;
    if (eventfds && !isTrigger) {
      this.#eventfds.set(request);
      return false;
    }
    if (eventfds) await this.#bind(request, eventfds);
    else if (isTrigger && count === 0) await this.#disable(request);
    else await this.#tell(plainIrqBody(request));
    return true;
  }

  /** What loses its eventfd is told before it is done, what gets one afterwards: see Doorbells. */
  async #bind({ flags, index, start, count }: IrqSetRequest, eventfds: readonly number[]): Promise<void> {
    const { doorbells } = this.#process;
    const binds = eventfds.some((fd) => fd >= 0);
    try {
      doorbells.checkRoom(index, start, eventfds);
      if (!binds || doorbells.unbinds(index, start, eventfds)) {
        const numbers = eventfds.map((fd, i) => (fd < 0 ? NO_DOORBELL : doorbells.doorbell(index, start + i)));
        await this.#tell(doorbellBody(flags, index, start, numbers));
      }
    } catch (error) {
      for (const fd of eventfds) if (fd >= 0) closePeerFd(fd);
      throw error;
    }
    doorbells.bind(index, start, eventfds);
    if (!binds) return;
    try {
      await this.#tell(doorbellBody(flags, index, start, doorbells.numbers(index, start, count)));
    } catch (error) {
      doorbells.bind(index, start, new Array(count).fill(-1));
      throw error;
    }
  }

  async #disable(request: IrqSetRequest): Promise<void> {
    try {
      await this.#tell(plainIrqBody(request));
    } finally {
      this.#process.doorbells.unbindAll(request.index);
      this.#eventfds.clearIndex(request.index);
    }
  }

  /** A device process that is not there, or leaves, is told when it says HELLO again. Rejects with ProtocolError. */
  async #tell(body: Uint8Array): Promise<void> {
    const { conversation, state } = this.#process;
    if (state.name !== "connected") return;
    try {
      await conversation.request(Command.DEVICE_SET_IRQS, body);
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }
}
