/**
 * NVM Express 1.4, section 7.6.1: what the driver's set-up of the registers has to be for a controller to get ready.
 */
import { isExact } from "../../../shared/address.js";
import type { RegisterFile } from "../../pci/registers.js";
import { CompletionQueue, MAX_RING_SIZE, SubmissionQueue } from "./queues.js";
import { Aqa, Cc, MPSMAX, type RegisterName } from "./registers.js";

export interface AdminQueues {
  /** CC.MPS in bytes. */
  readonly pageSize: number;
  readonly completionQueue: CompletionQueue;
  readonly submissionQueue: SubmissionQueue;
}

/** The admin queues as the registers describe them, or what is wrong with the registers. */
export function adminQueuesOf(registers: RegisterFile<RegisterName>): AdminQueues | string {
  const cc = registers.get("CC");
  const aqa = registers.get("AQA");
  const submission = registers.getAddress("ASQ");
  const completion = registers.getAddress("ACQ");
  const pageSize = Cc.pageSizeOf(cc);
  if (Cc.cssOf(cc) !== 0) return "CC.CSS is not the NVM command set";
  if (Cc.mpsOf(cc) > MPSMAX) return "CC.MPS is above CAP.MPSMAX";
  if (Cc.amsOf(cc) !== 0) return "CC.AMS is not round robin";
  if (Aqa.asqsOf(aqa) < 2 || Aqa.acqsOf(aqa) < 2) return "AQA: an admin queue has fewer than two entries";
  if (!isQueueBase(submission, pageSize) || !isQueueBase(completion, pageSize)) {
    return "ASQ or ACQ is no address of a memory page";
  }
  const completionQueue = new CompletionQueue(0, completion, Aqa.acqsOf(aqa), 0, true);
  const submissionQueue = new SubmissionQueue(0, submission, Aqa.asqsOf(aqa), completionQueue);
  return { pageSize, completionQueue, submissionQueue };
}

/** Address 0 is as good as any other to an IOMMU. Memory that is not there is noticed when it is used. */
function isQueueBase(address: number, pageSize: number): boolean {
  return address % pageSize === 0 && isExact(address, MAX_RING_SIZE);
}
