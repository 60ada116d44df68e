/** Ends what was started, last first, once; each end is tried even when another failed. */
export class Cleanup {
  private readonly ends: Array<() => unknown> = [];
  private running: Promise<void> | undefined;

  /** Registers an end. When the clean-up has begun already, it is run at once. */
  add(end: () => unknown): void {
    if (this.running === undefined) this.ends.push(end);
    else void Promise.resolve(end()).catch(report);
  }

  get started(): boolean {
    return this.running !== undefined;
  }

  run(): Promise<void> {
    this.running ??= this.runAll();
    return this.running;
  }

  private async runAll(): Promise<void> {
    for (const end of this.ends.reverse())
      try {
        await end();
      } catch (error) {
        report(error);
      }
  }
}

function report(error: unknown): void {
  console.error("clean-up:", error);
}
