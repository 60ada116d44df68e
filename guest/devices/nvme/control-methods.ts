/** What the control socket can have a controller do (shared/control/methods.ts): its namespaces, and faults. */
import { UserError } from "../../../shared/errors.js";
import type { DeviceMethods } from "../../device.js";
import type { Namespace } from "./storage/namespace.js";
import type { Namespaces } from "./storage/namespaces.js";

export function controlMethods(namespaces: Namespaces): DeviceMethods {
  const { faults } = namespaces;
  return {
    namespaces: () => namespaces.all.map(describe),
    "namespace-resize": async ({ namespace, size }) => {
      const found = namespaces.find(Number(namespace));
      if (found === undefined) throw new UserError(`there is no namespace ${namespace}`);
      const { storage, formatting } = found;
      if (storage.grow === undefined) throw new UserError("its disk is no file, which has the size that it has");
      if (formatting) throw new UserError("it is being formatted");
      await storage.grow(Number(size));
      await new Promise<void>((done) => found.refresh(done));
      return describe(found);
    },
    faults: () => faults.list,
    inject: (params) => {
      const { opcode, namespace, first, last, error, delay, once } = params;
      return faults.add({
        ...{ opcode: text(opcode), namespace: number(namespace), first: number(first), last: number(last) },
        ...{ error: text(error), delay: number(delay), once: once === true },
      });
    },
    "clear-faults": ({ fault }) => ({ cleared: faults.clear(number(fault)) }),
  };
}

/** The methods' table has checked them. */
const text = (value: unknown) => (typeof value === "string" ? value : undefined);
const number = (value: unknown) => (typeof value === "number" ? value : undefined);

function describe({ id, blockCount, blockSize, storage: { readOnly, size } }: Namespace): object {
  return { id, blocks: blockCount, blockSize, bytes: size, readOnly };
}
