/**
 * The device process: RegisterDevice on the local link (`local SOCKET`), or on the virtio link of each of a bridge's
 * sessions (`virtio SOCKET...`, or `isolated SOCKET...`, for which the bridge copies), where the fake front-end plays
 * QEMU and the device VM's kernel.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { DeviceEndpoint } from "../../guest/function/endpoint.js";
import type { Link } from "../../guest/link/link.js";
import { LocalLink } from "../../guest/link/local/local.js";
import { createVirtioLink } from "../../guest/link/virtio/open.js";
import { quietLog } from "../../shared/log.js";
import { Queue } from "../../shared/spec/link.js";
import { FrontEnd } from "../fakes/front-end.js";
import { RegisterDevice } from "./device.js";
import { answer } from "./probe.js";

const [kind, ...sockets] = process.argv.slice(2);
const frontEnds: FrontEnd[] = [];

async function serve(link: Link): Promise<DeviceEndpoint> {
  const endpoint = new DeviceEndpoint(new RegisterDevice(), link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
  return endpoint;
}
const endpoints: DeviceEndpoint[] = [];

if (kind === "local") {
  await serve(new LocalLink({ socket: sockets[0], log: quietLog }));
} else {
  for (const socket of sockets) {
    const frontEnd = new FrontEnd(socket);
    endpoints.push(await serve(await createVirtioLink(frontEnd, quietLog, kind === "isolated")));
    frontEnds.push(frontEnd);
  }
}

answer("ready", () => undefined);

/** Runs a program that is given the kick eventfd of the first doorbell as fd 3; what it prints. */
answer("runWithKick", async (path: string, args: readonly string[]) => {
  const kick = frontEnds[0].kickFd(Queue.FIRST_DOORBELL);
  const child = spawn(path, args, { stdio: ["ignore", "pipe", "inherit", kick] });
  let output = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    output += text;
  });
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`${path} ended with ${code}`);
  return output;
});

/**
 * DMA of `size` bytes at a place further on each time, of `span` from `base` on, to or from memory of the device's for
 * DMA. `depth` are always under way. Microseconds for each, of `count` times as many.
 */
answer(
  "dma",
  async (direction: "read" | "write", size: number, base: number, span: number, depth: number, count: number) => {
    const { dma } = endpoints[0];
    const memory = dma.allocate(size);
    const samples = new Float64Array(count);
    let at = 0;
    let done = -Math.floor(count / 4) * depth;
    let start = 0;
    const move = async () => {
      while (done < count * depth) {
        const address = base + at;
        at = at + 2 * size > span ? 0 : at + size;
        await (direction === "read" ? dma.read(address, memory) : dma.write(address, memory));
        done++;
        if (done % depth !== 0) continue;
        const end = performance.now();
        if (done > 0) samples[done / depth - 1] = ((end - start) * 1000) / depth;
        start = end;
      }
    };
    await Promise.all(Array.from({ length: depth }, move));
    samples.sort();
    return { median: samples[Math.floor(count / 2)], p99: samples[Math.floor(count * 0.99)] };
  },
);

let copying: Promise<void>[] = [];
let isCopying = false;

/** Reads `size` bytes at a time without a pause, `depth` always under way, as "dma" does, until "stopCopying". */
answer("startCopying", (size: number, base: number, span: number, depth: number) => {
  const { dma } = endpoints[0];
  const memory = dma.allocate(size);
  let at = 0;
  isCopying = true;
  const move = async () => {
    while (isCopying) {
      const address = base + at;
      at = at + 2 * size > span ? 0 : at + size;
      await dma.read(address, memory);
    }
  };
  copying = Array.from({ length: depth }, move);
});
answer("stopCopying", async () => {
  isCopying = false;
  await Promise.all(copying);
});
