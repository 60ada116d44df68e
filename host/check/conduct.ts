/**
 * What is demanded of every reply, whatever the command: noticed on each message of a run and judged at its end by the
 * checks of topics/replies.ts, so that one habit of a server is one failure.
 */
import { Command, HeaderFlags } from "../../shared/spec/vfio-user.js";
import type { Message } from "./wire.js";

const COMMAND_NAMES = new Map<number, string>(Object.entries(Command).map(([name, number]) => [number, name]));

export function commandName(command: number): string {
  return COMMAND_NAMES.get(command) ?? `command ${command}`;
}

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
    if (message.id !== request.id)
      this.#note("id", `${name} with the id ${request.id} was answered with ${message.id}`);
    if (message.command !== request.command) {
      this.#note("command", `${name} was answered as ${commandName(message.command)}`);
    }
    if (!(message.flags & HeaderFlags.ERROR)) return;
    this.errors++;
    if (message.body.length > 0) {
      this.#note("error body", `an error reply to ${name} with a body of ${message.body.length} bytes`);
    }
    if (message.fds.length > 0) this.#note("error fds", `an error reply to ${name} with ${message.fds.length} fds`);
  }

  /** A message that is no reply. */
  unasked(message: Message): void {
    if ((message.flags & HeaderFlags.TYPE_MASK) !== HeaderFlags.TYPE_COMMAND) {
      this.#note(
        "type",
        `a message of type ${message.flags & HeaderFlags.TYPE_MASK}, which is neither command nor reply`,
      );
      return;
    }
    if (message.command !== Command.DMA_READ && message.command !== Command.DMA_WRITE) {
      this.#note("direction", `the server sent the command ${commandName(message.command)}`);
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
