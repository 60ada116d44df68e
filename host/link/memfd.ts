/** Memory of the bridge's that a VM gets: whoever has its fd can change what is in it, and nothing else about it. */
import * as native from "../../native/index.js";

const SEALS = native.F_SEAL_GROW | native.F_SEAL_SHRINK | native.F_SEAL_SEAL;

/** A sealed memfd of `size` bytes. @throws SystemError */
export function createSealed(name: string, size: number): number {
  const fd = native.createMemory(name, size, false);
  try {
    native.addSeals(fd, SEALS);
    return fd;
  } catch (error) {
    native.close(fd);
    throw error;
  }
}
