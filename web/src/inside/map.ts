/** Maps of attention: one picture element per weight, through a table of colours. */

import { token } from '../shell/theme';

/** Returns 256 colours, from nothing to the hue of attention. */
function colours(): Uint32Array {
  const [red = 0, green = 0, blue = 0] = token('--att-rgb').split(' ').map(Number);
  // Little endian: alpha is the highest byte.
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const alpha = Math.min(255, Math.round(12 + 0.95 * i));
    return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}

/** Draws the weights of all rows, as square roots: small ones can be seen. */
export function drawMap(canvas: HTMLCanvasElement, rows: ReadonlyMap<number, Float32Array>, size: number): void {
  canvas.width = size;
  canvas.height = size;
  const context = canvas.getContext('2d');
  if (!context || size === 0) {
    return;
  }
  const image = context.createImageData(size, size);
  const pixels = new Uint32Array(image.data.buffer);
  const table = colours();
  for (const [row, weights] of rows) {
    for (let other = 0; other <= row; other++) {
      pixels[row * size + other] = table[Math.round(255 * Math.sqrt(weights[other] ?? 0))] ?? 0;
    }
  }
  context.putImageData(image, 0, 0);
}
