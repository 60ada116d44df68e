/**
 * What is demanded of every reply, whatever the command: noted on each message of a run, and judged at its end by the
 * checks of topics/replies.ts, so that one habit of a server is one failure.
 */
import { Command, HeaderFlags } from "../../shared/spec/vfio-user.js";
import { commandName, isError, type Message } from "./messages.js";

/** What can be wrong with a reply, apart from what it says. */
export type Misconduct = "id" | "command" | "type" | "error body" | "error fds" | "direction";

export class Conduct {
  replies = 0;
  errors = 0;
  /** The first deviation of each kind, and how many there were. */
  readonly #deviations = new Map<Misconduct, { first: string; count: number }>();

  /** `request`: the one that this is the reply to. */
  reply(request: { readonly id: number; readonly command: number }, message: Message): void {
    const name = commandName(request.command);
    this.replies++;
    if (message.id !== request.id) {
      this.#note("id", `${name} with the id ${request.id} was answered with ${message.id}`);
    }
    if (message.command !== request.command) {
      this.#note("command", `${name} was answered as ${commandName(message.command)}`);
    }
    if (!isError(message)) return;
    this.errors++;
    const { body, fds } = message;
    if (body.length > 0) this.#note("error body", `an error reply to ${name} with a body of ${body.length} bytes`);
    if (fds.length > 0) this.#note("error fds", `an error reply to ${name} with ${fds.length} fds`);
  }

  /** A message that is no reply. */
  unasked({ flags, command }: Message): void {
    const type = flags & HeaderFlags.TYPE_MASK;
    if (type !== HeaderFlags.TYPE_COMMAND) {
      this.#note("type", `a message of type ${type}, which is neither command nor reply`);
    } else if (command !== Command.DMA_READ && command !== Command.DMA_WRITE) {
      this.#note("direction", `the server sent the command ${commandName(command)}`);
    }
  }

  /** What was wrong, or undefined. */
  deviation(kind: Misconduct): string | undefined {
    const found = this.#deviations.get(kind);
    if (found === undefined) return undefined;
    return found.count === 1 ? found.first : `${found.first}, and ${found.count - 1} more like it`;
  }

  #note(kind: Misconduct, what: string): void {
    const found = this.#deviations.get(kind);
    if (found) found.count++;
    else this.#deviations.set(kind, { first: what, count: 1 });
  }
}
