/**
 * Commands on their way out of submission queues, and back by completions.ts or, of a lane's queue, by its lane.
 * `fetch` takes one out of a queue that is served here: where the queue is in the window at once, otherwise by
 * messages to the driver VM's VMM, in order. `take` takes one that a lane fetched. Both give what is ready to be
 * carried out, and whoever asked does that. Memory of a queue that cannot be reached is fatal for the controller (NVM
 * Express 1.4, section 9.5), unless the queue is gone by then.
 */
import { MiB } from "../../../../shared/limits.js";
import { isLost } from "../../../../shared/lost-memory.js";
import type { DeviceContext } from "../../../device.js";
import { MINIMUM_PAGE_SIZE } from "../registers.js";
import { Fuse, Status, SUBMISSION_ENTRY_SIZE } from "../spec.js";
import { Command, NO_SLOT } from "./command.js";
import { Completions, FILE_TRUNCATED, statusField } from "./completions.js";
import { InFlight } from "./in-flight.js";
import type { LaneCommand, Lanes } from "./lanes.js";
import type { QueueInterrupts } from "./queue-interrupts.js";
import { type CompletionQueue, NO_LANE, type SubmissionQueue } from "./queues.js";
import type { Reports } from "./reports.js";
import { newSegment } from "./segments.js";

/**
 * I/O commands of queues that no lane serves, in flight at most; the others stay in their queues. It bounds the memory
 * that a driver can make us keep, as a lane's slots do for its queues. Admin commands have room of their own, in number
 * and in bytes of data: I/O that is slow must not keep a Keep Alive from being heard.
 */
const MAX_COMMANDS = 1024;
const MAX_ADMIN_COMMANDS = 256;
const MAX_ADMIN_BYTES = 2 * MiB;
/** Entries that are read by one message. */
const MAX_FETCHED = 16;

const segment = newSegment();

export class CommandFlow {
  readonly inFlight = new InFlight();
  readonly completions: Completions;
  /** CC.MPS in bytes, as it was when the controller was enabled. */
  pageSize = MINIMUM_PAGE_SIZE;
  /** Commands so far, without those of lanes. */
  count = 0;
  readonly #context: DeviceContext;
  readonly #reports: Reports;
  readonly #lanes: Lanes;
  /** Commands can be fetched, perhaps, or something was reported: a turn soon. */
  readonly #serve: (queue: SubmissionQueue) => void;
  readonly #pool: Command[] = [];
  readonly #active = new Set<Command>();
  /** Of each queue, the first half of a pair, which waits for the second. It is not active. */
  readonly #fused = new Map<SubmissionQueue, Command>();
  #adminCommands = 0;
  #adminBytes = 0;
  /** Turns so far, but for 0: where a ring was found in one is good in it. */
  #turn = 1;

  constructor(
    context: DeviceContext,
    reports: Reports,
    interrupts: QueueInterrupts,
    lanes: Lanes,
    serve: (queue?: SubmissionQueue) => void,
  ) {
    this.#context = context;
    this.#reports = reports;
    this.#lanes = lanes;
    this.#serve = serve;
    this.completions = new Completions(context.dma, this.inFlight, reports, interrupts, () => serve());
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
    if (queue === undefined) return false;
    if (queue.completionQueue.lane !== NO_LANE) return this.#lanes.abort(queue, id, Status.ABORT_REQUESTED);
    if (queue.fetching || queue.fetched !== undefined || queue.completionQueue.room < 1) return false;
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

  /**
   * The next command of a queue that is ready to be carried out; of a pair the first half, which has its partner then.
   * Undefined: none now.
   */
  fetch(queue: SubmissionQueue): Command | undefined {
    let ready: Command | undefined;
    while (ready === undefined && queue.servable && !this.isFull(queue)) {
      if (queue.skipAborted()) continue;
      const command = this.#read(queue);
      if (command === undefined || !this.#hasRoomFor(queue, command)) break;
      queue.head = queue.next(queue.head);
      if (queue.wanted > 1) queue.wanted = 1;
      queue.completionQueue.reserved++;
      this.count++;
      ready = this.#admit(command, queue.completionQueue.room > 0);
    }
    // Both halves come with one doorbell: what is not behind the first one does not come any more.
    const first = this.#fused.get(queue);
    if (first !== undefined && queue.head === queue.tail) this.#forgetHalfPair(queue, first, true);
    return ready;
  }

  /** The same of a command that a lane fetched. */
  take({ queue, data, offset, slot, isLast }: LaneCommand): Command | undefined {
    const command = this.#decode(queue, data, offset);
    command.slot = slot;
    return this.#admit(command, !isLast);
  }

  /** A command that `fetch` or `take` gave was carried out as far as that goes at once. */
  started(command: Command): void {
    if (command.queue.id !== 0 || command.ended) return;
    command.adminBytes = command.length;
    this.#adminBytes += command.length;
  }

  /** A queue left its lane: its commands in flight are completed here, by entries that are reserved. */
  takeOver(completionQueue: CompletionQueue): void {
    for (const command of [...this.#active, ...this.#fused.values()]) {
      if (command.queue.completionQueue !== completionQueue || command.slot === NO_SLOT || command.ended) continue;
      command.slot = NO_SLOT;
      completionQueue.reserved++;
    }
    for (const [queue] of this.#fused) {
      if (queue.completionQueue !== completionQueue) continue;
      completionQueue.reserved++;
      queue.wanted = 0;
    }
  }

  /** Ends a command whose completion comes later, by `post` (Asynchronous Event Request). */
  detach(command: Command): void {
    command.ended = true;
    this.#release(command);
    this.#pool.push(command);
  }

  /** The entry at the head; undefined when it has to be read by messages first, or never comes. */
  #read(queue: SubmissionQueue): Command | undefined {
    const { dma } = this.#context;
    if (queue.fetched !== undefined) {
      const offset = (queue.head - queue.fetchedAt) * SUBMISSION_ENTRY_SIZE;
      if (offset >= 0 && offset < queue.fetched.byteLength) return this.#decode(queue, queue.fetched, offset);
      queue.fetched = undefined;
    }
    const inRing = queue.head * SUBMISSION_ENTRY_SIZE;
    const isLocated = queue.locate(dma, this.#turn, "read", SUBMISSION_ENTRY_SIZE);
    if (!isLocated && dma.locate(queue.base + inRing, SUBMISSION_ENTRY_SIZE, "read", segment) < SUBMISSION_ENTRY_SIZE) {
      void this.#readByMessages(queue);
      return undefined;
    }
    const { data, bytes } = isLocated ? queue.segment : segment;
    const offset = isLocated ? queue.segment.offset + inRing : segment.offset;
    const command = this.#decode(queue, data, offset);
    dma.account(SUBMISSION_ENTRY_SIZE, 0);
    // Zeros, of which the opcode is one, are no command there.
    if (command.opcode !== 0 || !isLost(bytes, offset, SUBMISSION_ENTRY_SIZE)) return command;
    this.#reports.fatal ??= FILE_TRUNCATED;
    return undefined;
  }

  /** Never rejects. */
  async #readByMessages(queue: SubmissionQueue): Promise<void> {
    const contiguous = (queue.tail > queue.head ? queue.tail : queue.size) - queue.head;
    const count = Math.min(contiguous, Math.max(queue.completionQueue.room, 1), MAX_FETCHED);
    const bytes = new Uint8Array(count * SUBMISSION_ENTRY_SIZE);
    const group = this.inFlight.begin();
    queue.fetching = true;
    try {
      await this.#context.dma.read(queue.base + queue.head * SUBMISSION_ENTRY_SIZE, bytes);
      queue.fetched = new DataView(bytes.buffer);
      queue.fetchedAt = queue.head;
    } catch (error) {
      if (queue.alive) this.#reports.fatal ??= error;
    } finally {
      queue.fetching = false;
      this.inFlight.end(group);
      this.#serve(queue);
    }
  }

  #decode(queue: SubmissionQueue, data: DataView, offset: number): Command {
    const { log } = this.#context;
    const command = this.#pool.pop() ?? new Command(this.#context.dma, this.#complete);
    command.decode(data, offset);
    command.queue = queue;
    command.pageSize = this.pageSize;
    if (log.isLevelEnabled("trace")) log.trace({ queue: queue.id, id: command.id, opcode: command.opcode }, "command");
    return command;
  }

  /** Completes a command, unless it has ended. It must not be used afterwards. */
  readonly #complete = (command: Command, status: number): void => {
    if (command.ended) return;
    try {
      this.#end(command, status);
      this.#pool.push(command);
    } catch (error) {
      this.#reports.bug ??= error;
      this.#serve(command.queue);
    }
  };

  /** Posts its completion, unless its queue is gone. */
  #end(command: Command, status: number): void {
    const { queue, id, slot, result } = command;
    command.ended = true;
    if (queue.alive && status !== Status.SUCCESS) this.#reports.note(command, status);
    if (queue.alive && queue.completionQueue.alive) {
      if (slot === NO_SLOT) this.completions.post(queue, id, status, result);
      else this.#lanes.answer(queue, slot, statusField(status), result);
    }
    this.#release(command);
  }

  #activate(command: Command): void {
    command.waitGroup = this.inFlight.begin();
    this.#active.add(command);
    if (command.queue.id === 0) this.#adminCommands++;
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
   * NVM Express 2.0, section 3.4.2: both halves of a pair stand side by side in their queue, and are carried out when
   * both are here. `mayPair`: the second one can come, and complete.
   */
  #admit(command: Command, mayPair: boolean): Command | undefined {
    const { queue } = command;
    const first = this.#fused.get(queue);
    if (queue.id === 0 || (first === undefined && command.fuse === 0)) {
      this.#activate(command);
      return command;
    }
    const isPair = first !== undefined && command.fuse === Fuse.SECOND;
    if (first !== undefined) this.#forgetHalfPair(queue, first, !isPair);
    if (command.fuse !== Fuse.FIRST && command.fuse !== Fuse.SECOND) {
      this.#activate(command);
      return command;
    }
    if (command.fuse === Fuse.FIRST && mayPair) {
      if (command.slot === NO_SLOT) queue.completionQueue.reserved++;
      queue.wanted = 0;
      this.#fused.set(queue, command);
      return undefined;
    }
    this.#activate(command);
    if (!isPair || first.ended) {
      this.#complete(command, isPair ? Status.ABORTED_FAILED_FUSED : Status.ABORTED_MISSING_FUSED);
      return undefined;
    }
    first.partner = command;
    command.partner = first;
    this.#activate(first);
    return first;
  }

  #forgetHalfPair(queue: SubmissionQueue, first: Command, isMissing: boolean): void {
    this.#fused.delete(queue);
    queue.wanted = 1;
    if (queue.completionQueue.lane === NO_LANE) queue.completionQueue.reserved--;
    if (!isMissing || first.ended) return;
    this.#activate(first);
    this.#complete(first, Status.ABORTED_MISSING_FUSED);
  }

  #release(command: Command): void {
    const { queue, namespace } = command;
    if (command.slot === NO_SLOT) queue.completionQueue.reserved--;
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
    this.#serve(queue);
  }
}
