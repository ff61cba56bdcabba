/** The random numbers of a seed: ChaCha20, as the server's sampler specifies it (`src/engine/sampler.rs`). */

const CONSTANTS = [0x61707865, 0x3320646e, 0x79622d32, 0x6b206574];
const COLUMNS_AND_DIAGONALS = [
  [0, 4, 8, 12],
  [1, 5, 9, 13],
  [2, 6, 10, 14],
  [3, 7, 11, 15],
  [0, 5, 10, 15],
  [1, 6, 11, 12],
  [2, 7, 8, 13],
  [3, 4, 9, 14],
] as const;

/** Returns 16 words of the stream whose key is the seed in little endian, then zeros. */
function block(seed: bigint, counter: bigint): Uint32Array {
  const start = new Uint32Array(16);
  start.set(CONSTANTS);
  start[4] = Number(seed & 0xffff_ffffn);
  start[5] = Number((seed >> 32n) & 0xffff_ffffn);
  start[12] = Number(counter & 0xffff_ffffn);
  start[13] = Number((counter >> 32n) & 0xffff_ffffn);
  const x = start.slice();
  const at = (i: number): number => x[i] ?? 0;
  const turn = (into: number, by: number, from: number, left: number): void => {
    x[by] = at(by) + at(from);
    const mixed = at(into) ^ at(by);
    x[into] = (mixed << left) | (mixed >>> (32 - left));
  };
  for (let round = 0; round < 10; round++) {
    for (const [a, b, c, d] of COLUMNS_AND_DIAGONALS) {
      turn(d, a, b, 16);
      turn(b, c, d, 12);
      turn(d, a, b, 8);
      turn(b, c, d, 7);
    }
  }
  return x.map((word, i) => word + (start[i] ?? 0));
}

/** Returns the random number in [0, 1) for the `n`-th token (from 0) of a request with this seed. */
export function uniform(seed: bigint, n: number): number {
  const word = 2 * n;
  const words = block(BigInt.asUintN(64, seed), BigInt(Math.floor(word / 16)));
  const low = words[word % 16] ?? 0;
  const high = words[(word % 16) + 1] ?? 0;
  return (high * 2 ** 21 + Math.floor(low / 2 ** 11)) / 2 ** 53;
}
