/**
 * Interrupt vectors that change their CPU all the time: Linux masks a vector while it moves it, and QEMU then binds it
 * again.
 */
import type { Vm } from "../../scripts/vm/qemu.js";
import { COMMAND_MS } from "../../scripts/vm/two-vms.js";

/** From one CPU to the other, on and on, until /tmp/move is gone; a line in /tmp/moves for each. */
const MOVE = [
  "touch /tmp/move; (n=0; while [ -e /tmp/move ]; do n=$((n+1));",
  "for irq in $(sed -n 's/^ *\\([0-9]*\\):.*nvme.*/\\1/p' /proc/interrupts); do",
  "echo $((1 + n % 2)) >/proc/irq/$irq/smp_affinity 2>/dev/null && echo $n; done; done >/tmp/moves) &",
].join(" ");

/**
 * Moves every vector of the controller's until what it returns is called, which gives the number of moves. The VM has
 * two CPUs.
 */
export async function moveVectors(vm: Vm): Promise<() => Promise<number>> {
  await vm.check(MOVE, COMMAND_MS);
  return async () => Number(await vm.check("rm /tmp/move; wc -l </tmp/moves", COMMAND_MS));
}

/** Waits until more than so many moves were made. */
export async function movesMade(vm: Vm, count: number, timeoutMs: number): Promise<void> {
  await vm.check(`until [ $(wc -l </tmp/moves) -gt ${count} ]; do sleep 0.5; done`, timeoutMs);
}
