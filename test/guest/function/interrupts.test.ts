import test from "ava";
import { InterruptController } from "../../../guest/function/interrupts.js";
import { Irq, IrqSetFlags } from "../../../shared/spec/vfio-user.js";

const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER } = IrqSetFlags;

function controller() {
  const rung: string[] = [];
  const gate = {
    intxDisabled: false,
    intxPending: false,
    masks: 0,
    msiMasked: (vector: number) => ((gate.masks >>> vector) & 1) === 1,
  };
  const link = { doorbellsRung: 0, trigger: (index: number, vector: number) => void rung.push(`${index}:${vector}`) };
  const interrupts = new InterruptController([1, 8, 4, 1, 1], link, gate);
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
  return { interrupts, gate, rung, bind, act };
}

test("MSI-X goes before INTx", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  interrupts.trigger(3);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
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
  interrupts.trigger(2);
  interrupts.reset();
  t.false(interrupts.pending(0));
  bind(Irq.MSIX, 0, true, true, true);
  t.deepEqual(rung, []);
});

test("MSI-X disabled and enabled again, as for one vector more: what is pending or comes then stays", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.MSIX, 0, true, false);
  interrupts.trigger(1);
  act(Irq.MSIX, ACTION_TRIGGER, 0, 0);
  interrupts.trigger(0);
  t.deepEqual(rung, []);
  bind(Irq.MSIX, 0, false);
  t.true(interrupts.pending(0));
  bind(Irq.MSIX, 0, true, true, true);
  t.deepEqual(rung, ["2:0", "2:1"]);
  interrupts.trigger(2);
  t.is(rung.length, 3);
});

test("an interrupt while nothing is enabled comes with the first message, MSI-X or MSI", (t) => {
  const first = controller();
  first.interrupts.trigger(3);
  first.bind(Irq.MSIX, 0, false);
  first.bind(Irq.MSIX, 3, true);
  t.deepEqual(first.rung, ["2:3"]);

  const second = controller();
  second.interrupts.trigger(3);
  second.bind(Irq.MSI, 0, true, true);
  t.deepEqual(second.rung, ["1:1"]);
  second.act(Irq.MSI, ACTION_TRIGGER, 0, 0);
  second.interrupts.trigger(0);
  second.interrupts.forgetPending();
  second.bind(Irq.MSIX, 0, true);
  t.is(second.rung.length, 1, "but for a reset");
});

test("what INTx signalled and nobody handled comes again as a message; what was handled does not", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  interrupts.trigger(1);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  interrupts.trigger(2);
  act(Irq.INTX, ACTION_TRIGGER, 0, 0);
  bind(Irq.MSIX, 0, true, true, true);
  t.deepEqual(rung.splice(0), ["0:0", "0:0", "2:2"]);

  // A level is handled when the device says so.
  act(Irq.MSIX, ACTION_TRIGGER, 0, 0);
  bind(Irq.INTX, 0, true);
  interrupts.raise(1);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  bind(Irq.MSIX, 0, true, true);
  t.deepEqual(rung.splice(0), ["0:0", "0:0", "2:1"]);
  act(Irq.MSIX, ACTION_TRIGGER, 0, 0);
  interrupts.raise(1);
  interrupts.lower();
  bind(Irq.MSIX, 0, true, true);
  t.deepEqual(rung, []);
});

test("what VFIO does not have is refused, and a vector that is not there is the author's bug", (t) => {
  const { interrupts } = controller();
  const unmaskByEventfd = { flags: DATA_EVENTFD | ACTION_UNMASK, index: Irq.INTX, start: 0, count: 1, bound: [true] };
  t.throws(() => interrupts.change(unmaskByEventfd), { name: "ProtocolError" });
  t.throws(() => interrupts.trigger(8), { instanceOf: RangeError });
  t.throws(() => interrupts.trigger(-1), { instanceOf: RangeError });
});

test("MSI goes before INTx, and vectors that the client did not set up are shared", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  bind(Irq.MSI, 0, true, true);
  for (const vector of [0, 1, 2, 7]) interrupts.trigger(vector);
  t.deepEqual(rung.splice(0), ["1:0", "1:1", "1:0", "1:1"]);
  bind(Irq.MSIX, 0, true);
  interrupts.trigger(0);
  act(Irq.MSIX, ACTION_TRIGGER, 0, 0);
  act(Irq.MSI, ACTION_TRIGGER, 0, 0);
  interrupts.trigger(5);
  t.deepEqual(rung, ["2:0", "0:0"]);
});

test("MSI: a vector masked in config space waits and is pending, and comes once when it is not", (t) => {
  const { interrupts, gate, rung, bind } = controller();
  bind(Irq.MSI, 0, true, true, true, true);
  gate.masks = 0b1010;
  for (const vector of [0, 1, 1, 3]) interrupts.trigger(vector);
  t.deepEqual(rung, ["1:0"]);
  t.is(interrupts.msiPending(), 0b1010);
  gate.masks = 0b1000;
  interrupts.gateChanged();
  interrupts.gateChanged();
  t.deepEqual(rung, ["1:0", "1:1"]);
  t.is(interrupts.msiPending(), 0b1000);
  interrupts.forgetPending();
  gate.masks = 0;
  interrupts.gateChanged();
  t.is(rung.length, 2);
});

test("INTx disabled in config space: asserted all the same, and signalled when it is enabled", (t) => {
  const { interrupts, gate, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  t.false(interrupts.intxPending);
  gate.intxDisabled = true;
  interrupts.trigger(0);
  t.deepEqual(rung, []);
  t.true(interrupts.intxPending);
  gate.intxDisabled = false;
  interrupts.gateChanged();
  t.deepEqual(rung, ["0:0"]);
  t.true(interrupts.intxPending, "until the client has handled it");
  interrupts.trigger(0);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.deepEqual(rung, ["0:0", "0:0"]);
  t.true(interrupts.intxPending, "it came again meanwhile");
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.false(interrupts.intxPending);
  interrupts.trigger(0);
  interrupts.reset();
  t.false(interrupts.intxPending);
});

test("a raised level comes again at each unmask until it is lowered", (t) => {
  const { interrupts, rung, bind, act } = controller();
  const unmask = () => act(Irq.INTX, ACTION_UNMASK, 0, 1);
  interrupts.raise(0);
  t.true(interrupts.intxPending, "the pin is asserted, whether anybody listens or not");
  bind(Irq.INTX, 0, true);
  t.deepEqual(rung.splice(0), ["0:0"], "a level that was up before is signalled");
  unmask();
  unmask();
  t.deepEqual(rung.splice(0), ["0:0", "0:0"]);
  interrupts.raise(0);
  interrupts.lower();
  t.false(interrupts.intxPending);
  unmask();
  t.deepEqual(rung, [], "what came while it was masked is lowered, too");
});

test("a raised level is a message where there are messages, and comes back with the pin", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.MSI, 0, true);
  interrupts.raise(0);
  t.deepEqual(rung.splice(0), ["1:0"]);
  t.false(interrupts.intxPending);
  act(Irq.MSI, ACTION_TRIGGER, 0, 0);
  bind(Irq.INTX, 0, true);
  t.deepEqual(rung.splice(0), ["0:0"]);
  interrupts.forgetPending();
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.deepEqual(rung, [], "a reset lowers it");
});

test("inspect names the vectors", (t) => {
  const { interrupts, bind, act } = controller();
  bind(Irq.MSI, 0, true, true, true);
  act(Irq.MSI, ACTION_MASK, 1, 1);
  interrupts.trigger(1);
  t.like(interrupts.inspect(), {
    msi: 3,
    bound: [[], [0, 1, 2], [], [], []],
    masked: [[], [1], [], [], []],
    pending: [[], [1], [], [], []],
    asserted: false,
  });
});

test("INTx masked while it is up: whoever unmasks it hears of it; once", (t) => {
  const { interrupts, rung, bind, act } = controller();
  bind(Irq.INTX, 0, true);
  interrupts.trigger(0);
  act(Irq.INTX, ACTION_MASK, 0, 1);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.deepEqual(rung, ["0:0", "0:0"]);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  act(Irq.INTX, ACTION_MASK, 0, 1);
  act(Irq.INTX, ACTION_UNMASK, 0, 1);
  t.is(rung.length, 2);
  t.false(interrupts.intxPending);
});

test("errors and requests are told only to who listens, and wait for nobody", (t) => {
  const { interrupts, rung, bind } = controller();
  t.false(interrupts.reportError());
  t.false(interrupts.requestRelease());
  bind(Irq.ERR, 0, true);
  bind(Irq.REQ, 0, true);
  t.deepEqual(rung, []);
  t.true(interrupts.requestRelease());
  t.true(interrupts.reportError());
  t.deepEqual(rung, ["4:0", "3:0"]);
  interrupts.reset();
  t.false(interrupts.reportError());
});

test("the client's trigger of a vector that is not bound is not kept", (t) => {
  const { interrupts, rung, bind, act } = controller();
  for (const index of [Irq.INTX, Irq.MSI, Irq.MSIX, Irq.ERR]) {
    act(index, ACTION_TRIGGER, 0, 1);
    act(index, ACTION_TRIGGER, 0, 1, Uint8Array.of(1));
    bind(index, 0, true);
  }
  t.deepEqual(rung, []);
  t.false(interrupts.intxPending);
});
