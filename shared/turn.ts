/**
 * What a peer can have done before others get their turn of the event loop: bounded in messages, bytes and time, the
 * same way for every socket and every ring. Whoever is fed by a peer asks for a turn, spends it message by message, and
 * ends it; what is left over is dealt with in a later turn.
 *
 * A turn of a few messages is light, and costs no look at the clock. One that is not, while other sessions have light
 * turns, is followed by a rest: a flood then has only its part of the time, and the others the rest of it. Turns with a
 * backlog behind them count as one: a flood of requests that are begun one at a time is one all the same. Floods alone
 * share the event loop evenly, and a session that is alone has all of it.
 */
import { KiB } from "./limits.js";

/** What a message counts at least, in bytes: what it costs beside its bytes. */
const LEAST_COST = 4 * KiB;
/** Up to here a turn is light; then the clock is looked at as often as this was spent. */
const LIGHT = 8 * LEAST_COST;
/** The end of a turn: 128 messages, or as many bytes as they count, or this time. */
const MOST = 128 * LEAST_COST;
const MOST_MS = 0.5;
/** For turns that C++ spends (native/access_path.cc). */
export const TURN = { LEAST_COST, LIGHT, MOST, MOST_MS } as const;
/**
 * Bytes that count as a millisecond, where the clock says less: it is not looked at before the first message is done.
 */
const COST_PER_MS = 4096 * KiB;
/** Also after one message that took very long, a peer is waited for by somebody. */
const LONGEST_REST_MS = 50;

/** How long a peer rests after a turn of one millisecond. */
export const Rest = {
  /** For what no well-behaved peer sends at such a rate: a tenth of the time remains. */
  CONTROL: 9,
  /** For data, which has half of the time. */
  DATA: 1,
  /** For what makes room for others by itself. */
  NONE: 0,
} as const;

/** Words of a share: light turns so far, modulo 2^32, and whether it rests. */
const OWN_TURNS = 0;
const RESTS = 1;

/** The part that one session has of the event loop, with all its sockets and rings. */
export class Share {
  /** Light turns of all sessions so far, modulo 2^32; C++ counts its own there, too. */
  static readonly lightTurns = new Int32Array(1);
  readonly words = new Int32Array(2);
  #restsUntil = 0;
  /** Light turns of others when this was last looked at. */
  #seen = 0;

  /** When its rest ends, in the milliseconds of performance.now(); 0 when it has none. */
  get restsUntil(): number {
    return this.#restsUntil;
  }

  set restsUntil(time: number) {
    this.#restsUntil = time;
    this.words[RESTS] = time === 0 ? 0 : 1;
  }

  countLight(): void {
    Share.lightTurns[0]++;
    this.words[OWN_TURNS]++;
  }

  /** Light turns of others so far: another number whenever there were some. */
  get othersTurns(): number {
    return (Share.lightTurns[0] - this.words[OWN_TURNS]) | 0;
  }

  /** Whether others had light turns since this was asked last. */
  hadOthers(): boolean {
    const others = this.othersTurns;
    const had = others !== this.#seen;
    this.#seen = others;
    return had;
  }
}

/** The turns of one socket or ring. */
export class Turn {
  readonly #share: Share;
  readonly #rest: number;
  readonly #resume: () => void;
  #cost = 0;
  #startedAt = 0;
  /** Its peer has had more to be served ever since the turn began: the next `begin` goes on with it. */
  #isBacklogged = false;
  /** The cost at which the clock is looked at again. */
  #look = LIGHT + 1;
  #immediate: NodeJS.Immediate | undefined;
  #timer: NodeJS.Timeout | undefined;

  /**
   * `resume` is called when a turn can begin that could not before, or that was left with more to do. `rest` is one of
   * Rest.
   */
  constructor(share: Share, rest: number, resume: () => void) {
    this.#share = share;
    this.#rest = rest;
    this.#resume = resume;
  }

  /** Whether `resume` is going to be called. */
  get waits(): boolean {
    return this.#immediate !== undefined || this.#timer !== undefined;
  }

  /** Begins a turn. False when it is not this peer's: `resume` is called when it is. */
  begin(): boolean {
    if (this.waits) return false;
    if (this.#share.restsUntil !== 0) {
      const left = this.#share.restsUntil - performance.now();
      if (left > 0) {
        this.#wait(left);
        return false;
      }
      this.#share.restsUntil = 0;
    }
    if (this.#isBacklogged) return true;
    this.#cost = 0;
    this.#startedAt = 0;
    this.#look = LIGHT + 1;
    return true;
  }

  /** Counts a message, or what else was done, that was about so many bytes. False when the turn is over. */
  spend(bytes: number): boolean {
    this.#cost += Math.max(bytes, LEAST_COST);
    if (this.#cost < this.#look) return true;
    this.#look = Math.min(this.#cost + LIGHT, MOST);
    const now = performance.now();
    if (this.#startedAt === 0) this.#startedAt = now;
    return this.#cost < MOST && now - this.#startedAt < MOST_MS;
  }

  /**
   * Ends the turn. With `more` to do `resume` is called in a later one. A peer that `isBacklogged` has sent more than
   * can be begun now. If it goes on so it floods, however little is served at once: this turn is then one with the
   * next.
   */
  end(more: boolean, isBacklogged = false): void {
    const isLight = this.#cost <= LIGHT;
    this.#isBacklogged = isLight && isBacklogged;
    let rest = 0;
    if (!isLight) rest = this.#restAfter();
    else if (!isBacklogged && this.#cost > 0) this.#share.countLight();
    else if (isBacklogged && this.#startedAt === 0) this.#startedAt = performance.now();
    if (more) this.#wait(rest);
  }

  /** Ends a turn that C++ has spent, which was not a light one. */
  endElsewhere(cost: number, milliseconds: number): void {
    this.#cost = cost;
    this.#startedAt = performance.now() - milliseconds;
    this.end(false);
  }

  /** Has `resume` called in a later turn, from outside of one. */
  goOn(): void {
    this.#wait(0);
  }

  /** `resume` is not called any more. */
  close(): void {
    clearImmediate(this.#immediate);
    clearTimeout(this.#timer);
    this.#immediate = undefined;
    this.#timer = undefined;
  }

  #restAfter(): number {
    if (!this.#share.hadOthers()) return 0;
    const now = performance.now();
    const spent = Math.max(now - this.#startedAt, this.#cost / COST_PER_MS);
    const rest = Math.min(spent * this.#rest, LONGEST_REST_MS);
    this.#share.restsUntil = now + rest;
    return rest;
  }

  #wait(milliseconds: number): void {
    if (this.waits) return;
    if (milliseconds > 0) {
      this.#timer = setTimeout(this.#go, milliseconds);
    } else {
      this.#immediate = setImmediate(this.#go);
    }
  }

  readonly #go = (): void => {
    this.#immediate = undefined;
    this.#timer = undefined;
    this.#resume();
  };
}
