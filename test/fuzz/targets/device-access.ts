/**
 * Plain register accesses at the device's end, in C++, against the endpoint's: the same hostile messages to two devices
 * that are the same, which have to answer the same and to be the same afterwards.
 */
import assert from "node:assert/strict";
import { Command, Header, Region, RegionAccess, WriteMulti, WriteMultiEntry } from "../../../shared/spec/vfio-user.js";
import { encode } from "../../fakes/access-rig.js";
import { AccessTwins } from "../../fakes/access-twins.js";
import type { Choices } from "../choices.js";
import { bend, oddNumber, spoil } from "../mutate.js";
import { turn } from "../peer.js";
import type { Context, Instance } from "../target.js";

/** Of RegionsDevice, and one that there is not. */
const REGIONS = 15;

function accessBody(random: Choices): { region: number; offset: number; count: number } {
  const count = random.weighted([
    [8, random.pick([1, 2, 4])],
    [1, random.below(12)],
  ]);
  const offset = random.weighted([
    [8, random.below(0x40) * 4 + random.pick([0, 0, 0, 1, 2])],
    [2, random.pick([0x1000, 0x3800, 100, 10, 8]) - random.below(5)],
    [1, oddNumber(random, 6)],
  ]);
  return { region: random.below(REGIONS), offset, count };
}

function message(random: Choices): Buffer<ArrayBuffer> {
  const id = random.below(0x1_0000);
  const flags = random.weighted([
    [8, 0],
    [2, 0x10],
    [1, oddNumber(random, 4)],
  ]);
  const access = accessBody(random);
  switch (random.below(3)) {
    case 0:
      return encode(id, Command.REGION_READ, RegionAccess.encode(access), flags);
    case 1: {
      const length = random.chance(95) ? access.count : random.below(20);
      return encode(
        id,
        Command.REGION_WRITE,
        Buffer.concat([RegionAccess.encode(access), random.bytes(length)]),
        flags,
      );
    }
    default: {
      const entries = Array.from({ length: random.below(4) }, () => {
        const entry = WriteMultiEntry.encode(accessBody(random));
        entry.set(random.bytes(8), WriteMultiEntry.offsets.data);
        return entry;
      });
      const writes = random.chance(95) ? entries.length : oddNumber(random, 4);
      return encode(id, Command.REGION_WRITE_MULTI, Buffer.concat([WriteMulti.encode({ writes }), ...entries]), flags);
    }
  }
}

export function createTarget({ trace }: Context): Instance {
  return {
    async round(random: Choices): Promise<void> {
      const twins = new AccessTwins();
      await twins.start();
      for (let step = random.between(1, 40); step > 0; step--) {
        let bytes = message(random);
        if (random.chance(10)) spoil(random, bytes, random.pick([Header, RegionAccess]), random.pick([0, Header.size]));
        if (random.chance(5)) bytes = Buffer.from(bend(random, bytes));
        trace.note("access", bytes);
        // Of its own, as a message in a buffer is.
        twins.compare(new Uint8Array(bytes));
      }
      // What was collected is given back in a turn of the event loop.
      await turn();
    },
    async probe() {
      const twins = new AccessTwins();
      await twins.start();
      const access = RegionAccess.encode({ region: Region.BAR0, offset: 8, count: 4 });
      assert.ok(twins.compare(encode(1, Command.REGION_READ, access)));
    },
    close() {},
  };
}
