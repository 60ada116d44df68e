/**
 * Virtio devices (VIRTIO 1.2): an author declares queues and a configuration (device.ts) and `virtioDevice` makes a PCI
 * device of it. docs/writing-a-virtio-device.md goes through one.
 *
 * In this folder, in the order of a request's way: pci-layout.ts, where the structures are; common-config.ts, the
 * registers that the driver writes, with queue-settings.ts; transport.ts, what follows from them; queue.ts, who is
 * given what a queue has; split-ring.ts, the ring in driver-VM memory, and chain.ts, what it yields. state.ts: all of
 * that in another process.
 */
export type { Chain } from "./chain.js";
export type { VirtioContext, VirtioDevice } from "./device.js";
export type { QueueDeclaration, Virtqueue } from "./queue.js";
export { virtioDevice } from "./transport.js";
