/**
 * Faults that an operator injects: I/O commands of a kind, or to some blocks, that fail or are late, once or always.
 * What may meet one is not done at once or in a lane but comes to TypeScript, where `intercept` sees it before it
 * begins. Left out: admin commands, and fused pairs.
 */
import { UserError } from "../../../shared/errors.js";
import type { Command } from "./queues/command.js";
import { NvmOpcode, RW_NLB_MASK, Status } from "./spec.js";

const MAX_FAULTS = 32;
/** Commands whose blocks are a range of theirs. */
const RANGED: ReadonlySet<number> = new Set([
  NvmOpcode.READ,
  NvmOpcode.WRITE,
  NvmOpcode.COMPARE,
  NvmOpcode.WRITE_ZEROES,
  NvmOpcode.VERIFY,
]);

/** What an operator calls them. */
export const OPCODES: Readonly<Record<string, number>> = {
  flush: NvmOpcode.FLUSH,
  write: NvmOpcode.WRITE,
  read: NvmOpcode.READ,
  compare: NvmOpcode.COMPARE,
  "write-zeroes": NvmOpcode.WRITE_ZEROES,
  "dataset-management": NvmOpcode.DATASET_MANAGEMENT,
  verify: NvmOpcode.VERIFY,
  copy: NvmOpcode.COPY,
};
export const ERRORS: Readonly<Record<string, number>> = {
  "internal-error": Status.INTERNAL_ERROR,
  "write-fault": Status.WRITE_FAULT,
  "unrecovered-read-error": Status.UNRECOVERED_READ_ERROR,
  "capacity-exceeded": Status.CAPACITY_EXCEEDED,
  "write-protected": Status.NAMESPACE_WRITE_PROTECTED,
  "lba-out-of-range": Status.LBA_OUT_OF_RANGE,
};

/** Undefined: any, or none. */
export interface Fault {
  readonly opcode: string | undefined;
  readonly namespace: number | undefined;
  /** Blocks, the last one included. */
  readonly first: number | undefined;
  readonly last: number | undefined;
  readonly error: string | undefined;
  /** Milliseconds, before the command fails or begins. */
  readonly delay: number | undefined;
  readonly once: boolean;
}

interface Active extends Fault {
  readonly id: number;
  hits: number;
}

export class Faults {
  /** Called when the first one is there, or the last one is gone. */
  onActive: (isActive: boolean) => void = () => {};
  #active: readonly Active[] = [];
  #lastId = 0;

  /** Commands may meet one: none is to be done without `intercept`. */
  get isActive(): boolean {
    return this.#active.length > 0;
  }

  get list(): readonly Readonly<Active>[] {
    return this.#active;
  }

  /** @throws UserError for one that does nothing, or one too many */
  add(fault: Fault): Readonly<Active> {
    if (fault.error === undefined && fault.delay === undefined) throw new UserError("neither an error nor a delay");
    if ((fault.first ?? 0) > (fault.last ?? Number.POSITIVE_INFINITY)) throw new UserError("last is before first");
    if (this.#active.length >= MAX_FAULTS) throw new UserError(`there are ${MAX_FAULTS} faults already`);
    const added = { ...fault, id: ++this.#lastId, hits: 0 };
    this.#set([...this.#active, added]);
    return added;
  }

  /** Takes back one, or all; returns how many. */
  clear(id?: number): number {
    const before = this.#active.length;
    this.#set(this.#active.filter((each) => id !== undefined && each.id !== id));
    return before - this.#active.length;
  }

  /**
   * Whether a command is dealt with here: it fails, now or later; or `goOn` is called later, unless it has ended
   * meanwhile. The first fault that fits counts.
   */
  intercept(command: Command, goOn: () => void): boolean {
    const fault = this.#active.find((each) => fits(each, command));
    if (fault === undefined) return false;
    fault.hits++;
    if (fault.once) this.clear(fault.id);
    const { error, delay } = fault;
    const end = () => {
      if (command.ended) return;
      if (error === undefined) goOn();
      else command.complete(ERRORS[error]);
    };
    if (delay === undefined) end();
    else setTimeout(end, delay);
    return true;
  }

  #set(active: readonly Active[]): void {
    const was = this.isActive;
    this.#active = active;
    if (this.isActive !== was) this.onActive(this.isActive);
  }
}

function fits({ opcode, namespace, first, last }: Fault, command: Command): boolean {
  if (opcode !== undefined && OPCODES[opcode] !== command.opcode) return false;
  if (namespace !== undefined && namespace !== command.namespaceId) return false;
  if (first === undefined && last === undefined) return true;
  if (!RANGED.has(command.opcode)) return false;
  const begin = command.cdw11 * 2 ** 32 + command.cdw10;
  const end = begin + (command.cdw12 & RW_NLB_MASK);
  return end >= (first ?? 0) && begin <= (last ?? Number.POSITIVE_INFINITY);
}
