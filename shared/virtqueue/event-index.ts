/**
 * VIRTIO_F_EVENT_IDX (VIRTIO 1.2, 2.7.7.1 and 2.7.10.1): each side writes down at which index of the other's ring it
 * wants to hear of it next. Whoever moves the index signals when it moved past that place, and not otherwise.
 *
 * No wake-up is lost because each side writes before it reads: one the index and then the event index, the other the
 * event index and then the index. Both by Atomics, which order a load behind the stores before it.
 */

/**
 * Whether an index that moved forward by `count`, to `index`, passed the place `event`. Any 16-bit `event` is harmless.
 */
export function passed(event: number, index: number, count: number): boolean {
  return ((index - event - 1) & 0xffff) < count;
}
