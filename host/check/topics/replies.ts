/**
 * What is demanded of every reply. These run last: each judges all the replies of the run, of which it makes a few of
 * its own so that there are some. See conduct.ts.
 */
import { Command } from "../../../shared/spec/vfio-user.js";
import { type Connected, topic, vfioUser } from "../check.js";
import type { Misconduct } from "../conduct.js";
import { expectThat } from "../expect.js";
import { encodeRegionInfo, GET_INFO_BODY } from "../messages.js";

function everyReply(id: string, kind: Misconduct, title: string): Connected {
  return {
    id,
    title,
    connected: async (session, { target: { conduct } }) => {
      await session.request(Command.DEVICE_GET_INFO, GET_INFO_BODY);
      await session.request(Command.DEVICE_GET_REGION_INFO, encodeRegionInfo(0xffff));
      const wrong = conduct.deviation(kind);
      expectThat(wrong === undefined, title, wrong ?? "");
      return `${conduct.replies} replies, ${conduct.errors} of them errors`;
    },
  };
}

export const replies = topic({ section: vfioUser("Header") }, [
  everyReply("reply-id", "id", "Every reply has the id of its request"),
  everyReply("reply-command", "command", "Every reply has the command of its request"),
  everyReply("reply-type", "type", "Every message is a command or a reply"),
  everyReply("reply-error-alone", "error body", "Every error reply is a header alone"),
  everyReply("reply-error-fds", "error fds", "No error reply carries fds"),
  {
    ...everyReply("server-commands", "direction", "The server sends no commands but DMA_READ and DMA_WRITE"),
    section: vfioUser("Commands"),
  },
]);
