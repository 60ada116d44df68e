/**
 * The control state: what was negotiated, set up and announced, as one snapshot, so that none of it contradicts the
 * rest whenever the bridge dies. It is written before anything leaves the process (a reply, a request, a message to
 * the device process): who changes something says so by `touch`, and who sends something calls `commit` before.
 */
import { Control, LAYOUT, MAX_CONTROL_SIZE } from "./layout.js";
import { checkOf, type StateBytes } from "./state-bytes.js";

export class ControlState {
  readonly #bytes: StateBytes;
  /** What is written; undefined until there is anything. */
  #save: (() => object) | undefined;
  #isDirty = false;
  #isQueued = false;
  #isHeld = false;
  /** It did not fit the last time. */
  isTooLarge = false;

  readonly #written: () => void;

  /** `written`: called when no state before the one that is the case now counts any more. */
  constructor(bytes: StateBytes, written: () => void = () => {}) {
    this.#bytes = bytes;
    this.#written = written;
  }

  /** From now on the state is what `save` returns. */
  begin(save: () => object): void {
    this.#save = save;
    this.touch();
  }

  /** Nothing is written any more. */
  end(): void {
    this.#save = undefined;
  }

  /** Something has changed. It is written before anything is sent, or the event loop comes to anything else. */
  touch(): void {
    this.#isDirty = true;
    if (this.#isQueued) return;
    this.#isQueued = true;
    queueMicrotask(this.#later);
  }

  /** Writes what has changed. */
  commit(): void {
    if (this.#isDirty && !this.#isHeld) this.#write();
  }

  /**
   * Until `release`, which is to be called before anything is sent, nothing is written: what is done again as a whole
   * when the bridge dies meanwhile is not to last by half.
   */
  hold(): void {
    this.#isHeld = true;
    this.touch();
  }

  release(): void {
    this.#isHeld = false;
    this.commit();
  }

  /** Writes what is the case now, whether or not it is held: before something else is noted that relies on it. */
  commitNow(): void {
    this.#write();
  }

  readonly #later = (): void => {
    this.#isQueued = false;
    this.commit();
  };

  #write(): void {
    this.#isDirty = false;
    if (this.#save !== undefined) this.#store(Buffer.from(JSON.stringify(this.#save())));
    this.#written();
  }

  #store(text: Buffer): void {
    this.isTooLarge = text.length > MAX_CONTROL_SIZE;
    if (this.isTooLarge) return;
    const bytes = this.#bytes;
    const which = bytes.word(LAYOUT.control) === 1 ? 2 : 1;
    const at = LAYOUT.controlCopies[which - 1];
    const end = at + Control.size + text.length;
    bytes.bytes.set(text, at + Control.size);
    bytes.bytes.fill(0, end, aligned(end));
    bytes.data.setUint32(at + Control.offsets.length, text.length, true);
    bytes.data.setUint32(at + Control.offsets.check, controlCheck(bytes, at, text.length, which), true);
    bytes.setWord(LAYOUT.control, which);
  }
}

const aligned = (size: number) => Math.ceil(size / 4) * 4;
/** Of checks, as tables have them. */
const CONTROL_TABLE = 32;

/** The check of a text of that length, whose record is at `at`. */
export function controlCheck(bytes: StateBytes, at: number, length: number, which: number): number {
  return checkOf(bytes.words, at + Control.size, aligned(length), CONTROL_TABLE + length * 4, which);
}
