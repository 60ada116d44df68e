/** The copy device with a state that can be moved: bytes that tests set, in a stream that they can break. */
import type { Migration } from "../../guest/device.js";
import { CopyDevice } from "./copy-device.js";

/** A state that begins with it is refused. */
export const BAD_STATE = 0xee;

export class MigratableDevice extends CopyDevice implements Migration {
  readonly migration = this;
  state: Uint8Array = Uint8Array.of(1, 2, 3);
  /** What preCopy gives, one after the other; pieces of a new copy begin at the first. */
  pieces: readonly Uint8Array[] = [];
  loadedPieces: readonly Uint8Array[] = [];
  /** Assign to make the promises wait, or fail. */
  onPause: () => Promise<void> = async () => {};
  onResume: () => Promise<void> = async () => {};
  onSave: () => Promise<void> = async () => {};
  #next = 0;

  async pause(): Promise<void> {
    this.events.push("pause");
    await this.onPause();
  }

  async resume(): Promise<void> {
    this.events.push("resume");
    await this.onResume();
  }

  async save(): Promise<Uint8Array> {
    this.events.push("save");
    await this.onSave();
    return this.state;
  }

  load(state: Uint8Array, pieces: readonly Uint8Array[]): void {
    this.events.push("load");
    if (state[0] === BAD_STATE) throw new RangeError("not a state of this device");
    this.state = state.slice();
    this.loadedPieces = pieces.map((piece) => piece.slice());
  }

  preCopy(first: boolean): Uint8Array | undefined {
    if (first) this.#next = 0;
    return this.#next < this.pieces.length ? this.pieces[this.#next++] : undefined;
  }
}
