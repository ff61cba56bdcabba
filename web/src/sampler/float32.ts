/**
 * Single-precision arithmetic as the server's kernels do it (`src/kernels/math.rs`): every operation rounds to
 * f32, and a fused multiply-add rounds once.
 */

const f32 = Math.fround;

const view = new DataView(new ArrayBuffer(4));

/** Returns the bits of a number that is an f32. */
function bits(x: number): number {
  view.setFloat32(0, x);
  return view.getUint32(0);
}

function fromBits(value: number): number {
  view.setUint32(0, value >>> 0);
  return view.getFloat32(0);
}

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
const POLYNOMIAL = [1.9875692e-4, 1.3982e-3, 8.333452e-3, 4.1665796e-2, 1.6666665e-1, 0.5].map(f32);

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
  let p = POLYNOMIAL[0] ?? 0;
  for (const coefficient of POLYNOMIAL.slice(1)) {
    p = fma(p, r, coefficient);
  }
  p = f32(fma(p, f32(r * r), r) + 1);
  return fromBits(bits(p) + (bits(shifted) << 23));
}
