/** Numbers as `/v1/inspect` sends them: in base64, little endian. */

/** A list of numbers on the wire. */
export type Values = { f16: string } | { f32: string } | { values: number[] };

function bytes(base64: string): DataView {
  const binary = atob(base64);
  const array = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) {
    array[i] = binary.charCodeAt(i);
  }
  return new DataView(array.buffer);
}

function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 0) {
    return sign * fraction * 2 ** -24;
  }
  if (exponent === 31) {
    return fraction ? NaN : sign * Infinity;
  }
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

/** Returns the numbers. */
export function numbers(values: Values): Float32Array {
  if ('values' in values) {
    return Float32Array.from(values.values);
  }
  if ('f32' in values) {
    const view = bytes(values.f32);
    return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }
  const view = bytes(values.f16);
  const decoded = new Float32Array(view.byteLength / 2);
  for (let i = 0; i < decoded.length; i++) {
    decoded[i] = half(view.getUint16(2 * i, true));
  }
  return decoded;
}

/** Returns the bytes of a token. */
export function tokenBytes(base64: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(bytes(base64).buffer as ArrayBuffer);
}
