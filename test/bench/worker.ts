/**
 * What is measured inside a process: copies through `Dma`, and lookups of addresses. The window is the local link's own
 * reservation with a memfd mapped in it; only the client is missing.
 */
import { WindowDma } from "../../guest/function/dma.js";
import type { Link } from "../../guest/link/link.js";
import { ScatterList } from "../../guest/scatter-list.js";
import { createMemory, PROT_READ, PROT_WRITE, Reservation } from "../../native/index.js";
import { GiB, MiB } from "../../shared/limits.js";
import { pageAligned } from "../../shared/page-aligned.js";
import type { Sample } from "./machine.js";
import { answer } from "./probe.js";

const WINDOW = 4 * GiB;
const LOOKUPS = 1000;
/** As in floor/lookup.c: the maps' size, and their distance. */
const MAP_SIZE = 0x10000;
const MAP_STRIDE = 0x20000;
const BASE = 0x1_0000_0000;

const reservation = new Reservation(WINDOW, GiB);
const window = { size: WINDOW, pieceSize: GiB, piece: (index: number) => reservation.piece(index) };
const notUsed = (): never => {
  throw new Error("not in a benchmark");
};
const link: Link = {
  window,
  doorbellsRung: 0,
  closed: new Promise(() => {}),
  allocateMemory: notUsed,
  allocateEvents: notUsed,
  shareRegisters: notUsed,
  open: notUsed,
  trigger: notUsed,
  readMemory: notUsed,
  writeMemory: notUsed,
  abandonMessages: notUsed,
  allocate: notUsed,
  close: notUsed,
};

function summary(samples: Float64Array, per: number): Sample {
  samples.sort();
  const at = (fraction: number) => samples[Math.floor(samples.length * fraction)] / per;
  return { median: at(0.5), p99: at(0.99) };
}

const SPAN = 8 * MiB;
const memory = createMemory("bench", SPAN, false);
reservation.map(0, SPAN, memory, 0, PROT_READ | PROT_WRITE);
const dma = new WindowDma(link, () => true);
dma.map({ address: BASE, size: SPAN, readable: true, writable: true, windowOffset: 0, isCopied: false });
new Uint8Array(window.piece(0), 0, SPAN).fill(1);

/** Nanoseconds for one operation of `parts` parts, as floor/memcpy.c has it. */
answer("copy", (direction: "read" | "write", size: number, parts: number, count: number): Sample => {
  // As `dma.allocate` gives it. Where an array lies in its page decides how fast it is copied, by far; it is the same
  // in the floor.
  const own = pageAligned(size * parts).fill(2);
  const list = new ScatterList();
  const batch = Math.max(1, Math.floor(MiB / (size * parts)));
  const samples = new Float64Array(count);
  let at = 0;
  for (let i = -Math.floor(count / 4); i < count; i++) {
    const start = performance.now();
    for (let n = 0; n < batch; n++) {
      if (parts === 1) {
        if (direction === "read") dma.readSync(BASE + at, own);
        else dma.writeSync(BASE + at, own);
        at += size;
        if (at + size > SPAN) at = 0;
        continue;
      }
      list.clear();
      for (let part = 0; part < parts; part++) {
        list.add(BASE + at, size);
        at += 3 * size;
        if (at + size > SPAN) at = 0;
      }
      if (direction === "read") dma.readListSync(list, own);
      else dma.writeListSync(list, own);
    }
    if (i >= 0) samples[i] = (performance.now() - start) * 1e6;
  }
  return summary(samples, batch);
});

const tables = new Map<number, WindowDma>();

function tableOf(maps: number): WindowDma {
  const known = tables.get(maps);
  if (known !== undefined) return known;
  const table = new WindowDma(link, () => true);
  for (let n = 0; n < maps; n++) {
    const windowOffset = n * MAP_SIZE;
    table.map({
      address: BASE + n * MAP_STRIDE,
      size: MAP_SIZE,
      readable: true,
      writable: true,
      windowOffset,
      isCopied: false,
    });
  }
  tables.set(maps, table);
  return table;
}

const segment = { bytes: new Uint8Array(0), data: new DataView(new ArrayBuffer(0)), offset: 0, length: 0 };
const addresses = new Float64Array(LOOKUPS);
let seed = 1;

function chooseAddresses(maps: number): void {
  for (let k = 0; k < LOOKUPS; k++) {
    seed ^= seed << 13;
    seed ^= seed >>> 17;
    seed ^= seed << 5;
    const random = seed >>> 0;
    addresses[k] = BASE + (random % maps) * MAP_STRIDE + ((random >>> 8) % MAP_SIZE);
  }
}

function lookUp(table: WindowDma): number {
  let sum = 0;
  for (let k = 0; k < LOOKUPS; k++) {
    table.locate(addresses[k], 1, "read", segment);
    sum += segment.offset;
  }
  return sum;
}

/** Nanoseconds for one lookup of a random address among so many maps. */
answer("lookup", (maps: number, count: number): Sample => {
  const table = tableOf(maps);
  const samples = new Float64Array(count);
  for (let i = -Math.floor(count / 4); i < count; i++) {
    chooseAddresses(maps);
    const start = performance.now();
    lookUp(table);
    if (i >= 0) samples[i] = (performance.now() - start) * 1e6;
  }
  return summary(samples, LOOKUPS);
});

/** Bytes allocated by a million lookups. */
answer("lookupAllocation", (maps: number): number => {
  const table = tableOf(maps);
  chooseAddresses(maps);
  for (let n = 0; n < 100; n++) lookUp(table);
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  for (let n = 0; n < 1_000_000 / LOOKUPS; n++) lookUp(table);
  return process.memoryUsage().heapUsed - before;
});
