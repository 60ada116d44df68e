/**
 * What a control method looks like, as a table row. All that says what there is is made from it: the check of
 * parameters, the answer to `methods`, docs/vfio-user-control.schema.json, the commands of vfio-user-ctl with their
 * help.
 */
import { didYouMean } from "../command-line/suggest.js";

export interface Parameter {
  readonly name: string;
  readonly type: "string" | "integer" | "boolean";
  /** Half a sentence. */
  readonly summary: string;
  readonly required?: boolean;
  /** A string must be one of these. */
  readonly words?: readonly string[];
  /** Bounds of an integer. */
  readonly least?: number;
  readonly most?: number;
  /** It is a size or an address: vfio-user-ctl takes it with a unit, or in hexadecimal. */
  readonly isSize?: boolean;
}

export interface MethodRow {
  readonly name: string;
  /** Half a sentence. */
  readonly summary: string;
  /** It changes something: only the admin socket has it. */
  readonly changes?: boolean;
  /** Which programs have it; both, where this is left out. */
  readonly program?: "bridge" | "device";
  readonly parameters: readonly Parameter[];
  /** The result's JSON Schema. */
  readonly result: object;
}

export type Params = Readonly<Record<string, string | number | boolean | undefined>>;

/** Longer names are nobody's. */
const MAX_STRING = 4096;

/** What is wrong with a request's parameters, in one sentence; undefined when they fit. */
export function mistakeIn(row: MethodRow, params: unknown): string | undefined {
  if (typeof params !== "object" || params === null || Array.isArray(params)) return "params must be an object";
  const names = row.parameters.map(({ name }) => name);
  for (const name of Object.keys(params)) {
    if (!names.includes(name)) return `${row.name} has no parameter ${JSON.stringify(name)}${didYouMean(name, names)}`;
  }
  for (const parameter of row.parameters) {
    const value: unknown = Object.hasOwn(params, parameter.name) ? Reflect.get(params, parameter.name) : undefined;
    const mistake = value === undefined ? missing(parameter) : mistakeInValue(parameter, value);
    if (mistake !== undefined) return `${parameter.name}: ${mistake}`;
  }
  return undefined;
}

function missing({ required }: Parameter): string | undefined {
  return required === true ? "it is missing" : undefined;
}

function mistakeInValue({ type, words, least, most }: Parameter, value: unknown): string | undefined {
  if (type === "boolean") return typeof value === "boolean" ? undefined : "it must be true or false";
  if (type === "string") {
    if (typeof value !== "string" || value === "" || value.length > MAX_STRING) return "it must be a text";
    if (value.includes("\0")) return "it has a byte of zero in it";
    if (words === undefined || words.includes(value)) return undefined;
    return `it must be one of ${words.join(", ")}${didYouMean(value, words)}`;
  }
  if (!Number.isSafeInteger(value)) return "it must be a whole number";
  const number = value as number;
  if (least !== undefined && number < least) return `it must be at least ${least}`;
  if (most !== undefined && number > most) return `it must be at most ${most}`;
  return undefined;
}

/** The JSON Schema of a method's parameters. */
export function schemaOfParameters(row: MethodRow): object {
  const properties = row.parameters.map(({ name, type, summary, words, least, most }) => [
    name,
    {
      description: summary,
      type,
      ...(words === undefined ? {} : { enum: words }),
      ...(least === undefined ? {} : { minimum: least }),
      ...(most === undefined ? {} : { maximum: most }),
    },
  ]);
  const required = row.parameters.filter((each) => each.required === true).map(({ name }) => name);
  return {
    type: "object",
    properties: Object.fromEntries(properties),
    ...(required.length === 0 ? {} : { required }),
    additionalProperties: false,
  };
}
