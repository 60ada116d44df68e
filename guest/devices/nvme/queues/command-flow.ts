/**
 * Commands on their way from a submission queue to a completion queue: fetched in bursts, done at once where that is
 * possible (direct-io.ts), else handed to `execute`, which completes them by `complete`, at once or later.
 *
 * Entries of queues whose memory is not in the window come and go by messages to the driver VM's VMM, in order. Memory
 * of a queue that cannot be reached is fatal for the controller (NVM Express 1.4, section 9.5), unless the queue is
 * gone by then.
 */
import { KiB, MiB } from "../../../../shared/limits.js";
import { isLost } from "../../../../shared/lost-memory.js";
import type { DeviceContext } from "../../../device.js";
import type { DirectIo } from "../commands/direct-io.js";
import { MINIMUM_PAGE_SIZE } from "../registers.js";
import { Fuse, Status, SUBMISSION_ENTRY_SIZE } from "../spec.js";
import { ioBatch } from "../storage/io-batch.js";
import { Command } from "./command.js";
import { Completions, FILE_TRUNCATED } from "./completions.js";
import { InFlight } from "./in-flight.js";
import type { CompletionQueue, SubmissionQueue } from "./queues.js";
import { newSegment } from "./segments.js";

/**
 * I/O commands in flight at most; the others stay in their queues. It bounds the memory that a driver can make us keep.
 * Admin commands have room of their own, in number and in bytes of data: I/O that is slow must not keep a Keep Alive
 * from being heard.
 */
const MAX_COMMANDS = 1024;
const MAX_ADMIN_COMMANDS = 256;
const MAX_ADMIN_BYTES = 2 * MiB;
/** Of one queue, before others are served. */
const BURST = 16;
const BURST_BYTES = 256 * KiB;
/** A command counts as one, and as one more for each 16 KiB that were copied for it. */
const WORK_SHIFT = 14;

export interface CommandFlowHooks {
  /** Commands that can be done at once. */
  readonly direct: DirectIo;
  execute(command: Command): void;
  /** A fused pair, to be carried out as one; both complete together. */
  executePair(first: Command, second: Command): void;
  /** A command ended with an error: for the log pages. */
  onError(command: Command, status: number): void;
  /** Queue memory cannot be reached. */
  onFatal(reason: unknown): void;
  /** A bug of ours. */
  onBug(error: unknown): void;
}

/** What commands want of the engine. */
export interface CommandEngine {
  /** Commands can be fetched, perhaps: a turn soon. */
  serve(queue: SubmissionQueue): void;
  /** An interrupt is due at the end of the turn. */
  interrupt(queue: CompletionQueue): void;
}

const segment = newSegment();

export class CommandFlow {
  readonly inFlight = new InFlight();
  readonly completions: Completions;
  /** CC.MPS in bytes, as it was when the controller was enabled. */
  pageSize = MINIMUM_PAGE_SIZE;
  /** Commands so far. */
  count = 0;
  readonly #context: DeviceContext;
  readonly #hooks: CommandFlowHooks;
  readonly #engine: CommandEngine;
  readonly #pool: Command[] = [];
  /** Those that were not done at once. */
  readonly #active = new Set<Command>();
  /** Of each queue, the first half of a pair, which waits for the second. It is not active. */
  readonly #fused = new Map<SubmissionQueue, Command>();
  #adminCommands = 0;
  #adminBytes = 0;
  /** Turns so far, but for 0: where a ring was found in one is good in it. */
  #turn = 1;
  /** Commands of a burst that `direct` has started. */
  readonly #started: Command[] = [];
  #copied = 0;

  constructor(context: DeviceContext, hooks: CommandFlowHooks, engine: CommandEngine) {
    this.#context = context;
    this.#hooks = hooks;
    this.#engine = engine;
    this.completions = new Completions(context.dma, this.inFlight, hooks, engine);
  }

  /** Whether no further command of a queue may begin. The end of one serves its queue again. */
  isFull({ id }: SubmissionQueue): boolean {
    if (id !== 0) return this.#active.size - this.#adminCommands >= MAX_COMMANDS;
    return this.#adminCommands >= MAX_ADMIN_COMMANDS || this.#adminBytes >= MAX_ADMIN_BYTES;
  }

  /**
   * Ends commands before their time: those that are chosen. Their work, as far as it has begun, ends unnoticed. Returns
   * how many. With one half of a pair the other fails.
   */
  cancel(chosen: (command: Command) => boolean, status: number): number {
    const commands = [...this.#active].filter(chosen);
    for (const [queue, first] of this.#fused) {
      if (!chosen(first)) continue;
      if (!first.ended) {
        this.#activate(first);
        commands.push(first);
      }
      // The second half of one that was aborted fails when it comes.
      if (!queue.alive || status === Status.ABORTED_SQ_DELETION) this.#forgetHalfPair(queue, first, false);
    }
    // All at once: what waits for the end of one may be another that ends.
    for (const command of commands) command.ended = true;
    const others: Command[] = [];
    for (const { partner } of commands) {
      if (partner === undefined || partner.ended) continue;
      partner.ended = true;
      others.push(partner);
    }
    // They are not used again: who still works for them has them.
    for (const command of commands) this.#end(command, status);
    for (const command of others) this.#end(command, Status.ABORTED_FAILED_FUSED);
    return commands.length;
  }

  /**
   * Ends a command that was not fetched yet. False where there is no such one in the window, or no room for its
   * completion; pairs are left alone.
   */
  abortWaiting(queue: SubmissionQueue | undefined, id: number): boolean {
    if (queue === undefined || queue.fetching || queue.completionQueue.room < 1) return false;
    if (!queue.locate(this.#context.dma, this.#turn, "read", SUBMISSION_ENTRY_SIZE)) return false;
    const { data, offset } = queue.segment;
    for (let index = queue.head; index !== queue.tail; index = queue.next(index)) {
      const word = data.getUint32(offset + index * SUBMISSION_ENTRY_SIZE, true);
      if (word >>> 16 !== id || queue.aborted.has(index)) continue;
      if (((word >>> 8) & Fuse.MASK) !== 0) return false;
      queue.aborted.add(index);
      this.completions.post(queue, id, Status.ABORT_REQUESTED, 0);
      return true;
    }
    return false;
  }

  /** Control came from the event loop: what was found in the window before may not be there any more. */
  beginTurn(): void {
    this.#turn = (this.#turn + 1) | 0 || 1;
  }

  /** Fetches and starts a burst of commands; returns how much work they were. */
  fetch(queue: SubmissionQueue): number {
    ioBatch.cork();
    try {
      return this.#fetch(queue);
    } finally {
      ioBatch.uncork();
    }
  }

  #fetch(queue: SubmissionQueue): number {
    const { dma } = this.#context;
    const isLocated = queue.locate(dma, this.#turn, "read", SUBMISSION_ENTRY_SIZE);
    const ring = isLocated ? queue.segment : segment;
    this.#copied = 0;
    let count = 0;
    let byMessages = false;
    while (count < BURST && this.#burstBytes < BURST_BYTES && queue.servable && !this.isFull(queue)) {
      if (queue.skipAborted()) {
        count++;
        continue;
      }
      const inRing = queue.head * SUBMISSION_ENTRY_SIZE;
      byMessages =
        !isLocated && dma.locate(queue.base + inRing, SUBMISSION_ENTRY_SIZE, "read", segment) < SUBMISSION_ENTRY_SIZE;
      if (byMessages) break;
      const offset = isLocated ? ring.offset + inRing : ring.offset;
      const command = this.#take(ring.data, offset);
      // Zeros, of which the opcode is one, are no command there.
      if (command.opcode === 0 && isLost(ring.bytes, offset, SUBMISSION_ENTRY_SIZE)) {
        this.#hooks.onFatal(FILE_TRUNCATED);
        break;
      }
      if (!this.#hasRoomFor(queue, command)) break;
      this.#start(queue, command);
      count++;
    }
    dma.account(count * SUBMISSION_ENTRY_SIZE, 0);
    this.#finishStarted(queue);
    if (this.#fused.size > 0) this.#endHalfPair(queue);
    if (byMessages) void this.#fetchByMessages(queue);
    return count + (this.#copied >>> WORK_SHIFT);
  }

  /** Never rejects. */
  async #fetchByMessages(queue: SubmissionQueue): Promise<void> {
    const contiguous = (queue.tail > queue.head ? queue.tail : queue.size) - queue.head;
    const count = Math.min(contiguous, Math.max(queue.completionQueue.room, 1), BURST);
    const bytes = new Uint8Array(count * SUBMISSION_ENTRY_SIZE);
    const data = new DataView(bytes.buffer);
    const group = this.inFlight.begin();
    queue.fetching = true;
    try {
      await this.#context.dma.read(queue.base + queue.head * SUBMISSION_ENTRY_SIZE, bytes);
      queue.fetching = false;
      this.beginTurn();
      // What is no longer wanted stays in the queue and is read again.
      for (let n = 0; n < count && queue.servable; n++) {
        if (queue.skipAborted()) continue;
        const command = this.#take(data, n * SUBMISSION_ENTRY_SIZE);
        if (!this.#hasRoomFor(queue, command)) break;
        this.#start(queue, command);
        this.#finishStarted(queue);
      }
      this.#endHalfPair(queue);
      this.#engine.serve(queue);
    } catch (error) {
      queue.fetching = false;
      if (queue.alive) this.#hooks.onFatal(error);
    } finally {
      this.inFlight.end(group);
    }
  }

  /** Ends a command whose completion comes later, by `post` (Asynchronous Event Request). */
  detach(command: Command): void {
    command.ended = true;
    this.#release(command);
    this.#pool.push(command);
  }

  /** Completes a command, unless it has ended. It must not be used afterwards. */
  readonly #complete = (command: Command, status: number): void => {
    if (command.ended) return;
    try {
      this.#end(command, status);
      this.#pool.push(command);
    } catch (error) {
      this.#hooks.onBug(error);
    }
  };

  /** Posts its completion, unless its queue is gone. */
  #end(command: Command, status: number): void {
    const { queue } = command;
    command.ended = true;
    if (queue.alive && status !== Status.SUCCESS) this.#hooks.onError(command, status);
    if (queue.alive && queue.completionQueue.alive) this.completions.post(queue, command.id, status, command.result);
    this.#release(command);
  }

  get #burstBytes(): number {
    return this.#copied + this.#hooks.direct.pending;
  }

  #take(data: DataView, offset: number): Command {
    const command = this.#pool.pop() ?? new Command(this.#context.dma, this.#complete);
    command.decode(data, offset);
    return command;
  }

  #start(queue: SubmissionQueue, command: Command): void {
    const { log } = this.#context;
    command.queue = queue;
    command.pageSize = this.pageSize;
    queue.head = queue.next(queue.head);
    if (queue.wanted > 1) queue.wanted = 1;
    queue.completionQueue.reserved++;
    this.count++;
    if (log.isLevelEnabled("trace")) log.trace({ queue: queue.id, id: command.id, opcode: command.opcode }, "command");
    if (queue.id !== 0 && (this.#fused.size > 0 || command.fuse !== 0) && this.#takeHalfPair(queue, command)) return;
    if (queue.id !== 0 && this.#hooks.direct.start(command)) {
      this.#started.push(command);
      return;
    }
    // What a Flush finds in its queue before it is in memory by then.
    this.#finishStarted(queue);
    this.#execute(command);
  }

  #execute(command: Command): void {
    const isAdmin = command.queue.id === 0;
    if (!command.queue.alive) {
      // Its burst was cut short.
      command.queue.completionQueue.reserved--;
      return;
    }
    this.#activate(command);
    if (isAdmin) this.#adminCommands++;
    this.#hooks.execute(command);
    // What it moves, or is going to.
    this.#copied += command.length;
    if (!isAdmin || command.ended) return;
    command.adminBytes = command.length;
    this.#adminBytes += command.length;
  }

  #activate(command: Command): void {
    command.waitGroup = this.inFlight.begin();
    this.#active.add(command);
  }

  /** A pair begins when both of it can complete: no half waits for room that another half has. */
  #hasRoomFor(queue: SubmissionQueue, command: Command): boolean {
    const { completionQueue, wanted } = queue;
    if (queue.id === 0 || command.fuse !== Fuse.FIRST || wanted === 0) return true;
    if (completionQueue.room >= 2 || completionQueue.size === 2) return true;
    queue.wanted = 2;
    this.#pool.push(command);
    return false;
  }

  /**
   * NVM Express 2.0, section 3.4.2: both halves stand side by side in their queue, and are carried out when both are
   * here. False for a command that is none of a pair.
   */
  #takeHalfPair(queue: SubmissionQueue, command: Command): boolean {
    const first = this.#fused.get(queue);
    const isPair = first !== undefined && command.fuse === Fuse.SECOND;
    if (first !== undefined) this.#forgetHalfPair(queue, first, !isPair);
    if (command.fuse !== Fuse.FIRST && command.fuse !== Fuse.SECOND) return false;
    this.#finishStarted(queue);
    if (!queue.alive) {
      queue.completionQueue.reserved--;
    } else if (command.fuse === Fuse.FIRST && queue.completionQueue.room > 0) {
      queue.completionQueue.reserved++;
      queue.wanted = 0;
      this.#fused.set(queue, command);
    } else if (!isPair || first.ended) {
      this.#activate(command);
      this.#complete(command, isPair ? Status.ABORTED_FAILED_FUSED : Status.ABORTED_MISSING_FUSED);
    } else {
      first.partner = command;
      command.partner = first;
      this.#activate(first);
      this.#activate(command);
      this.#hooks.executePair(first, command);
      this.#copied += command.length;
    }
    return true;
  }

  /** Both come with one doorbell: what is not behind the first half does not come any more. */
  #endHalfPair(queue: SubmissionQueue): void {
    const first = this.#fused.get(queue);
    if (first !== undefined && queue.head === queue.tail) this.#forgetHalfPair(queue, first, true);
  }

  #forgetHalfPair(queue: SubmissionQueue, first: Command, isMissing: boolean): void {
    this.#fused.delete(queue);
    queue.wanted = 1;
    queue.completionQueue.reserved--;
    if (!isMissing || first.ended) return;
    this.#activate(first);
    this.#complete(first, Status.ABORTED_MISSING_FUSED);
  }

  /**
   * Completes the commands that were started at once, all of them `queue`'s; those that could not be done take the
   * other way.
   */
  #finishStarted(queue: SubmissionQueue): void {
    const started = this.#started;
    if (started.length === 0) return;
    const { direct } = this.#hooks;
    this.#copied += direct.pending;
    direct.finish();
    let posted = 0;
    for (const command of started) {
      if (!direct.isDone(command)) {
        this.#execute(command);
        continue;
      }
      if (this.completions.postSuccess(queue, command.id, this.#turn)) posted++;
      this.#pool.push(command);
    }
    started.length = 0;
    if (posted > 0) this.completions.posted(queue.completionQueue, posted);
  }

  #release(command: Command): void {
    const { queue, namespace } = command;
    queue.completionQueue.reserved--;
    this.#active.delete(command);
    if (queue.id === 0) {
      this.#adminCommands--;
      this.#adminBytes -= command.adminBytes;
      command.adminBytes = 0;
    }
    command.namespace = undefined;
    namespace?.end();
    this.inFlight.end(command.waitGroup);
    // Others may have waited for room, or for MAX_COMMANDS.
    this.#engine.serve(queue);
  }
}
