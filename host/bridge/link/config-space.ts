/** The device's config space (docs/virtio-vfio-user.md, "Device configuration layout"). */
import { MAX_MESSAGE_SIZE } from "../../../shared/limits.js";
import { ABI_VERSION, Config, ConfigStatus, MAGIC } from "../../../shared/spec/link.js";
import { MAX_CONFIG_SIZE } from "../../../shared/spec/vhost-user.js";

export class ConfigSpace {
  readonly bytes = new Uint8Array(MAX_CONFIG_SIZE);
  readonly #view = Config.view(new DataView(this.bytes.buffer));

  /** `uuid`: 16 bytes. `name` is cut to what fits. */
  constructor(windowSize: number, uuid: Uint8Array, name: string) {
    const view = this.#view;
    view.magic = MAGIC;
    view.abiVersion = ABI_VERSION;
    view.status = ConfigStatus.BRIDGE_UP;
    view.windowSize = windowSize;
    view.maxMessageSize = MAX_MESSAGE_SIZE;
    this.bytes.set(uuid.subarray(0, 16), Config.offsets.uuid);
    // At least one NUL stays at the end; a character is never cut in two.
    new TextEncoder().encodeInto(name, this.bytes.subarray(Config.offsets.name, Config.size - 1));
  }

  /** The client's generation, and the status. */
  save() {
    const { generation, status } = this.#view;
    return { generation, status };
  }

  restore(saved: ReturnType<ConfigSpace["save"]>): void {
    Object.assign(this.#view, saved);
  }

  set doorbells(count: number) {
    this.#view.doorbells = count;
  }

  clientConnected(generation: number): void {
    this.#view.generation = generation;
    this.#view.status |= ConfigStatus.CLIENT_CONNECTED;
  }

  clientGone(): void {
    this.#view.status &= ~ConfigStatus.CLIENT_CONNECTED;
  }

  /** The link is broken, and the driver has to reset the device. */
  set needsReset(needsReset: boolean) {
    if (needsReset) this.#view.status |= ConfigStatus.NEEDS_RESET;
    else this.#view.status &= ~ConfigStatus.NEEDS_RESET;
  }
}
