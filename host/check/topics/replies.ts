/**
 * What is demanded of every reply. These run last: each judges all the replies of the run, of which it makes a few of
 * its own so that there are some. See conduct.ts.
 */
import { Command, DeviceInfo, RegionInfo } from "../../../shared/spec/vfio-user.js";
import { type Check, vfioUser } from "../check.js";
import type { Misconduct } from "../conduct.js";
import type { Context } from "../context.js";
import { Failure } from "../verdict.js";

const HEADER = vfioUser("Header");

function everyReply(id: string, title: string, kinds: readonly Misconduct[], section = HEADER): Check {
  return {
    id,
    section,
    title,
    run: async (context) => {
      await makeSome(context);
      const { conduct } = context;
      const wrong = kinds.map((kind) => conduct.deviation(kind)).filter((each) => each !== undefined);
      if (wrong.length > 0) throw new Failure(title, wrong.join("; "));
      return `${conduct.replies} replies, ${conduct.errors} of them errors`;
    },
  };
}

async function makeSome(context: Context): Promise<void> {
  const session = await context.connect();
  await session.request(Command.DEVICE_GET_INFO, DeviceInfo.encode({ argsz: DeviceInfo.size }));
  await session.request(Command.DEVICE_GET_REGION_INFO, RegionInfo.encode({ argsz: RegionInfo.size, index: 0xffff }));
}

export const replies: readonly Check[] = [
  everyReply("reply-id", "Every reply has the id of its request", ["id"]),
  everyReply("reply-command", "Every reply has the command of its request", ["command"]),
  everyReply("reply-type", "Every message is a command or a reply", ["type"]),
  everyReply("reply-error-alone", "Every error reply is a header alone", ["error body"]),
  everyReply("reply-error-fds", "No error reply carries fds", ["error fds"]),
  everyReply(
    "server-commands",
    "The server sends no commands but DMA_READ and DMA_WRITE",
    ["direction"],
    vfioUser("Commands"),
  ),
];
