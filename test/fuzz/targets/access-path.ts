/**
 * The access path between a client and a device process that are both hostile: the client bends its messages and sends
 * them in pieces, the device process answers what it likes and rewrites the rings at any time. Whatever comes to the
 * client answers something that it sent, whatever comes to the device passes TypeScript's checks, and nobody writes
 * outside of the buffers.
 */
import assert from "node:assert/strict";
import { Command, Header, HeaderFlags, RegionAccess } from "../../../shared/spec/vfio-user.js";
import { RING_INDEX_OFFSET } from "../../../shared/spec/virtio.js";
import { checkBody, checkRequest } from "../../../shared/vfio-user/checks.js";
import { Stop } from "../../../shared/vfio-user/socket/access-path.js";
import { AccessRig, BUFFER_SIZE, encode, type Message } from "../../fakes/access-rig.js";
import type { Choices } from "../choices.js";
import { FdPool } from "../fds.js";
import { bend, oddNumber, spoil } from "../mutate.js";
import type { Context, Instance } from "../target.js";
import { hostileCommand } from "../vfio-user-messages.js";

const REGION_SIZES = [0x1000, 0, 0x1000, 0, 0, 0, 0, 0x100, 0, 0x1000, 0x1000, 0x1000];
const POSTED = 1;
const DEVICE = { regionSizes: REGION_SIZES, postedRegions: POSTED, irqCounts: [] };

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** @throws when it is no access that TypeScript would pass on */
function checkPassed({ command, flags, body }: Message): void {
  checkBody(command, body.length, 0);
  const bytes = new Uint8Array(body);
  const data = new DataView(bytes.buffer);
  const frame = { id: 0, command, flags, errno: 0, bytes, data, offset: 0, length: bytes.length, fds: [] };
  checkRequest({ ...frame, position: 0, isAgain: false }, DEVICE);
}

/** The client's socket may be closed by now. */
function send(rig: AccessRig, bytes: Uint8Array): void {
  try {
    if (bytes.length > 0) rig.send(bytes);
  } catch (error) {
    if ((error as { code?: string }).code !== "EPIPE") throw error;
  }
}

export function createTarget({ trace }: Context): Instance {
  /** One mistake of the device process's, in a reply or in the rings. */
  function misbehave(random: Choices, rig: AccessRig, asked: Message | undefined): void {
    const ring = random.pick([rig.toRing, rig.fromRing]);
    switch (random.below(4)) {
      case 0:
        ring.descriptor(random.below(ring.size), oddNumber(random, 4), oddNumber(random, 4), oddNumber(random, 2) & 7);
        return;
      case 1:
        ring.view.setUint16(
          random.pick([ring.available, ring.used]) + random.pick([0, RING_INDEX_OFFSET, 4]),
          oddNumber(random, 2),
          true,
        );
        return;
      case 2:
        rig.reply(random.bytes(random.between(1, 100)));
        return;
      default: {
        const { id, command, body } = asked ?? { id: 0x8000, command: Command.REGION_READ, body: Buffer.alloc(16) };
        const bytes = encode(id, command, Buffer.concat([body, random.bytes(random.below(9))]), HeaderFlags.TYPE_REPLY);
        spoil(random, bytes, random.pick([Header, RegionAccess]), random.pick([0, Header.size]));
        rig.reply(random.chance(10) ? bend(random, bytes).subarray(0, BUFFER_SIZE) : bytes);
      }
    }
  }

  /** The device process answers what it was asked, mostly. */
  function answer(random: Choices, rig: AccessRig, asked: Message): void {
    if ((asked.flags & HeaderFlags.NO_REPLY) !== 0 || random.chance(5)) return;
    if (random.chance(15)) rig.answer(asked, undefined, random.pick([1, 5, 22]));
    else if (asked.command === Command.REGION_READ) {
      rig.answer(asked, Buffer.concat([asked.body, random.bytes(asked.body.readUInt32LE(12))]));
    } else rig.answer(asked, asked.body.subarray(0, asked.command === Command.REGION_WRITE ? 16 : 8));
  }

  async function round(random: Choices): Promise<void> {
    const fds = new FdPool();
    const rig = new AccessRig({ eventIndex: random.chance(50), regionSizes: REGION_SIZES, postedRegions: POSTED });
    const sent = new Map<number, number>();
    let isHonest = true;
    try {
      rig.offer(random.below(16));
      for (let step = random.between(1, 30); step > 0 && rig.gone === undefined; step--) {
        for (let n = random.below(4); n > 0; n--) {
          const id = random.below(0x1_0000);
          const { bytes } = hostileCommand(random, id, fds);
          const header = Header.view(new DataView(bytes.buffer, bytes.byteOffset));
          trace.note("client", Buffer.from(bytes.subarray(0, 48)).toString("hex"));
          if (bytes.length >= Header.size) sent.set(header.id, header.command);
          if (random.chance(10)) {
            const cut = random.below(bytes.length + 1);
            send(rig, bytes.subarray(0, cut));
            await turn();
            send(rig, bytes.subarray(cut));
          } else send(rig, bytes);
        }
        await turn();
        let asked: Message | undefined;
        for (let next = rig.toRing.take(); next !== undefined && isHonest; next = rig.toRing.take()) {
          asked = rig.at(next);
          if (asked === undefined) break;
          checkPassed(asked);
          answer(random, rig, asked);
        }
        if (random.chance(30)) {
          trace.note("mistake");
          isHonest = false;
          misbehave(random, rig, asked);
          rig.kick();
        }
        if (random.chance(70)) rig.offer(random.below(4));
        await turn();
        if (random.chance(10) && rig.connection.takeAccess()) rig.connection.finish();
        if (random.chance(10)) rig.path.stop(Stop.CHANNEL);
        if (random.chance(50)) rig.path.start(Stop.CHANNEL);
        if (rig.commands.splice(0).length > 0) rig.connection.finish();
        if (rig.gone !== undefined) break;
        for (const { id, command, flags } of rig.receive()) {
          assert.equal(flags & HeaderFlags.TYPE_MASK, HeaderFlags.TYPE_REPLY);
          assert.equal(sent.get(id), command, `a reply to nothing: ${command}, id ${id}`);
        }
      }
      rig.checkMemory();
    } finally {
      rig.close();
      fds.close();
    }
  }

  return {
    round,
    async probe() {
      const rig = new AccessRig({ regionSizes: REGION_SIZES, postedRegions: POSTED });
      try {
        rig.offer();
        rig.send(encode(3, Command.REGION_READ, RegionAccess.encode({ region: 2, offset: 8, count: 4 })));
        const asked = await rig.until(() => rig.take());
        rig.answer(asked, Buffer.concat([asked.body, Buffer.alloc(4, 7)]));
        assert.deepEqual((await rig.until(() => rig.receive().at(0))).body.subarray(16), Buffer.alloc(4, 7));
      } finally {
        rig.close();
      }
    },
    close() {},
  };
}
