/**
 * Memory for data that is copied: some processors take twice as long, and more, when it begins in the middle of a page.
 */
import { addressOf } from "../native/index.js";
import { PAGE_SIZE } from "./limits.js";

/** `length` bytes of zeros; from a page's size on they begin at a page. */
export function pageAligned(length: number): Uint8Array<ArrayBuffer> {
  if (length < PAGE_SIZE) return new Uint8Array(length);
  const buffer = new ArrayBuffer(length + PAGE_SIZE);
  return new Uint8Array(buffer, PAGE_SIZE - (addressOf(buffer) % PAGE_SIZE), length);
}
