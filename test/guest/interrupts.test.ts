import test from "ava";
import { InterruptController } from "../../guest/interrupts.js";
import { Irq, IrqSetFlags } from "../../shared/spec/vfio-user.js";

const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER } = IrqSetFlags;

function controller() {
  const rung: string[] = [];
  const interrupts = new InterruptController([1, 0, 4, 0, 0], {
    doorbellsRung: 0,
    trigger: (index, vector) => void rung.push(`${index}:${vector}`),
  });
  const bind = (index: number, start: number, ...bound: boolean[]) =>
    interrupts.change({ flags: DATA_EVENTFD | ACTION_TRIGGER, index, start, count: bound.length, bound });
  const act = (index: number, action: number, start: number, count: number, bools?: Uint8Array) =>
    interrupts.change({
      flags: (bools ? DATA_BOOL : DATA_NONE) | action,
      index,
      start,
      count,
      ...(bools ? { bools } : {}),
    });
  return { interrupts, rung, bind, act };
}

test("nothing set up: an interrupt goes nowhere; then MSI-X goes before INTx", (t) => {
  const { interrupts, rung, bind, act } = controller();
  interrupts.trigger(0);
  bind(Irq.INTX, 0, true);
  interrupts.trigger(3);
  bind(Irq.MSIX, 0, true, true);
  interrupts.trigger(1);
  act(Irq.MSIX, ACTION_TRIGGER, 0, 0);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  interrupts.trigger(1);
  t.deepEqual(rung, ["0:0", "2:1", "0:0"]);
  t.is(interrupts.count, 3);
});

test("INTx is quiet until it is unmasked, and then tells of what came meanwhile once", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  for (let n = 0; n < 3; n++) interrupts.trigger(0);
  t.deepEqual(rung, ["0:0"]);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.deepEqual(rung, ["0:0", "0:0"]);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.is(rung.length, 2);
});

test("a vector that is not bound, or masked, keeps its interrupt", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.MSIX, 0, false);
  interrupts.trigger(2);
  t.true(interrupts.pending(2));
  t.deepEqual(rung, []);
  bind(Irq.MSIX, 2, true);
  t.deepEqual(rung, ["2:2"]);
  t.false(interrupts.pending(2));
  act(Irq.MSIX, ACTION_MASK, 1, 2);
  interrupts.trigger(2);
  t.is(rung.length, 1);
  act(Irq.MSIX, ACTION_UNMASK, 0, 4);
  t.deepEqual(rung, ["2:2", "2:2"]);
});

test("the client triggers vectors itself, all or by a byte each", (t) => {
  const { rung, bind, act } = controller();
  bind(Irq.MSIX, 0, true, true, true, true);
  act(Irq.MSIX, ACTION_TRIGGER, 1, 2);
  act(Irq.MSIX, ACTION_TRIGGER, 0, 4, Uint8Array.of(1, 0, 0, 7));
  t.deepEqual(rung, ["2:1", "2:2", "2:0", "2:3"]);
});

test("reset forgets everything; an unbound vector stays silent", (t) => {
  const { interrupts, rung, bind } = controller();
  bind(Irq.MSIX, 0, true, true);
  bind(Irq.MSIX, 0, false);
  interrupts.trigger(0);
  interrupts.reset();
  t.false(interrupts.pending(0));
  interrupts.trigger(1);
  bind(Irq.MSIX, 0, true, true);
  t.deepEqual(rung, []);
});

test("what VFIO does not have is refused, and a vector that is not there is the author's bug", (t) => {
  const { interrupts } = controller();
  const unmaskByEventfd = { flags: DATA_EVENTFD | ACTION_UNMASK, index: Irq.INTX, start: 0, count: 1, bound: [true] };
  t.throws(() => interrupts.change(unmaskByEventfd), { name: "ProtocolError" });
  t.throws(() => interrupts.trigger(4), { instanceOf: RangeError });
  t.throws(() => interrupts.trigger(-1), { instanceOf: RangeError });
});
