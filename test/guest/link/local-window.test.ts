/**
 * The local link's window against a model: random maps of two files, small and large, for reading only and for both,
 * which go in any order, by force too. What is mapped is the file's bytes; what was taken away by force reaches no
 * file.
 */
import { ftruncateSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import test, { type ExecutionContext } from "ava";
import { windowBytes } from "../../../guest/link/link.js";
import { LocalWindow } from "../../../guest/link/local/window.js";
import { close, createMemory, fileStatus, mapFile, PROT_READ, PROT_WRITE } from "../../../native/index.js";
import { GiB, MiB, PAGE_SIZE } from "../../../shared/limits.js";
import { quietLog } from "../../../shared/log.js";
import type { MemoryMap } from "../../../shared/vfio-user/backend.js";
import { windowPart } from "../../../shared/vfio-user/dma/dma-ranges.js";

const FILE_SIZE = 8 * MiB;
const STEPS = 3000;

interface File {
  readonly fd: number;
  readonly bytes: Uint8Array;
}

function file(t: ExecutionContext): File {
  const fd = createMemory("window", FILE_SIZE, false);
  t.teardown(() => close(fd));
  return { fd, bytes: new Uint8Array(mapFile(fd, 0, FILE_SIZE, PROT_READ | PROT_WRITE)) };
}

function makeMap({ fd }: File, address: number, fdOffset: number, size: number, writable: boolean): MemoryMap {
  const { device, inode } = fileStatus(fd);
  const part = windowPart(fdOffset, size, PAGE_SIZE);
  const access = { readable: true, writable, isShareable: writable };
  return {
    ...{
      address,
      size,
      backed: size,
      fd,
      device,
      inode,
      fdOffset,
      pageSize: PAGE_SIZE,
      windowPart: part,
      position: 0,
      windowOffset: -1,
    },
    ...access,
    isHeld: false,
    isMemory: true,
  };
}

/** Numbers below a bound, from a seed that is printed. */
function randomOf(t: ExecutionContext) {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  t.log(`SEED=${seed}`);
  let state = seed;
  return (bound: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

test("random maps, and unmaps by force", async (t) => {
  const below = randomOf(t);
  const window = new LocalWindow(16 * GiB, quietLog);
  t.teardown(() => window.close());
  const files = [file(t), file(t)];
  const live = new Map<MemoryMap, File>();
  /** Ends what may still use memory that was taken away by force. */
  const finish: (() => void)[] = [];
  const pages = FILE_SIZE / PAGE_SIZE;
  let address = 0;
  let value = 0;

  const add = () => {
    const its = files[below(2)];
    const count = below(10) === 0 ? 512 + below(512) : 1 + below(8);
    const map = makeMap(its, address, below(pages - count) * PAGE_SIZE, count * PAGE_SIZE, below(4) > 0);
    address += 2 * FILE_SIZE;
    if (window.put(map).length !== 1 || map.windowOffset < 0) t.fail("not in the window");
    live.set(map, its);
  };
  const check = (map: MemoryMap, { bytes }: File) => {
    const at = below(map.size);
    const view = windowBytes(window, map.windowOffset, map.size);
    value = (value + 1) & 0xff;
    if (map.writable && below(2) === 0) view[at] = value;
    else bytes[map.fdOffset + at] = value;
    if (view[at] !== value || bytes[map.fdOffset + at] !== value) t.fail(`byte ${at} of a map of ${map.size}`);
  };
  const some = () => [...live].filter(() => below(4) === 0);
  const removeByForce = () => {
    const gone = some().map(([map, its]) => ({ map, its, view: windowBytes(window, map.windowOffset, map.size) }));
    const maps = gone.map(({ map }) => map);
    for (const map of maps) live.delete(map);
    window.releaseByForce(maps, new Promise((resolve) => finish.push(resolve)));
    for (const { map, its, view } of gone) {
      for (let at = 0; at < map.size; at += PAGE_SIZE) {
        const inFile = map.fdOffset + at;
        const isMapped = ([one, file]: [MemoryMap, File]) =>
          file === its && one.fdOffset <= inFile && inFile < one.fdOffset + one.size;
        // A page that another map has, too, may be the same page of the window.
        if ([...live].some(isMapped)) continue;
        const before = its.bytes[inFile];
        view[at] = before ^ 0xff;
        if (its.bytes[inFile] !== before) t.fail("what was taken away by force is reached");
      }
    }
  };

  for (let step = 0; step < STEPS; step++) {
    const what = below(100);
    if (what < 45 || live.size < 4) add();
    else if (what < 48) removeByForce();
    else if (what < 55) {
      const maps = some().map(([map]) => map);
      window.release(maps);
      for (const map of maps) live.delete(map);
    } else if (what < 57) {
      for (const end of finish.splice(0)) end();
      await setImmediate();
    } else if (what === 57) {
      // Cut short, read, and whole again: who maps it then has memory.
      ftruncateSync(files[0].fd, FILE_SIZE / 2);
      for (const map of live.keys()) windowBytes(window, map.windowOffset, map.size).at(-1);
      ftruncateSync(files[0].fd, FILE_SIZE);
      window.release([...live.keys()]);
      live.clear();
    } else {
      for (const [map, its] of live) if (below(8) === 0) check(map, its);
    }
  }
  window.releaseAll();
  for (const end of finish) end();
  t.pass();
});
