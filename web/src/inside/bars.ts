/** Lists of numbers as bars up and down, in ink. */

import { token } from '../shell/theme';

/** Draws numbers onto a canvas; `limit` is the length of a whole bar. */
export function drawBars(canvas: HTMLCanvasElement, numbers: Float32Array, limit: number): void {
  const context = canvas.getContext('2d');
  if (!context) {
    return;
  }
  const { width, height } = canvas;
  const middle = height / 2;
  const step = width / numbers.length;
  context.clearRect(0, 0, width, height);
  context.fillStyle = token('--ink');
  context.globalAlpha = 0.22;
  context.fillRect(0, middle - 0.5, width, 1);
  context.globalAlpha = 0.85;
  numbers.forEach((number, i) => {
    const length = Math.max(-1, Math.min(1, number / limit)) * middle;
    context.fillRect(i * step, middle - Math.max(0, length), Math.max(1, step - 0.6), Math.abs(length));
  });
  context.globalAlpha = 1;
}

/** Returns means of groups of numbers, few enough to be seen. */
export function grouped(numbers: Float32Array, most: number): Float32Array {
  const size = Math.ceil(numbers.length / most);
  if (size <= 1) {
    return numbers;
  }
  return Float32Array.from({ length: Math.ceil(numbers.length / size) }, (_, i) => {
    const group = numbers.subarray(i * size, (i + 1) * size);
    return group.reduce((total, number) => total + number, 0) / group.length;
  });
}

/** Returns a length of bar that most numbers fit into. */
export function limitOf(numbers: Float32Array): number {
  const squares = numbers.reduce((total, number) => total + number * number, 0);
  return 2.2 * Math.sqrt(squares / Math.max(1, numbers.length)) || 1;
}
