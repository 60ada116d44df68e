/**
 * A client that answers no DMA message while it waits for a reply, as stock QEMU: nothing that it waits for waits for
 * such an answer, whatever the device's own deadline.
 */
import test, { type ExecutionContext } from "ava";
import { MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { CommandBits, Header } from "../../../shared/spec/pci.js";
import { Region } from "../../../shared/spec/vfio-user.js";
import { ClientDma } from "../../../shared/vfio-user/client/dma.js";
import { Commands, CopyDevice, Registers, Statuses } from "../../fakes/copy-device.js";
import { type Kind, memory, setUpWith } from "./machine.js";

const BASE = 0x1_0000_0000;
/** Longer than the client waits for a reply. */
const FOR_EVER = 600_000;

/** Clients keep what their servers ask, until `answer` answers it all. A test has one client at a time. */
function hold(t: ExecutionContext): { readonly count: number; answer(): void } {
  const { command } = ClientDma.prototype;
  const release = () => {
    ClientDma.prototype.command = command;
  };
  t.teardown(release);
  const answers: (() => void)[] = [];
  ClientDma.prototype.command = function (connection, frame) {
    const { bytes, offset, length } = frame;
    const kept = bytes.slice(offset, offset + length);
    const late = { ...frame, fds: [], bytes: kept, data: new DataView(kept.buffer), offset: 0 };
    answers.push(() => {
      // Its `finish` was called.
      command.call(
        this,
        {
          send: connection.send.bind(connection),
          sendError: connection.sendError.bind(connection),
          finish() {},
        } as unknown as typeof connection,
        late,
      );
    });
    connection.finish();
  };
  return {
    get count() {
      return answers.length;
    },
    answer() {
      release();
      for (const answer of answers.splice(0)) answer();
    },
  };
}

/** A device in the middle of a copy from memory that is reached by messages, to memory that is not. */
async function copying(t: ExecutionContext, kind: Kind) {
  const machine = await setUpWith(t, kind, new CopyDevice(), { quiesceDeadlineMs: FOR_EVER });
  t.teardown(async () => void (await machine.end()));
  const { client, bind, enable, copy, write32 } = machine;
  const target = memory(t, MiB);
  const source = new Uint8Array(PAGE_SIZE).fill(7);
  await client.mapMemory({ address: BASE, size: PAGE_SIZE });
  client.registerMemory(BASE, source);
  await client.mapMemory({ address: 2 * BASE, size: MiB, fd: target.fd });
  await client.mapMemory({ address: 3 * BASE, size: MiB, fd: memory(t, MiB).fd });
  await bind();
  await enable();
  // The first DMA asks for the layout, which is answered.
  t.is(await copy(BASE, 2 * BASE, 16), Statuses.DONE);
  target.bytes.fill(0);
  const held = hold(t);
  const { next } = machine.doorbells[1];
  const done = Promise.race([next(), machine.doorbells[0].next()]);
  await write32(Registers.COMMAND, Commands.COPY);
  while (held.count === 0) await new Promise((resolve) => setImmediate(resolve));
  return { ...machine, target, held, done };
}

for (const kind of ["local", "virtio"] as const) {
  test.serial(`${kind}: an unmap of other memory, and the DMA goes on when it is answered`, async (t) => {
    const { client, held, done, read32, target } = await copying(t, kind);
    await client.unmapMemory(3 * BASE, MiB);
    t.is(held.count, 1);
    held.answer();
    await done;
    t.is(await read32(Registers.STATUS), Statuses.DONE);
    t.is(target.bytes[15], 7);
  });

  test.serial(`${kind}: an unmap of the memory itself ends the DMA`, async (t) => {
    const { client, held, done, read32, target } = await copying(t, kind);
    await client.unmapMemory(BASE, PAGE_SIZE);
    await done;
    t.is(await read32(Registers.STATUS), Statuses.DMA_ERROR);
    held.answer();
    t.is((await client.getInfo()).numIrqs, 5, "a late answer is nobody's");
    t.is(target.bytes[15], 0);
  });

  test.serial(`${kind}: a reset, and bus mastering switched off`, async (t) => {
    const { client, held, target } = await copying(t, kind);
    await client.reset();
    held.answer();
    t.is((await client.getInfo()).numIrqs, 5);
    t.is(target.bytes[15], 0);
    const again = await copying(t, kind);
    await again.client.regionWrite(Region.CONFIG, Header.COMMAND, Uint8Array.of(CommandBits.MEMORY));
    await again.done;
    again.held.answer();
    t.is((await again.client.getInfo()).numIrqs, 5);
    t.is(again.target.bytes[15], 0);
  });
}
