/**
 * The device side of a session as one state machine: the states that a device process has for the bridge
 * (docs/virtio-vfio-user.md, "Device operation"), what brings it from one to the next, and what each means for the
 * client's commands. Whoever sees something happen raises the event, which is the only transition; what follows from it
 * is in one place, the observer in bridge-link.ts.
 */

import { StateError } from "../state/state-bytes.js";

export type State = "absent" | "preparing" | "ready" | "connected" | "quiescing" | "quiesced" | "paused" | "broken";

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
  /** QUIESCE of the device process, and our reply to it. */
  | "quiesce"
  | "quiesced"
  /** The front-end stopped the rings; and that was longer ago than a client can be kept waiting. */
  | "pause"
  | "graceOver"
  /** The client was told during a pause that the device is reset: the device process has to be made to reset it. */
  | "resetOwed"
  /** The rings were started where they were; or it was a reset, or the front-end is gone. */
  | "resume"
  | "reset"
  /** One of the ways into "broken". */
  | Cause
  /** The device process has released the client, after "silent" or "failed". */
  | "released";

/** Every way into "broken": how the device process learns of it, and how the session gets out again. */
export const CAUSES = {
  /**
   * It did not answer in time. CLIENT_GONE is sent; its reply, whenever it comes, is the way out, and the client is
   * introduced again.
   */
  silent: { learnsBy: "CLIENT_GONE", leavesBy: "released" },
  /** It could not be given the client: something lacks here, or it refused. The same, tried again until it succeeds. */
  failed: { learnsBy: "CLIENT_GONE", leavesBy: "released" },
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
  /** Held until the pause is over, or its grace. */
  | "held for a while"
  /** Answered from register memory, or promised, for as long as the pause takes; otherwise as without the device. */
  | "without waiting"
  /** As by a device that is not there. */
  | "without the device";

interface Row {
  readonly command: Answer;
  /** Events that are not named do not happen, or change nothing. */
  readonly on: Partial<Readonly<Record<Event, State | "before">>>;
}

const LEAVE_PAUSE = { reset: "absent", violated: "broken" } as const;
const LEAVE = { pause: "paused", ...LEAVE_PAUSE } as const;
const SERVED = { ...LEAVE, quiesce: "quiescing", silent: "broken", failed: "broken" } as const;

const TABLE: Readonly<Record<State, Row>> = {
  absent: {
    command: "without the device",
    on: { start: "absent", allocate: "preparing", hello: "ready", ...LEAVE },
  },
  preparing: {
    command: "without the device",
    on: { allocate: "preparing", hello: "ready", quiesce: "quiescing", ...LEAVE },
  },
  ready: {
    command: "held",
    on: { introduced: "connected", ...SERVED },
  },
  connected: {
    command: "passed on",
    on: { clientGone: "ready", ...SERVED },
  },
  /** The client's memory is taken out of the window. */
  quiescing: {
    command: "without the device",
    on: { quiesced: "quiesced", ...LEAVE },
  },
  /** Behind QUIESCE's reply no request for the window is sent. */
  quiesced: {
    command: "without the device",
    on: { allocate: "preparing", hello: "ready", quiesce: "quiescing", ...LEAVE },
  },
  /**
   * No request for the window is sent, which QEMU would not survive. What was in flight stays so, and no deadline
   * counts. Changes of the client's maps and interrupts are answered at once, and made up for afterwards.
   */
  paused: {
    command: "held for a while",
    on: { graceOver: "paused", resetOwed: "paused", quiesced: "paused", resume: "before", ...LEAVE_PAUSE },
  },
  /** The client's memory is taken out of the window. */
  broken: {
    command: "without the device",
    on: { start: "absent", released: "ready", quiesce: "quiescing", ...LEAVE },
  },
};

/** Events by which the device process is no longer waited for; after "silent" and "failed" it is still there. */
const LEAVING: ReadonlySet<Event> = new Set(["quiesce", "reset", "silent", "failed", "violated"]);

export interface Change {
  readonly event: Event;
  readonly from: State;
  readonly to: State;
  /** Why, for diagnostics. */
  readonly reason: string;
}

export interface SavedDeviceState {
  readonly name: State;
  readonly cause: Cause | null;
  readonly before: State;
  readonly isGraceOver: boolean;
  readonly generation: number;
}

export class DeviceState {
  /** Counts how often the device process was given up, or left: what was begun for the one before is nobody's. */
  generation = 0;
  #state: State = "absent";
  #cause: Cause | undefined;
  /** Where a pause goes back to. */
  #before: State = "absent";
  #isGraceOver = false;
  readonly #observers: ((change: Change) => void)[] = [];

  save(): SavedDeviceState {
    const { generation } = this;
    const cause = this.#cause ?? null;
    return { name: this.#state, cause, before: this.#before, isGraceOver: this.#isGraceOver, generation };
  }

  /**
   * Goes on where another bridge was; observers hear of nothing. A device process that had the client is made sure of
   * that first, as after a pause. @throws StateError
   */
  restore({ name, cause, before, isGraceOver, generation }: SavedDeviceState): void {
    if (!(name in TABLE) || !(before in TABLE)) throw new StateError("there is no such state of a device");
    this.#state = name === "connected" ? "ready" : name;
    this.#cause = cause ?? undefined;
    this.#before = before;
    this.#isGraceOver = isGraceOver;
    this.generation = generation;
  }

  get name(): State {
    return this.#state;
  }

  get isPaused(): boolean {
    return this.#state === "paused";
  }

  /** Why it is broken. */
  get cause(): Cause | undefined {
    return this.#state === "broken" ? this.#cause : undefined;
  }

  /** What becomes of the client's commands now. */
  get command(): Answer {
    const { command } = TABLE[this.#state];
    if (command !== "held for a while") return command;
    // Nobody waits for a device that was not there before the pause.
    if (TABLE[this.#before].command === "without the device") return "without the device";
    return this.#isGraceOver ? "without waiting" : command;
  }

  /** Calls `observer` after each change, before `raise` returns. */
  observe(observer: (change: Change) => void): void {
    this.#observers.push(observer);
  }

  /** Whether an event means anything now. */
  accepts(event: Event): boolean {
    return TABLE[this.#state].on[event] !== undefined;
  }

  /** Goes where the table says. False, and nothing changes, when the event means nothing now. */
  raise(event: Event, reason = ""): boolean {
    const from = this.#state;
    const next = TABLE[from].on[event];
    if (next === undefined) return false;
    if (event in CAUSES) this.#cause = event as Cause;
    if (event === "pause") this.#before = from;
    if (event === "quiesced") this.#before = "quiesced";
    // What changed while the rings stood still is made up for before commands are passed on again.
    const before = this.#before === "connected" ? "ready" : this.#before;
    const to = next === "before" ? before : next;
    this.#state = to;
    this.#isGraceOver = to === "paused" && (this.#isGraceOver || event === "graceOver");
    if (LEAVING.has(event)) this.generation++;
    for (const observer of this.#observers) observer({ event, from, to, reason });
    return true;
  }
}
