/** NVM Express 1.4, section 5.23: Format NVM. Left out: metadata, protection information, cryptographic erase. */
import type { Command } from "./command.js";
import { LBA_FORMATS, type Namespace } from "./namespace.js";
import type { Namespaces } from "./namespaces.js";
import { Format, NSID_ALL, Status } from "./spec.js";
import type { Task } from "./task.js";

/** Formats one namespace, or all. Resolves to a status; never rejects. */
export async function formatNvm(command: Command, namespaces: Namespaces): Promise<number> {
  const { cdw10, namespaceId } = command;
  const found = namespaces.find(namespaceId);
  const chosen = namespaceId === NSID_ALL ? namespaces.all : found === undefined ? [] : [found];
  if (chosen.length === 0) return Status.INVALID_NAMESPACE_OR_FORMAT;
  const blockSize = LBA_FORMATS[Format.lbafOf(cdw10)];
  if (blockSize === undefined || (cdw10 & Format.PROTECTION_MASK) !== 0) return Status.INVALID_FORMAT;
  // What is erased reads as zeros for ever, whether that was asked for or not.
  if (Format.sesOf(cdw10) > Format.SES_USER_DATA) return Status.INVALID_FIELD;
  if (chosen.some(({ storage }) => storage.readOnly)) return Status.NAMESPACE_WRITE_PROTECTED;
  if (!chosen.every((namespace) => namespace.canHaveBlocksOf(blockSize))) return Status.INVALID_FORMAT;
  if (chosen.some(({ formatting }) => formatting)) return Status.FORMAT_IN_PROGRESS;
  const formatted = chosen.map((namespace) => formatOne(namespace, blockSize, command));
  const statuses = await Promise.all(formatted);
  return statuses.find((status) => status !== Status.SUCCESS) ?? Status.SUCCESS;
}

function formatOne(namespace: Namespace, blockSize: number, task: Task): Promise<number> {
  return new Promise((done) => namespace.format(blockSize, task, done));
}
