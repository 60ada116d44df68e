/**
 * Answers for people: a list of things as a table, anything else as a tree. What is in them may have been chosen by a
 * driver VM or a device VM, so nothing that a terminal would obey is printed.
 */

type Plain = string | number | boolean | null;

export function formatAnswer(answer: unknown): string {
  const rows = Array.isArray(answer) ? answer.flatMap(rowsOf) : undefined;
  if (rows === undefined || rows.some((row) => row === undefined)) return `${tree(answer, "").join("\n")}\n`;
  if (rows.length === 0) return "(none)\n";
  return `${table(rows as Readonly<Record<string, Plain>>[]).join("\n")}\n`;
}

/** Text without control characters: they are written as escapes. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g, (each) => {
    return `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

function isPlain(value: unknown): value is Plain {
  return value === null || typeof value !== "object";
}

/** One thing as rows: one list or table of plain values within it becomes rows of its own. */
function rowsOf(thing: unknown): (Readonly<Record<string, Plain>> | undefined)[] {
  if (typeof thing !== "object" || thing === null || Array.isArray(thing)) return [undefined];
  const entries = Object.entries(thing).map(([name, value]) => [name, joined(value)] as const);
  const inner = entries.filter(([, value]) => !isPlain(value));
  const plain = Object.fromEntries(entries.filter((entry): entry is [string, Plain] => isPlain(entry[1])));
  if (inner.length === 0) return [plain];
  const [[, list]] = inner;
  if (inner.length > 1 || !Array.isArray(list)) return [undefined];
  return list.map((each) => {
    if (isPlain(each) || Object.values(each).some((value) => !isPlain(value))) return undefined;
    return { ...plain, ...each };
  });
}

/** A list of plain values is one value. */
function joined(value: unknown): unknown {
  return Array.isArray(value) && value.every(isPlain) ? value.join(" ") : value;
}

function table(rows: readonly Readonly<Record<string, Plain>>[]): string[] {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const isNumber = (name: string) => rows.every((row) => row[name] === undefined || typeof row[name] === "number");
  const cells = [names.map((name) => name.toUpperCase()), ...rows.map((row) => names.map((name) => cell(row[name])))];
  const widths = names.map((_, n) => Math.max(...cells.map((line) => line[n].length)));
  return cells.map((line) => {
    const padded = line.map((text, n) => (isNumber(names[n]) ? text.padStart(widths[n]) : text.padEnd(widths[n])));
    return padded.join("  ").trimEnd();
  });
}

function cell(value: Plain | undefined): string {
  if (value === undefined || value === null) return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? `${value}` : value.toFixed(1);
  return printable(value);
}

function tree(value: unknown, indent: string): string[] {
  if (isPlain(value)) return [`${indent}${cell(value)}`];
  const entries = Object.entries(value as object);
  if (entries.length === 0) return [`${indent}(none)`];
  return entries.flatMap(([name, each]) => {
    const term = Array.isArray(value) ? "-" : `${printable(name)}:`;
    if (isPlain(each)) return [`${indent}${term} ${cell(each)}`];
    if (Object.keys(each as object).length === 0) return [`${indent}${term} (none)`];
    return [`${indent}${term}`, ...tree(each, `${indent}  `)];
  });
}
