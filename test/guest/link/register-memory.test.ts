/** Reads of registers that are answered from memory: that they are, and that nobody can tell; over both links. */
import test, { type ExecutionContext } from "ava";
import { Regions } from "../../../guest/function/regions.js";
import { Errno, ProtocolError } from "../../../shared/errors.js";
import { Capability, Express, Header, Msix } from "../../../shared/spec/pci.js";
import { Command, MigrationState, Region } from "../../../shared/spec/vfio-user.js";
import { Client } from "../../../shared/vfio-user/client/client.js";
import { FILE_SIZE, ID, Offsets, RegisterDevice, statusOf, TABLE } from "../../fakes/register-device.js";
import { connectDevice, type Kind } from "./machine.js";

type Connected = Awaited<ReturnType<typeof connectDevice<RegisterDevice>>>;
interface Machine extends Connected {
  read(offset: number, count?: number, region?: number): Promise<number>;
  write(offset: number, value: number, count?: number): Promise<void>;
  /** Reads that the device process was asked for, meanwhile. */
  asked(act: () => Promise<unknown>): Promise<number>;
}

function over(kinds: readonly Kind[], title: string, run: (t: ExecutionContext, machine: Machine) => Promise<void>) {
  for (const kind of kinds) {
    test.serial(`${kind}: ${title}`, async (t) => {
      const connected = await connectDevice(kind, new RegisterDevice());
      const { client, endpoint } = connected;
      let count = 0;
      const handle = endpoint.handle.bind(endpoint);
      endpoint.handle = (command) => {
        if (command.command === Command.REGION_READ) count++;
        handle(command);
      };
      const { readWord } = Regions.prototype;
      Regions.prototype.readWord = function (...access) {
        count++;
        return readWord.apply(this, access);
      };
      const asked = async (act: () => Promise<unknown>) => {
        const before = count;
        await act();
        return count - before;
      };
      try {
        await run(t, { ...connected, asked, ...accesses(client) });
      } finally {
        Regions.prototype.readWord = readWord;
        t.deepEqual(await connected.end(), []);
      }
    });
  }
}
const all: readonly Kind[] = ["local", "virtio", "isolated"];

function accesses(client: Client) {
  return {
    read: async (offset: number, count = 4, region: number = Region.BAR0) =>
      Buffer.from(await client.regionRead(region, offset, count)).readUIntLE(0, count),
    write: (offset: number, value: number, count = 4) => {
      const bytes = Buffer.alloc(count);
      bytes.writeUIntLE(value, 0, count);
      return client.regionWrite(Region.BAR0, offset, bytes);
    },
  };
}

/** The device process has taken what was posted; a read of config space that it answers comes after. */
const settled = ({ read }: Pick<Machine, "read">) => read(Offsets.COUNTER);

over(all, "stored values come from memory, others from the device", async (t, { read, asked, client }) => {
  const values: [number, number, number][] = [
    [Offsets.ID, 4, ID],
    [Offsets.ID + 1, 2, (ID >>> 8) & 0xffff],
    [Offsets.BYTE, 1, 0x0f],
    [Offsets.FREE, 4, 0],
  ];
  for (const [offset, count, value] of values) {
    t.is(await asked(async () => t.is(await read(offset, count), value)), 0, `${count} bytes at ${offset}`);
  }
  t.is(
    await asked(async () =>
      t.deepEqual(await client.regionRead(Region.BAR0, Offsets.STATUS, 8), Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0)),
    ),
    1,
  );
  t.is(await asked(async () => t.is(await read(Offsets.COUNTER), 2)), 1);
  t.is(await asked(async () => t.is(await read(FILE_SIZE), 0x77)), 1);
  t.is(await asked(async () => t.is((await client.regionRead(Region.BAR0, 0, 0x1000)).length, 0x1000)), 1);
  // The MSI-X table: all its vectors are masked after a reset.
  t.is(await asked(async () => t.is(await read(TABLE + Msix.ENTRY_CONTROL), 1)), 1);
  t.is(await asked(async () => t.is(await read(0, 4, Region.CONFIG), 0x0004_fff4)), 0);
});

over(all, "a read sees all writes ahead of it", async (t, { read, write, client }) => {
  for (let n = 1; n <= 200; n++) {
    await write(Offsets.CONTROL, n);
    t.is(await read(Offsets.STATUS), statusOf(n));
    t.is(await read(Offsets.CONTROL), n);
  }
  // Without waiting for anything.
  for (let n = 1; n <= 200; n++) {
    const written = write(Offsets.CONTROL, n * 7);
    const status = read(Offsets.STATUS);
    const control = read(Offsets.CONTROL);
    await written;
    t.is(await status, statusOf(n * 7));
    t.is(await control, n * 7);
  }
  await client.writeMulti([
    { region: Region.BAR0, offset: Offsets.CONTROL, bytes: Uint8Array.of(5, 0, 0, 0) },
    { region: Region.BAR0, offset: Offsets.WORD, bytes: Uint8Array.of(6, 0) },
  ]);
  t.is(await read(Offsets.STATUS), statusOf(5));
  t.is(await read(Offsets.WORD, 2), 6);
  await write(Offsets.BYTE, 0xa0, 1);
  t.is(await read(Offsets.BYTE, 1), 0xaf);
  await write(FILE_SIZE - 4, 0xfedc_ba98);
  t.is(await read(FILE_SIZE - 4), 0xfedc_ba98);
});

over(all, "once writes are dealt with, reads come from memory again", async (t, machine) => {
  const { read, write, client, asked } = machine;
  const refused = { instanceOf: ProtocolError };
  await write(Offsets.CONTROL, 1);
  await t.throwsAsync(client.regionWrite(Region.BAR0, 0x1000, Uint8Array.of(1)), refused);
  await t.throwsAsync(client.writeMulti([{ region: 9, offset: 0, bytes: Uint8Array.of(1) }]), refused);
  await client.regionWrite(Region.BAR0, 0, new Uint8Array(0));
  await settled(machine);
  t.is(await asked(async () => t.is(await read(Offsets.STATUS), statusOf(1))), 0);
});

over(all, "what the device changes by itself, and a reset, are seen", async (t, machine) => {
  const { read, write, device, client, asked } = machine;
  device.file.set("STATUS", 0x42);
  t.is(await asked(async () => t.is(await read(Offsets.STATUS), 0x42)), 0);
  await write(Offsets.CONTROL, 9);
  await write(Offsets.STATUS, 0xff);
  await client.reset();
  t.is(await read(Offsets.STATUS), 0);
  t.is(await read(Offsets.CONTROL), 0);
  t.is(await read(Offsets.ID), ID);
  await write(Offsets.CONTROL, 9);
  // A function-level reset.
  const config = (offset: number) => read(offset, 1, Region.CONFIG);
  let at = await config(Header.CAPABILITIES);
  while ((await config(at)) !== Capability.PCI_EXPRESS) at = await config(at + 1);
  await client.regionWrite(Region.CONFIG, at + Express.DEVICE_CONTROL, Uint8Array.of(0x10, 0xa8));
  t.is(await read(Offsets.CONTROL), 0);
  await settled(machine);
  t.is(await asked(async () => t.is(await read(Offsets.CONTROL), 0)), 0);
});

over(all, "while the function stands still its registers are refused, and config space is not", async (t, machine) => {
  const { read, write, client, asked } = machine;
  await write(Offsets.CONTROL, 3);
  await client.migration.setState(MigrationState.STOP);
  await t.throwsAsync(read(Offsets.CONTROL), {
    instanceOf: ProtocolError,
    message: new RegExp(`errno ${Errno.EINVAL}`),
  });
  t.is(await read(0, 2, Region.CONFIG), 0xfff4);
  await client.migration.setState(MigrationState.STOP_COPY);
  const stream = await client.migDataRead(1 << 16);
  await client.migration.setState(MigrationState.RUNNING);
  t.is(await asked(async () => t.is(await read(Offsets.CONTROL), 3)), 0);
  await write(Offsets.CONTROL, 4);
  await client.migration.setState(MigrationState.RESUMING);
  await client.migDataWrite(stream);
  await client.migration.setState(MigrationState.RUNNING);
  t.is(await read(Offsets.CONTROL), 3);
  t.is(await read(Offsets.STATUS), statusOf(3));
  await settled(machine);
  t.is(await asked(async () => t.is(await read(Offsets.CONTROL), 3)), 0);
});

over(all, "the next client has them too, as after a reset", async (t, { client, socket, write, asked }) => {
  // Posted, and not waited for.
  for (let n = 0; n < 50; n++) void write(Offsets.CONTROL, n);
  await write(Offsets.CONTROL, 50);
  client.close();
  const next = await Client.connect(socket);
  t.teardown(() => next.close());
  const { read, write: writeNext } = accesses(next);
  t.is(await asked(async () => t.is(await read(Offsets.CONTROL), 0)), 0);
  await writeNext(Offsets.CONTROL, 2);
  t.is(await read(Offsets.STATUS), statusOf(2));
  await read(Offsets.COUNTER);
  t.is(await asked(async () => t.is(await read(Offsets.STATUS), statusOf(2))), 0);
  next.close();
});
