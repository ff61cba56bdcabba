/** What a head does, in a word or two, from the weights that are known of it. */

/** Returns `rests`, `one back`, `itself` or `roams`; empty if too little is known. */
export function roleOf(rows: ReadonlyMap<number, Float32Array> | undefined): string {
  let [first, previous, itself, seen] = [0, 0, 0, 0];
  for (const [row, weights] of rows ?? []) {
    // The first two tokens have nowhere else to look.
    if (row >= 2) {
      first += weights[0] ?? 0;
      previous += weights[row - 1] ?? 0;
      itself += weights[row] ?? 0;
      seen++;
    }
  }
  if (seen < 2) {
    return '';
  }
  if (first > 0.5 * seen) {
    return 'rests';
  }
  if (previous > 0.3 * seen) {
    return 'one back';
  }
  if (itself > 0.3 * seen) {
    return 'itself';
  }
  return first > 0.3 * seen ? 'rests, roams' : 'roams';
}
