/**
 * A terminal that shows lines which change: what is as it was is not sent again, so that it is of use over a slow line.
 * Keys: q and Ctrl-C end it; anything else looks again at once.
 */
import type { ReadStream, WriteStream } from "node:tty";

const ESC = "\u001b[";
/** The other screen, and no cursor; and back. */
const ENTER = `${ESC}?1049h${ESC}?25l${ESC}2J`;
const LEAVE = `${ESC}?25h${ESC}?1049l`;
const ENDS = ["q", "Q", "\u0003", "\u0004"];

export class Screen {
  isOver = false;
  readonly #in: ReadStream;
  readonly #out: WriteStream;
  #shown: string[] = [];
  #draw: () => readonly string[] = () => [];
  #wake = () => {};

  constructor(input: ReadStream, output: WriteStream) {
    this.#in = input;
    this.#out = output;
    output.write(ENTER);
    output.on("resize", this.#resized);
    process.once("exit", this.#leave);
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => this.#end());
    if (!input.isTTY) return;
    input.setRawMode(true);
    input.on("data", (keys) => {
      if (ENDS.some((key) => keys.toString().includes(key))) this.#end();
      else this.#wake();
    });
  }

  get columns(): number {
    return this.#out.columns || 80;
  }

  get rows(): number {
    return this.#out.rows || 24;
  }

  /** Shows lines, which are made again when the terminal has another size. */
  draw(lines: () => readonly string[]): void {
    this.#draw = lines;
    const next = lines().slice(0, this.rows);
    this.#out.write(changes(this.#shown, next));
    this.#shown = [...next];
  }

  /** Resolves after that time, or when a key is pressed. */
  pause(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  close(): void {
    this.#out.off("resize", this.#resized);
    if (this.#in.isTTY) this.#in.setRawMode(false);
    this.#in.pause();
    this.#leave();
    process.off("exit", this.#leave);
  }

  readonly #leave = (): void => {
    this.#out.write(LEAVE);
  };

  readonly #resized = (): void => {
    this.#shown = [];
    this.#out.write(`${ESC}2J`);
    this.draw(this.#draw);
  };

  #end(): void {
    this.isOver = true;
    this.#wake();
  }
}

/** What a terminal that shows `before` is to be sent to show `after`. */
export function changes(before: readonly string[], after: readonly string[]): string {
  const parts: string[] = [];
  for (let row = 0; row < Math.max(before.length, after.length); row++) {
    const [old, next] = [before[row] ?? "", after[row] ?? ""];
    if (old === next) continue;
    let from = 0;
    while (from < old.length && old[from] === next[from]) from++;
    let to = next.length;
    // Behind the last difference nothing changes, where both are equally long.
    while (old.length === next.length && to > from && old[to - 1] === next[to - 1]) to--;
    const rest = next.length < old.length ? `${ESC}K` : "";
    parts.push(`${ESC}${row + 1};${from + 1}H${next.slice(from, to)}${rest}`);
  }
  return parts.join("");
}
