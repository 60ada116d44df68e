/**
 * SET_IRQS at the bridge: eventfds that the client waits on become doorbells, eventfds that it masks and unmasks with stay
 * here, and the device process is told the rest (docs/virtio-vfio-user.md, "DEVICE_SET_IRQS").
 */
import { PeerGone } from "../../shared/errors.js";
import { Command, IrqSetFlags } from "../../shared/spec/vfio-user.js";
import type { IrqSetRequest } from "../../shared/vfio-user/backend.js";
import { type IrqAction, IrqEventfds } from "../../shared/vfio-user/irq-eventfds.js";
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
   * Carries a request out, whose eventfds it takes over. Resolves, when the device process knows of it or is not there, with
   * whether the next one is to be told of it as well. Rejects with ProtocolError when the process refuses.
   */
  async apply(request: IrqSetRequest): Promise<boolean> {
    const { doorbells, conversation, state } = this.#process;
    const { flags, index, start, count, eventfds } = request;
    const isTrigger = (flags & IrqSetFlags.ACTION_TRIGGER) !== 0;
    if (eventfds && !isTrigger) {
      this.#eventfds.set(request);
      return false;
    }
    if (eventfds) {
      doorbells.bind(index, start, eventfds);
    } else if (isTrigger && count === 0) {
      doorbells.unbindAll(index);
      this.#eventfds.clearIndex(index);
    }
    if (state !== "connected") return true;
    const body = eventfds ? doorbellBody(flags, index, start, count, doorbells) : plainIrqBody(request);
    try {
      await conversation.request(Command.DEVICE_SET_IRQS, body);
    } catch (error) {
      if (!(error instanceof PeerGone)) {
        if (eventfds) doorbells.bind(index, start, new Array(count).fill(-1));
        throw error;
      }
    }
    return true;
  }
}
