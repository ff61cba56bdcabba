/**
 * Single-precision arithmetic as the server's kernels do it (`src/kernels/math.rs`): every operation rounds to
 * f32, and a fused multiply-add rounds once.
 */

const f32 = Math.fround;

/** One f32 and its bits. */
const value = new Float32Array(1);
const bits = new Uint32Array(value.buffer);

/** Returns `a * b + c`, rounded once to f32. */
export function fma(a: number, b: number, c: number): number {
  // Exact: two mantissas of 24 bits make one of 48.
  const product = a * b;
  const sum = product + c;
  const rounded = f32(sum);
  // `sum` is rounded to 53 bits, so rounding it again goes wrong only where it lies in the middle of two f32.
  const other = sum + (sum - rounded);
  if (other === rounded || f32(other) !== other) {
    return rounded;
  }
  const virtual = sum - product;
  const rest = product - (sum - virtual) + (c - virtual);
  if (rest === 0) {
    return rounded;
  }
  return rest > 0 ? Math.max(rounded, other) : Math.min(rounded, other);
}

const HIGHEST = f32(88.72283);
const LOWEST = f32(-87.33654);
/** Added to a number, it rounds it to an integer, whose low bits are those of the sum. */
const ROUND = 12_582_912;
const LOG2_E = f32(Math.LOG2E);
const LN_2_HIGH = f32(355 / 512);
const LN_2_LOW = f32(-2.1219444e-4);
const P0 = f32(1.9875692e-4);
const P1 = f32(1.3982e-3);
const P2 = f32(8.333452e-3);
const P3 = f32(4.1665796e-2);
const P4 = f32(1.6666665e-1);
const P5 = 0.5;

/** Returns the server's `exp`, bit for bit. */
export function exp(x: number): number {
  if (x > HIGHEST) {
    return Infinity;
  }
  if (x < LOWEST) {
    return 0;
  }
  const shifted = fma(x, LOG2_E, ROUND);
  const n = f32(shifted - ROUND);
  const r = fma(n, -LN_2_LOW, fma(n, -LN_2_HIGH, x));
  const p = fma(fma(fma(fma(fma(P0, r, P1), r, P2), r, P3), r, P4), r, P5);
  // The low bits of `shifted` are n: moved up, they add n to the exponent.
  value[0] = shifted;
  const exponent = (bits[0] ?? 0) << 23;
  value[0] = fma(p, f32(r * r), r) + 1;
  bits[0] = (bits[0] ?? 0) + exponent;
  return value[0];
}
