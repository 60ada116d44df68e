/**
 * What the device process is told of a client: that it is there, its maps and its interrupts, and that it is gone. All
 * of it waits for the process, and rejects with ProtocolError when that refuses, with PeerGone when it is not there any
 * more.
 */
import { PeerGone } from "../../../shared/errors.js";
import type { Log } from "../../../shared/log.js";
import { ClientConnected, ClientGone, LinkCommand } from "../../../shared/spec/link.js";
import { Command } from "../../../shared/spec/vfio-user.js";
import type { ClientVersion, MemoryMap } from "../../../shared/vfio-user/backend.js";
import { encodeUnmapRange, mapParts } from "../../../shared/vfio-user/dma/dma-ranges.js";
import { mapBody } from "./bodies.js";
import type { ClientIrqs } from "./client-irqs.js";
import type { Places } from "./places.js";
import type { DeviceProcess } from "./process.js";

/** What the device process is told of. */
export interface ShownClient {
  readonly version: ClientVersion;
  readonly generation: number;
  readonly maps: ReadonlySet<MemoryMap>;
  readonly irqs: ClientIrqs;
  /** Maps that the process has been told of. */
  readonly shownMaps: Set<MemoryMap>;
  /** Interrupt indices that were changed without its being told. */
  readonly changedIrqs: Set<number>;
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

  /** That a client is there. It knows nothing of it yet. */
  async client(client: ShownClient): Promise<void> {
    const { conversation, doorbells, summary } = this.#process;
    const { major, minor, maxDataXferSize, maxMessageFds } = client.version;
    const { generation } = client;
    client.shownMaps.clear();
    await conversation.request(
      LinkCommand.CLIENT_CONNECTED,
      ClientConnected.encode({ generation, major, minor, maxDataXferSize, maxMessageFds }),
    );
    this.#places.releaseKept();
    if (!doorbells.rebind()) this.#log.warn("the device has fewer doorbells than the client has vectors");
    client.changedIrqs.clear();
    for (const body of client.irqs.bodies(doorbells, summary?.irqCounts ?? [])) {
      await conversation.request(Command.DEVICE_SET_IRQS, body);
    }
  }

  /** What it does not know of a client: maps, only as long as the client `isThere`, and interrupts. */
  async changes(client: ShownClient, isThere: () => boolean): Promise<void> {
    const { conversation, doorbells, summary } = this.#process;
    for (const map of client.maps) {
      if (!isThere()) return;
      if (!client.shownMaps.has(map)) await this.map(client, map);
    }
    const changed = [...client.changedIrqs];
    client.changedIrqs.clear();
    for (const index of changed) {
      for (const body of client.irqs.changes(index, doorbells, summary?.irqCounts ?? [])) {
        await conversation.request(Command.DEVICE_SET_IRQS, body);
      }
    }
    // Until then it may have rung what had become another vector's doorbell.
    if (changed.length > 0) doorbells.signalAll();
  }

  /** Puts a map where it can be reached, and tells the device process of it, part by part. */
  async map(client: ShownClient, map: MemoryMap): Promise<void> {
    await this.#places.put(map, this.#process.isolated);
    if (!client.maps.has(map)) {
      // Given up while the device VM was paused.
      await this.#places.takeBack([map]);
      return;
    }
    client.shownMaps.add(map);
    const { conversation } = this.#process;
    const { address, size } = map;
    try {
      const parts = mapParts(map, this.#places.copied.has(map));
      for (const [n, part] of parts.entries()) {
        await conversation.request(Command.DMA_MAP, mapBody(part)).catch(async (error) => {
          if (n > 0) await conversation.request(Command.DMA_UNMAP, encodeUnmapRange({ address, size }));
          throw error;
        });
      }
    } catch (error) {
      client.shownMaps.delete(map);
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
