/**
 * The NVMe controller against a driver that writes any register, rings any doorbell and submits any entry, with PRPs to
 * memory that is mapped, mapped for one direction only, reached by messages, or not there. The storage fails now and
 * then. The probe resets the controller and does I/O with a driver of our own.
 */
import assert from "node:assert/strict";
import { createController } from "../../../guest/devices/nvme/index.js";
import { Cc, DOORBELL_OFFSET, REGISTERS_SIZE } from "../../../guest/devices/nvme/registers.js";
import { COMPLETION_ENTRY_SIZE, CQES, SQES, SUBMISSION_ENTRY_SIZE } from "../../../guest/devices/nvme/spec.js";
import { openMemory } from "../../../guest/devices/nvme/storage/open-storage.js";
import { NvmeDriver } from "../../../scripts/drivers/nvme.js";
import type { NvmeTransport } from "../../../scripts/drivers/nvme-queue.js";
import { pageAligned } from "../../../shared/page-aligned.js";
import { setU64 } from "../../../shared/struct/struct.js";
import { FakeStorage } from "../../guest/devices/nvme/fake-storage.js";
import { FakeDma, type FakeMap, nothingShared } from "../../guest/devices/nvme/machine.js";
import type { Choices } from "../choices.js";
import { oddNumber } from "../mutate.js";
import { prp, writeEntry } from "../nvme-commands.js";
import { turn } from "../peer.js";
import { CANARY, type Context, checkCanary, type Instance } from "../target.js";

const MEMORY_SIZE = 0x20_0000;
/** At least what two disks make of buffers. */
const BUFFERS_SIZE = 64 * 1024 * 1024;
const DISK_SIZE = 0x10_0000;
const BLOCK_SIZE = 512;
const QUEUES = 3;
const BASE = 0x1_2340_0000;
/** Two that are neighbours for the driver and not in memory; one reached by messages; one for each direction. */
const MAPS: readonly FakeMap[] = [
  { address: BASE, size: 0x8_0000, offset: 0x1000 },
  { address: BASE + 0x8_0000, size: 0x4_0000, offset: 0x10_0000 },
  { address: BASE + 0x20_0000, size: 0x1_0000, offset: 0x15_0000, windowed: false },
  { address: BASE + 0x30_0000, size: 0x1_0000, offset: 0x17_0000, writable: false },
  { address: BASE + 0x40_0000, size: 0x1_0000, offset: 0x19_0000, readable: false },
];
const WRITABLE = MAPS.filter(({ writable }) => writable !== false);
/** Where queues are, in the first map: 16 entries each, a page apart. */
const QUEUE_ENTRIES = 16;
const REGISTER = { CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30 } as const;

class Interrupts {
  count = 0;
  readonly byPin = false;
  readonly #pending = new Set<number>();
  readonly #waiting = new Map<number, { resolve(): void; reject(error: Error): void }>();

  trigger(vector: number): void {
    assert.ok(Number.isInteger(vector) && vector >= 0 && vector <= QUEUES, `interrupt vector ${vector}`);
    this.count++;
    const waiter = this.#waiting.get(vector);
    this.#waiting.delete(vector);
    if (waiter) waiter.resolve();
    else this.#pending.add(vector);
  }

  raise(vector: number): void {
    this.trigger(vector);
  }

  lower(): void {}

  reportError(): boolean {
    return false;
  }

  requestRelease(): boolean {
    return false;
  }

  wait(vector: number): Promise<void> {
    if (this.#pending.delete(vector)) return Promise.resolve();
    return new Promise((resolve, reject) => this.#waiting.set(vector, { resolve, reject }));
  }

  /** The driver of before is gone. */
  forget(): void {
    this.#pending.clear();
    for (const { reject } of this.#waiting.values()) reject(new Error("the driver is gone"));
    this.#waiting.clear();
  }
}

/** With I/O queues served in so many lanes, or by TypeScript alone. */
export const nvmeTarget = (lanes: number) => (context: Context) => createTarget(context, lanes);

async function createTarget({ trace, log }: Context, lanes: number): Promise<Instance> {
  // A lane alone, whose completions a driver waits for, does not keep the process.
  const keepAlive = setInterval(() => {}, 1000);
  const storage = new FakeStorage(DISK_SIZE);
  const disks = [
    { name: "a disk", storage },
    { name: "a disk in memory", storage: openMemory(DISK_SIZE) },
  ];
  const device = createController(disks, {
    serial: "FUZZ",
    blockSize: BLOCK_SIZE,
    queues: QUEUES,
    lanes,
  });
  const dma = new FakeDma(new ArrayBuffer(MEMORY_SIZE), QUEUES + 1);
  const interrupts = new Interrupts();
  // There from the start, so that buffers which are first needed in a late round are no growth of memory.
  const buffers = pageAligned(BUFFERS_SIZE);
  let given = 0;
  dma.allocate = (length) => {
    assert.ok(given + length <= BUFFERS_SIZE, "more buffers than two disks have");
    given += length;
    return buffers.subarray(given - length, given);
  };
  dma.maps = [...MAPS];
  dma.bytes.fill(CANARY);
  for (const { offset, size } of WRITABLE) dma.bytes.fill(0, offset, offset + size);
  device.start({
    dma,
    interrupts,
    log,
    run: () => assert.fail("it keeps its own list of jobs"),
    shared: nothingShared,
    lanes: { context: dma.lanes, interrupted: () => {} },
  });
  const [home] = MAPS;

  const file = device.registers[0];
  const read = (offset: number, size: number) => (offset + size <= file.size ? file.read(offset, size) : 0);
  const put = (offset: number, size: number, value: number) => {
    if (offset + size <= file.size) file.write(offset, size, value);
    else device.writeBar(0, offset, size, value);
  };
  const reset = () => {
    file.reset();
    return device.reset();
  };
  const write = (offset: number, size: number, value: number) => {
    trace.note("write", offset.toString(16), size, value.toString(16));
    put(offset, size, value >>> 0);
  };

  /** Enables the controller, nearly always as a driver should. */
  async function enable(random: Choices): Promise<void> {
    const odd = (value: number) => (random.chance(97) ? value : oddNumber(random, 4, value));
    write(REGISTER.CC, 4, 0);
    for (let n = 0; n < 50 && read(REGISTER.CSTS, 4) !== 0; n++) await turn();
    write(REGISTER.AQA, 4, odd(((QUEUE_ENTRIES - 1) << 16) | (QUEUE_ENTRIES - 1)));
    for (const [register, page] of [
      [REGISTER.ASQ, 0],
      [REGISTER.ACQ, 1],
    ] as const) {
      const address = home.address + page * 4096;
      write(register, 4, odd(address % 2 ** 32));
      write(register + 4, 4, odd(Math.floor(address / 2 ** 32)));
    }
    const pageSize = random.chance(85) ? 0 : random.below(5);
    write(REGISTER.CC, 4, odd(Cc.EN | (SQES << 16) | (CQES << 20) | (pageSize << 7)));
  }

  /** Entries at `tail` of queue `id`, wherever that lies; the doorbell tells of them. */
  function submit(random: Choices, id: number, tails: number[]): void {
    for (let n = random.pick([1, 1, 1, 4, 14]); n > 0; n--) {
      const at = home.offset + id * 2 * 4096 + tails[id] * SUBMISSION_ENTRY_SIZE;
      trace.note(`submit to ${id}`, writeEntry(random, dma.data, at, id === 0, MAPS, DISK_SIZE / BLOCK_SIZE).slice());
      tails[id] = (tails[id] + 1) % QUEUE_ENTRIES;
    }
    write(DOORBELL_OFFSET + id * 8, 4, random.chance(95) ? tails[id] : oddNumber(random, 2, tails[id]));
  }

  /** I/O queues as a driver makes them, at known places. */
  function createQueues(random: Choices, tails: number[]): void {
    for (let id = 1; id <= QUEUES; id++) {
      for (const [opcode, page] of [
        [5, 2 * id + 1],
        [1, 2 * id],
      ]) {
        const at = home.offset + tails[0] * SUBMISSION_ENTRY_SIZE;
        dma.bytes.fill(0, at, at + SUBMISSION_ENTRY_SIZE);
        dma.data.setUint32(at, opcode | (id << 16), true);
        setU64(dma.data, at + 24, home.address + page * 4096);
        dma.data.setUint32(at + 40, ((QUEUE_ENTRIES - 1) << 16) | id, true);
        dma.data.setUint32(at + 44, (id << 16) | (opcode === 5 ? 3 : 1), true);
        tails[0] = (tails[0] + 1) % QUEUE_ENTRIES;
        if (random.chance(3)) dma.data.setUint32(at + 4 * random.below(16), oddNumber(random, 4), true);
      }
    }
    write(DOORBELL_OFFSET, 4, tails[0]);
  }

  /** Takes completions: the head goes to where entries of the right phase end, or anywhere. */
  function reap(random: Choices, id: number, heads: number[]): void {
    const at = home.offset + (id * 2 + 1) * 4096;
    for (let n = 0; n < QUEUE_ENTRIES; n++) {
      const phase = (dma.data.getUint16(at + (heads[id] % QUEUE_ENTRIES) * COMPLETION_ENTRY_SIZE + 14, true) & 1) === 1;
      if (phase !== (Math.floor(heads[id] / QUEUE_ENTRIES) % 2 === 0)) break;
      heads[id]++;
    }
    write(DOORBELL_OFFSET + id * 8 + 4, 4, random.chance(97) ? heads[id] % QUEUE_ENTRIES : oddNumber(random, 2));
  }

  /** PRP lists and rubbish in the data pages. */
  function fillPages(random: Choices): void {
    for (let n = random.below(12); n > 0; n--) {
      const map = random.pick(WRITABLE);
      const at = map.offset + 4096 * random.between(map === home ? 10 : 0, map.size / 4096 - 1);
      for (let slot = random.chance(70) ? 0 : 448; slot < 512; slot++) {
        dma.data.setBigUint64(at + slot * 8, prp(random, MAPS), true);
      }
    }
  }

  function disturbStorage(random: Choices): void {
    storage.calls.length = 0;
    // Not sync: a failure of that is kept for ever, so no probe could succeed afterwards.
    const operation = random.pick(["read", "write"] as const);
    switch (random.below(5)) {
      case 0:
        storage.errors[operation] = random.pick(["EIO", "ENOSPC", "EBADF"]);
        break;
      case 1:
        delete storage.errors[operation];
        break;
      case 2:
        // What is held already would be forgotten.
        storage.release();
        storage.hold();
        break;
      default:
        storage.release();
    }
  }

  function calmStorage(): void {
    for (const operation of ["read", "write"] as const) delete storage.errors[operation];
    storage.release();
    storage.calls.length = 0;
  }

  return {
    async round(random) {
      const tails = [0, 0, 0, 0];
      const heads = [0, 0, 0, 0];
      dma.bytes.fill(0, home.offset, home.offset + 8 * 4096);
      fillPages(random);
      if (random.chance(95)) await enable(random);
      if (random.chance(80)) {
        createQueues(random, tails);
        await turn();
      }
      for (let step = random.pick([4, 20, 60]); step > 0; step--) {
        const kind = random.below(20);
        if (kind < 12) submit(random, random.below(QUEUES + 1), tails);
        else if (kind < 15) reap(random, random.below(QUEUES + 1), heads);
        else if (kind === 15) {
          const size = random.pick([1, 2, 4]);
          const offset = random.chance(60) ? random.below(REGISTERS_SIZE) : DOORBELL_OFFSET + random.below(0x1000);
          write(offset - (offset % size), size, oddNumber(random, size));
          read(offset - (offset % size), size);
        } else if (kind === 16) disturbStorage(random);
        else if (kind === 17 && random.chance(30)) {
          trace.note("maps change");
          storage.release();
          const gone = random.below(dma.maps.length);
          const map = dma.maps[gone];
          dma.maps = dma.maps.filter((_, n) => n !== gone);
          await dma.settled();
          dma.maps = [...dma.maps, map];
        } else if (kind === 18 && random.chance(20)) {
          trace.note("reset");
          storage.release();
          if (random.chance(50)) await reset();
          else void reset();
          if (random.chance(70)) await enable(random);
          tails.fill(0);
          heads.fill(0);
        }
        if (random.chance(50)) await turn();
      }
      calmStorage();
      await reset();
      let end = 0;
      for (const { offset, size } of WRITABLE) {
        checkCanary(dma.bytes, end, offset, `memory from 0x${end.toString(16)} on`);
        end = offset + size;
      }
      checkCanary(dma.bytes, end, MEMORY_SIZE, `memory from 0x${end.toString(16)} on`);
      interrupts.forget();
    },
    async probe() {
      const bytes = dma.bytes.subarray(home.offset, home.offset + home.size);
      const data = new DataView(dma.memory, home.offset, home.size);
      const transport: NvmeTransport = {
        memory: { address: home.address, bytes, data },
        readRegister: async (offset) => read(offset, 4),
        writeRegister: async (offset, value) => put(offset, 4, value >>> 0),
        waitInterrupt: (vector) => interrupts.wait(vector),
      };
      const driver = await NvmeDriver.open(transport, { queues: 2, entries: 8 });
      // Format NVM may have changed one of the two.
      assert.equal(driver.blockCount * driver.blockSize, DISK_SIZE);
      const source = new Uint8Array(9 * 4096).map((_, index) => index * 7);
      const target = new Uint8Array(source.length);
      await driver.write(5, source);
      await driver.read(5, target);
      assert.equal(Buffer.compare(source, target), 0, "what was read is what was written");
      await driver.flush();
      await driver.close();
      await reset();
      interrupts.forget();
    },
    close: () => {
      clearInterval(keepAlive);
      return device.close();
    },
  };
}
