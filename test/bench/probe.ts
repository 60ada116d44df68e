/**
 * Loaded into each Node process that is measured (node --import): answers the benchmark's questions over the IPC
 * channel. Programs register what else can be asked of them with `answer`.
 */

export interface Question {
  readonly id: number;
  readonly name: string;
  readonly args: readonly unknown[];
}
export interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: string;
}

type Answerer = (...args: never[]) => unknown;

const answerers = new Map<string, Answerer>();
const early: Question[] = [];

export function answer(name: string, answerer: Answerer): void {
  answerers.set(name, answerer);
  for (const question of early.splice(0)) void reply(question);
}

async function reply(question: Question): Promise<void> {
  const { id, name, args } = question;
  const answerer = answerers.get(name);
  if (answerer === undefined) {
    early.push(question);
    return;
  }
  let result: Answer;
  try {
    result = { id, value: await answerer(...(args as never[])) };
  } catch (error) {
    result = { id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
  process.send?.(result);
}

if (process.send !== undefined) {
  process.on("message", (question: Question) => void reply(question));
  process.on("disconnect", () => process.exit());
}

/** Bytes of live heap, everything that can be collected collected. */
answer("heap", () => {
  globalThis.gc?.();
  globalThis.gc?.();
  const { heapUsed, external, arrayBuffers } = process.memoryUsage();
  return heapUsed + external + arrayBuffers;
});

let busyTimer: NodeJS.Timeout | undefined;
/** Keeps JavaScript busy for `ms` at a time, with a breath in between; 0 ends it. */
answer("busy", (ms: number) => {
  clearInterval(busyTimer);
  if (ms === 0) return;
  busyTimer = setInterval(() => {
    for (const end = performance.now() + ms; performance.now() < end; );
  }, 1);
});
