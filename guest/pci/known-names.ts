/**
 * Names in what authors write that nobody knows ("writeable"): a type checker would say so, and JavaScript lets them
 * pass.
 */

/** Every property of an interface. */
export type Names<T> = Readonly<Record<keyof T, true>>;

/** @throws RangeError that names what is not known; `what` is the object, in words */
export function checkNames<T extends object>(what: string, object: T, known: Names<T>): void {
  const unknown = Object.keys(object).find((name) => !Object.hasOwn(known, name));
  if (unknown === undefined) return;
  throw new RangeError(
    `${what}: nothing is called "${unknown}" there; what may be is ${Object.keys(known).join(", ")}`,
  );
}
