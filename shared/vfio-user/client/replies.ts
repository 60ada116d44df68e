/**
 * What a client makes of replies, all from an untrusted server: whether they fit, and asking again for those that did
 * not.
 */
import { RegionAccess } from "../../spec/vfio-user.js";
import { closeAll, systemCalls } from "../socket/syscalls.js";
import { badReply, type Reply, type RequestOptions } from "./requests.js";

const MAX_ARGSZ = 64 * 1024;
/** What we say that we take with one message. */
export const MAX_FDS = 16;

/** Whether the reply, of a proper length, is to that region access. @throws ProtocolError EPROTO */
export function checkAccess(command: number, reply: Reply, region: number, offset: number, count: number): void {
  const echo = RegionAccess.view(reply.data);
  if (echo.region !== region || echo.offset !== offset || echo.count !== count) badReply(command, "another access");
}

/**
 * A request whose reply begins with argsz, made again with as much room as the server says that it needs. fds that
 * `parse` leaves are closed. Rejects as the request does, and with what `parse` throws.
 */
export async function askGrowing<T>(
  client: { request(command: number, body: Uint8Array, options: RequestOptions): Promise<Reply> },
  command: number,
  least: number,
  encode: (argsz: number) => Uint8Array,
  parse: (reply: Reply) => T,
): Promise<T> {
  for (let argsz = least; ; ) {
    const reply = await client.request(command, encode(argsz), { maxFds: MAX_FDS });
    const needed = reply.data.byteLength < least ? 0 : reply.data.getUint32(0, true);
    if (needed > argsz && needed <= MAX_ARGSZ) {
      closeAll(systemCalls, reply.fds);
      argsz = needed;
      continue;
    }
    try {
      return parse(reply);
    } finally {
      closeAll(systemCalls, reply.fds);
    }
  }
}
