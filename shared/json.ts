/** JSON of what may have numbers of 64 bits in it: they are texts, in hexadecimal. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_, each) => (typeof each === "bigint" ? `0x${each.toString(16)}` : each));
}
