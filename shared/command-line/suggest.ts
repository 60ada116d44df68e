/** What somebody meant who wrote a name that there is not: the nearest one, if any is near. */

/** Insertions, deletions, substitutions and swaps of neighbours that make `b` of `a` (optimal string alignment). */
function distance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, i) => i)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1];
      row[j] = Math.min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (isSame ? 0 : 1));
      const isSwapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isSwapped) row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}

/** Longer names are nobody's slip, and would cost time. */
const MAX_LENGTH = 64;

/** One of `names` that differs from `name` in a third of its letters at most, or that it is the beginning of. */
export function nearest(name: string, names: readonly string[]): string | undefined {
  if (name.length > MAX_LENGTH) return undefined;
  const plain = (text: string) => text.toLowerCase().replaceAll(/[-_]/g, "");
  const near = names
    .map((each) => ({ each, far: distance(plain(name), plain(each)) }))
    .filter(({ each, far }) => far <= Math.ceil(plain(each).length / 3) && far < plain(each).length)
    .sort((a, b) => a.far - b.far);
  const starting = plain(name).length > 2 ? names.filter((each) => plain(each).startsWith(plain(name))) : [];
  return near[0]?.each ?? starting[0];
}

/** "; did you mean X?", or nothing. */
export function didYouMean(name: string, names: readonly string[], prefix = ""): string {
  const found = nearest(name, names);
  return found === undefined ? "" : `; did you mean ${prefix}${found}?`;
}
