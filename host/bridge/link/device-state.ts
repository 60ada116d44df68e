/**
 * The device side of a session: the states that a device process has for the bridge (docs/virtio-vfio-user.md, "Device
 * operation"), what brings it from one to the next, and what each means for the client and for work under way. Nobody
 * else writes the state.
 */

export type State = "absent" | "preparing" | "ready" | "connected" | "quiesced" | "paused" | "broken";

export type Event =
  /** The message queues run after a reset. */
  | "start"
  /** ALLOCATE_* and HELLO of the device process. */
  | "allocate"
  | "hello"
  /** The device process knows the client, its maps and its interrupts. */
  | "introduced"
  /** The client has gone. */
  | "clientGone"
  /** QUIESCE of the device process. */
  | "quiesce"
  /** The front-end stopped the rings; and started them where they were; or it was a reset, or the front-end is gone. */
  | "pause"
  | "resume"
  | "reset"
  /** One of the ways into "broken". */
  | Cause
  /** The device process has let go of the client, after "silent" or "failed". */
  | "letGo";

/** Every way into "broken": how the device process learns of it, and how the session gets out again. */
export const CAUSES = {
  /**
   * It did not answer in time. CLIENT_GONE is sent; its reply, whenever it comes, is the way out, and the client is
   * introduced anew.
   */
  silent: { learnsBy: "CLIENT_GONE", leavesBy: "letGo" },
  /** It could not be given the client: something lacks here, or it refused. The same, tried again until it succeeds. */
  failed: { learnsBy: "CLIENT_GONE", leavesBy: "letGo" },
  /**
   * It broke a ring or a message, or its rings did not start again. NEEDS_RESET in config space says so; it resets the
   * device.
   */
  violated: { learnsBy: "NEEDS_RESET", leavesBy: "reset" },
} as const;
export type Cause = keyof typeof CAUSES;

/** What becomes of a command that needs the device process. */
export type Answer =
  | "passed on"
  /** Held: what it waits for takes a moment, or has a deadline. */
  | "held"
  /** Held for PAUSE_GRACE_MS of the pause, then answered without the device process. */
  | "held for a while"
  /** As by a device that is not there. */
  | "without the device";

interface Row {
  readonly command: Answer;
  /** Events that are not named do not happen, or change nothing. */
  readonly on: Partial<Readonly<Record<Event, State | "before">>>;
}

const LEAVE = { pause: "paused", reset: "absent", violated: "broken" } as const;
const SERVED = { ...LEAVE, quiesce: "quiesced", silent: "broken", failed: "broken" } as const;

const TABLE: Readonly<Record<State, Row>> = {
  absent: {
    command: "without the device",
    on: { start: "absent", allocate: "preparing", hello: "ready", ...LEAVE },
  },
  preparing: {
    command: "without the device",
    on: { allocate: "preparing", hello: "ready", quiesce: "quiesced", ...LEAVE },
  },
  ready: {
    command: "held",
    on: { introduced: "connected", ...SERVED },
  },
  connected: {
    command: "passed on",
    on: { clientGone: "ready", ...SERVED },
  },
  /** The client's memory is taken out of the window, and behind QUIESCE's reply no request for the window is sent. */
  quiesced: {
    command: "without the device",
    on: { allocate: "preparing", hello: "ready", quiesce: "quiesced", ...LEAVE },
  },
  /**
   * No request for the window is sent, which QEMU would not survive. What was under way stays so, and no deadline
   * counts. Changes of the client's maps and interrupts are answered at once, and made up for afterwards.
   */
  paused: {
    command: "held for a while",
    on: { resume: "before", reset: "absent", violated: "broken" },
  },
  /** The client's memory is taken out of the window. */
  broken: {
    command: "without the device",
    on: { start: "absent", letGo: "ready", quiesce: "quiesced", ...LEAVE },
  },
};

export class DeviceState {
  #state: State = "absent";
  #cause: Cause | undefined;
  /** Where a pause goes back to. */
  #before: State = "absent";

  get name(): State {
    return this.#state;
  }

  /** Why it is broken. */
  get cause(): Cause | undefined {
    return this.#state === "broken" ? this.#cause : undefined;
  }

  /** What becomes of the client's commands now. */
  get command(): Answer {
    const { command } = TABLE[this.#state];
    // Nobody waits for a device that was not there before the pause.
    if (command !== "held for a while" || TABLE[this.#before].command !== "without the device") return command;
    return "without the device";
  }

  /** Whether an event means anything now. */
  takes(event: Event): boolean {
    return TABLE[this.#state].on[event] !== undefined;
  }

  /** Goes where the table says. False, and nothing changes, when the event means nothing now. */
  on(event: Event): boolean {
    const next = TABLE[this.#state].on[event];
    if (next === undefined) return false;
    if (event in CAUSES) this.#cause = event as Cause;
    if (event === "pause") this.#before = this.#state;
    // What changed while the rings stood still is made up for before commands are passed on again.
    const before = this.#before === "connected" ? "ready" : this.#before;
    this.#state = next === "before" ? before : next;
    return true;
  }
}
