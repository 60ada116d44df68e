/**
 * What a device process says of itself when somebody looks: INSPECT (docs/virtio-vfio-user.md). It comes from a VM
 * that is not trusted: a bounded text, parsed here; and one that does not answer keeps nobody waiting, and is not asked
 * again meanwhile.
 */
import { startDeadline } from "../../../shared/deadline.js";
import { PeerGone, ProtocolError, UserError } from "../../../shared/errors.js";
import { INSPECT_DEADLINE_MS, MAX_INSPECTION_SIZE } from "../../../shared/limits.js";
import { Inspect, LinkCommand, LinkFeature } from "../../../shared/spec/link.js";
import type { DeviceState } from "./device-state.js";
import type { RequestChannel } from "./request-channel.js";

export class Inspection {
  readonly #state: DeviceState;
  readonly #requests: RequestChannel;
  /** Asked, and not answered yet. */
  #pending: Promise<unknown> | undefined;

  constructor(state: DeviceState, requests: RequestChannel) {
    this.#state = state;
    this.#requests = requests;
  }

  /** Plain data. `features`: what the device VM's driver has negotiated. Rejects with UserError. */
  async ask(features: bigint): Promise<unknown> {
    const { name } = this.#state;
    if (name !== "ready" && name !== "connected") throw new UserError(`the device process is ${name}`);
    if ((features & LinkFeature.INSPECT) === 0n) {
      throw new UserError("the device process does not say: it is of an older version");
    }
    this.#pending ??= this.#send().finally(() => {
      this.#pending = undefined;
    });
    return inTime(this.#pending);
  }

  async #send(): Promise<unknown> {
    let body: Uint8Array;
    try {
      body = await this.#requests.send(LinkCommand.INSPECT, Inspect.encode({ maxSize: MAX_INSPECTION_SIZE }));
    } catch (error) {
      if (error instanceof ProtocolError || error instanceof PeerGone) throw new UserError(error.message);
      throw error;
    }
    if (body.length > MAX_INSPECTION_SIZE) throw new UserError("the device process says more than it was asked for");
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(body);
      if (isDeep(text)) throw new UserError("what the device process says is nested too deeply");
      return JSON.parse(text);
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError("what the device process says is no JSON");
    }
  }
}

/** Nothing that anybody reads is. Whoever writes it anew would run out of stack. */
const MAX_DEPTH = 64;

/** Of JSON, or what looks like it; each character is looked at once. */
function isDeep(text: string): boolean {
  let depth = 0;
  let isString = false;
  for (let n = 0; n < text.length; n++) {
    const letter = text[n];
    if (letter === '"') isString = !isString;
    else if (isString && letter === "\\") n++;
    else if (!isString && (letter === "[" || letter === "{") && ++depth > MAX_DEPTH) return true;
    else if (!isString && (letter === "]" || letter === "}")) depth--;
  }
  return false;
}

/** @throws UserError when it takes too long; it may come all the same, and is nobody's then */
async function inTime(answer: Promise<unknown>): Promise<unknown> {
  let stop = () => {};
  const late = new Promise<never>((_, reject) => {
    stop = startDeadline(INSPECT_DEADLINE_MS, () => reject(new UserError("the device process does not answer")));
  });
  // Whoever was late with it has nobody who waits.
  answer.catch(() => {});
  try {
    return await Promise.race([answer, late]);
  } finally {
    stop();
  }
}
