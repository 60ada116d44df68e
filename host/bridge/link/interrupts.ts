/**
 * The client's interrupts (SET_IRQS; docs/virtio-vfio-user.md, "DEVICE_SET_IRQS"): eventfds that the client waits on
 * become doorbells (doorbells.ts), eventfds by which it masks and unmasks stay here, and the device process is told the
 * rest.
 *
 * What was set up is kept as plain data, so that a device process that says HELLO later, the first or one after a
 * restart, can be told all of it (`introduce`), and one that was paused what changed meanwhile (`announce`).
 */
import { PeerGone } from "../../../shared/errors.js";
import type { Log } from "../../../shared/log.js";
import { closePeerFd } from "../../../shared/peer-fds.js";
import { NO_DOORBELL } from "../../../shared/spec/link.js";
import { Command, IrqSetFlags as Flags, Irq, NUM_PCI_IRQS } from "../../../shared/spec/vfio-user.js";
import type { IrqSetRequest } from "../../../shared/vfio-user/backend.js";
import { IrqEventfds } from "../../../shared/vfio-user/irqs/irq-eventfds.js";
import { FD_KIND } from "../state/layout.js";
import type { StateMemory } from "../state/state-memory.js";
import { doorbellBody, plainIrqBody } from "./bodies.js";
import type { Changes } from "./changes.js";
import type { DeviceState } from "./device-state.js";
import type { Doorbells } from "./doorbells.js";
import type { RequestChannel } from "./request-channel.js";

interface IndexState {
  enabled: boolean;
  /** Vectors from 0 on that the client gave eventfds, or took them away. */
  vectors: number;
  readonly masked: Set<number>;
}

/** What a client set up, as the state keeps it. */
export interface SavedInterrupts {
  readonly indices:
    | readonly { readonly enabled: boolean; readonly vectors: number; readonly masked: number[] }[]
    | null;
  /** Eventfds that mask and unmask. */
  readonly eventfds: readonly (readonly [action: number, index: number, vector: number, fd: number])[];
}

export class ClientInterrupts {
  readonly #state: DeviceState;
  readonly #changes: Changes;
  readonly #requests: RequestChannel;
  readonly #doorbells: Doorbells;
  readonly #log: Log;
  readonly #memory: StateMemory;
  readonly #eventfds: IrqEventfds;
  /** What the client set up; undefined while none is there. */
  #indices: readonly IndexState[] | undefined;
  /** Indices that were changed without the device process being told. */
  readonly #changed = new Set<number>();

  constructor(
    state: DeviceState,
    changes: Changes,
    requests: RequestChannel,
    doorbells: Doorbells,
    memory: StateMemory,
    log: Log,
  ) {
    this.#memory = memory;
    this.#state = state;
    this.#changes = changes;
    this.#requests = requests;
    this.#doorbells = doorbells;
    this.#log = log;
    this.#eventfds = new IrqEventfds((request) =>
      this.set(request).catch((error) => log.warn({ reason: error.message }, "interrupts were not set up again")),
    );
  }

  save(): SavedInterrupts {
    const { fds } = this.#memory;
    const indices = this.#indices?.map(({ enabled, vectors, masked }) => ({ enabled, vectors, masked: [...masked] }));
    const eventfds = this.#eventfds.all.map(([action, index, vector, fd]) => {
      return [action, index, vector, fds.idOf(fd)] as const;
    });
    return { indices: indices ?? null, eventfds };
  }

  /** Goes on with what another bridge set up; the device process is told all of it again. @throws StateError */
  restore({ indices, eventfds }: SavedInterrupts): void {
    this.#indices = indices?.map(({ enabled, vectors, masked }) => ({ enabled, vectors, masked: new Set(masked) }));
    for (const [flags, index, start, id] of eventfds) {
      const fd = this.#memory.fds.take(id, FD_KIND.EVENTFD);
      this.#eventfds.set({ flags, index, start, count: 1, eventfds: [fd] });
    }
    for (const index of indices?.keys() ?? []) this.#changed.add(index);
  }

  // The client's side.

  connect(): void {
    this.#indices = Array.from({ length: NUM_PCI_IRQS }, () => ({
      enabled: false,
      vectors: 0,
      masked: new Set<number>(),
    }));
  }

  /** The client is gone. At once: a device process that hears of it later must not ring its doorbells. */
  disconnect(): void {
    this.#indices = undefined;
    this.#doorbells.clear();
    this.#eventfds.clear();
  }

  /**
   * Carries SET_IRQS out, whose eventfds it takes over. Resolves when the device process knows of it; without one it is
   * kept for the next. Rejects with ProtocolError when that refuses, or ProtocolError or SystemError when there is no
   * room for the eventfds.
   */
  set(request: IrqSetRequest): Promise<void> {
    const client = this.#indices;
    const { flags, index, count, eventfds } = request;
    const isTrigger = (flags & Flags.ACTION_TRIGGER) !== 0;
    const disables = isTrigger && count === 0 && !eventfds;
    this.#memory.control.touch();
    // At once: what is signalled from here on must not mask or unmask behind it.
    if (disables) this.#eventfds.clearIndex(index);
    const apply = async () => {
      if (client === undefined || this.#indices !== client) {
        closeAll(eventfds);
        throw new PeerGone("no client is connected");
      }
      this.#memory.control.touch();
      if (eventfds && !isTrigger) {
        for (const fd of eventfds) if (fd >= 0) this.#memory.fds.keep(fd);
        this.#eventfds.set(request);
        return;
      }
      if (eventfds) await this.#bind(request, eventfds);
      else if (disables) await this.#unbindAll(request);
      else await this.#tell(plainIrqBody(request));
      note(client[index], request);
      this.#memory.control.touch();
      if (this.#state.name !== "connected" || this.#indices !== client) this.#changed.add(index);
    };
    return this.#state.isPaused ? apply() : this.#changes.orPaused(this.#changes.run(apply));
  }

  /** What loses its eventfd is announced before it is done, what gets one afterwards: see Doorbells. */
  async #bind({ flags, index, start, count }: IrqSetRequest, eventfds: readonly number[]): Promise<void> {
    const doorbells = this.#doorbells;
    const binds = eventfds.some((fd) => fd >= 0);
    try {
      doorbells.checkRoom(index, start, eventfds);
      if (!binds || doorbells.unbinds(index, start, eventfds)) {
        const numbers = eventfds.map((fd, i) => (fd < 0 ? NO_DOORBELL : doorbells.doorbell(index, start + i)));
        await this.#tell(doorbellBody(flags, index, start, numbers));
      }
    } catch (error) {
      closeAll(eventfds);
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

  async #unbindAll(request: IrqSetRequest): Promise<void> {
    try {
      await this.#tell(plainIrqBody(request));
    } finally {
      this.#doorbells.unbindAll(request.index);
    }
  }

  /** A device process that is not there, or leaves, is told when it says HELLO again. Rejects with ProtocolError. */
  async #tell(body: Uint8Array): Promise<void> {
    if (this.#state.name !== "connected") return;
    try {
      await this.#requests.request(Command.DEVICE_SET_IRQS, body);
    } catch (error) {
      if (!(error instanceof PeerGone)) throw error;
    }
  }

  // The device process's side; the caller is within a change.

  /** Tells all of it to a device process with that many vectors of each index, all of which are disabled there. */
  async introduce(irqCounts: readonly number[]): Promise<void> {
    if (!this.#doorbells.rebind()) this.#log.warn("the device has fewer doorbells than the client has vectors");
    this.#changed.clear();
    const bodies: Uint8Array[] = [];
    for (const [index, { enabled, vectors, masked }] of this.#indices?.entries() ?? []) {
      const most = irqCounts[index] ?? 0;
      const last = Math.min(most, Math.max(-1, ...masked) + 1);
      if (last > 0) bodies.push(boolsBody(Flags.ACTION_MASK, index, last, (vector) => masked.has(vector)));
      const count = Math.min(most, Math.max(1, vectors));
      if (enabled && count > 0) bodies.push(this.#doorbellsBody(index, count));
    }
    for (const body of bodies) await this.#requests.request(Command.DEVICE_SET_IRQS, body);
  }

  /** Tells a device process what changed while it was not told. */
  async announce(irqCounts: readonly number[]): Promise<void> {
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const index of changed) {
      const count = irqCounts[index] ?? 0;
      const state = this.#indices?.[index];
      if (count === 0 || state === undefined) continue;
      const { enabled, masked } = state;
      const bodies = enabled
        ? [
            boolsBody(Flags.ACTION_MASK, index, count, (vector) => masked.has(vector)),
            boolsBody(Flags.ACTION_UNMASK, index, count, (vector) => !masked.has(vector)),
            this.#doorbellsBody(index, count),
          ]
        : [plainIrqBody({ flags: Flags.DATA_NONE | Flags.ACTION_TRIGGER, index, start: 0, count: 0 })];
      for (const body of bodies) await this.#requests.request(Command.DEVICE_SET_IRQS, body);
    }
    // Until then it may have rung what had become another vector's doorbell.
    if (changed.length > 0) this.#doorbells.signalAll();
  }

  #doorbellsBody(index: number, count: number): Uint8Array {
    const numbers = this.#doorbells.numbers(index, 0, count);
    return doorbellBody(Flags.DATA_EVENTFD | Flags.ACTION_TRIGGER, index, 0, numbers);
  }
}

/** Notes a request that was carried out, or that there was nobody for. Not for eventfds that mask or unmask. */
function note(state: IndexState, { flags, index, start, count, bools }: IrqSetRequest): void {
  const action = flags & Flags.ACTIONS_MASK;
  if (action === Flags.ACTION_TRIGGER) {
    if (count === 0) {
      Object.assign(state, { enabled: false, vectors: 0 });
      state.masked.clear();
    } else if (flags & Flags.DATA_EVENTFD) {
      state.enabled = true;
      state.vectors = Math.max(state.vectors, start + count);
    } else if (index === Irq.MSIX) {
      // Naming its vectors enables MSI-X, with or without eventfds.
      state.enabled = true;
    }
    return;
  }
  for (let n = 0; n < count; n++) {
    if (bools && !bools[n]) continue;
    if (action === Flags.ACTION_MASK) state.masked.add(start + n);
    else state.masked.delete(start + n);
  }
}

function boolsBody(action: number, index: number, count: number, applies: (vector: number) => boolean): Uint8Array {
  const bools = Uint8Array.from({ length: count }, (_, vector) => (applies(vector) ? 1 : 0));
  return plainIrqBody({ flags: Flags.DATA_BOOL | action, index, start: 0, count, bools });
}

function closeAll(fds: readonly number[] = []): void {
  for (const fd of fds) if (fd >= 0) closePeerFd(fd);
}
