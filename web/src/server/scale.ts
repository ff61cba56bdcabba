/** Ends of scales. */

/** Returns the end of a scale for values up to `most`: 1, 2, 4 or 5 times a power of ten. */
export function roundUp(most: number, least: number): number {
  const wanted = Math.max(most, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return ([1, 2, 4, 5, 10].find((each) => each * power >= wanted) ?? 10) * power;
}
