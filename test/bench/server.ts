/**
 * The device process: RegisterDevice on the local link (`local SOCKET`), or on the virtio link of each of a bridge's
 * sessions (`virtio SOCKET...`), where the fake front-end plays QEMU and the device VM's kernel.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { DeviceEndpoint } from "../../guest/endpoint.js";
import type { Link } from "../../guest/link/link.js";
import { LocalLink } from "../../guest/link/local.js";
import { createVirtioLink } from "../../guest/link/open.js";
import { quietLog } from "../../shared/log.js";
import { Queue } from "../../shared/spec/link.js";
import { FrontEnd } from "../fakes/front-end.js";
import { RegisterDevice } from "./device.js";
import { answer } from "./probe.js";

const [kind, ...sockets] = process.argv.slice(2);
const frontEnds: FrontEnd[] = [];

async function serve(link: Link): Promise<void> {
  const endpoint = new DeviceEndpoint(new RegisterDevice(), link, quietLog);
  await endpoint.start();
  await link.open(endpoint);
}

if (kind === "local") {
  await serve(new LocalLink({ socket: sockets[0], log: quietLog }));
} else {
  for (const socket of sockets) {
    const frontEnd = new FrontEnd(socket);
    await serve(await createVirtioLink(frontEnd, quietLog));
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
