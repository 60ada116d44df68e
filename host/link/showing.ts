/**
 * Showing the device process a client, its maps and its interrupts, and telling it that one is gone. All of it waits for the
 * process, and rejects with ProtocolError when that refuses, with PeerGone when it is not there any more.
 */
import { PeerGone } from "../../shared/errors.js";
import type { Log } from "../../shared/log.js";
import { ClientConnected, ClientGone, LinkCommand } from "../../shared/spec/link.js";
import { Command } from "../../shared/spec/vfio-user.js";
import type { ClientVersion, MemoryMap } from "../../shared/vfio-user/backend.js";
import { mapBody } from "./bodies.js";
import type { ClientIrqs } from "./client-irqs.js";
import type { Places } from "./places.js";
import type { DeviceProcess } from "./process.js";

/** What of a client is shown. */
export interface ShownClient {
  readonly version: ClientVersion;
  readonly generation: number;
  readonly maps: ReadonlySet<MemoryMap>;
  readonly irqs: ClientIrqs;
}

export class Showing {
  readonly #process: DeviceProcess;
  readonly #places: Places;
  readonly #log: Log;

  constructor(process: DeviceProcess, places: Places, log: Log) {
    this.#process = process;
    this.#places = places;
    this.#log = log;
  }

  /** All of a client; maps only as long as it `isThere`. */
  async client({ generation, version, maps, irqs }: ShownClient, isThere: () => boolean): Promise<void> {
    const { conversation, doorbells, summary } = this.#process;
    const { major, minor, maxDataXferSize, maxMessageFds } = version;
    await conversation.request(
      LinkCommand.CLIENT_CONNECTED,
      ClientConnected.encode({ generation, major, minor, maxDataXferSize, maxMessageFds }),
    );
    this.#places.releaseKept();
    for (const map of maps) if (isThere()) await this.map(map);
    if (!doorbells.rebind()) this.#log.warn("the device has fewer doorbells than the client has vectors");
    for (const body of irqs.bodies(doorbells, summary?.irqCounts ?? [])) {
      await conversation.request(Command.DEVICE_SET_IRQS, body);
    }
  }

  /** Puts a map where it can be reached, and tells the device process of it. */
  async map(map: MemoryMap): Promise<void> {
    await this.#places.put(map, this.#process.isolated);
    try {
      await this.#process.conversation.request(Command.DMA_MAP, mapBody(map, this.#places.copied.has(map)));
    } catch (error) {
      await this.#places.takeBack([map]);
      throw error;
    }
  }

  /** That a client is gone. Never rejects. */
  async gone(generation: number): Promise<void> {
    const body = ClientGone.encode({ generation });
    await this.#process.conversation.request(LinkCommand.CLIENT_GONE, body).catch((error) => {
      // A device process that is going has no client to let go of any more.
      if (error instanceof PeerGone) this.#log.debug(error.message);
      else this.#log.warn({ reason: error.message }, "the device process did not let go of a client");
    });
  }
}
