/** Threads of attention: from the tokens that are looked at to the one that looks. */

import { attentionOf, type Look } from './inspection';
import { layerX, rowY, type Geometry } from './geometry';

/** Weights below these are not drawn: of the row pointed out, and of others. */
const FAINTEST = 0.015;
const FAINTEST_OF_OTHERS = 0.06;
/** Threads of one row in one layer. */
const MOST = 200;

export interface Thread {
  x: number;
  from: number;
  to: number;
  weight: number;
  /** From the first token, where heads rest that find nothing. */
  rests: boolean;
}

/** Returns the threads of a row in a layer, the thickest first. */
export function threadsOf(look: Look, of: Geometry, layer: number, head: number | null, row: number): Thread[] {
  const weights = attentionOf(look, layer, head, row);
  const threads: Thread[] = [];
  weights?.forEach((weight, other) => {
    if (weight >= FAINTEST) {
      // Tokens before this page are above it.
      const from = other < look.from ? of.head - of.row : rowY(of, other - look.from);
      threads.push({
        x: layerX(of, layer),
        from: from + of.row / 2,
        to: rowY(of, row - look.from) + of.row / 2,
        weight,
        rests: other === 0 && row > 0,
      });
    }
  });
  return threads.sort((a, b) => b.weight - a.weight).slice(0, MOST);
}

/** Returns a thread as a path of SVG. */
export function pathOf({ x, from, to }: Thread, of: Geometry): string {
  const begin = x + 1;
  const end = x + of.gutter - 1;
  const middle = (begin + end) / 2;
  return `M${begin} ${from}C${middle} ${from} ${middle} ${to} ${end} ${to}`;
}

/** Draws the threads of all rows, thin. */
export function drawFaint(
  canvas: HTMLCanvasElement,
  look: Look,
  of: Geometry,
  layers: number,
  head: number | null,
  colour: string,
): void {
  const scale = devicePixelRatio;
  const width = layerX(of, layers);
  const height = rowY(of, look.to - look.from);
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext('2d');
  if (!context) {
    return;
  }
  context.scale(scale, scale);
  context.strokeStyle = `rgb(${colour} / 0.13)`;
  for (let layer = 0; layer < layers; layer++) {
    for (let row = look.from; row < look.to; row++) {
      for (const thread of threadsOf(look, of, layer, head, row)) {
        if (thread.weight >= FAINTEST_OF_OTHERS) {
          context.lineWidth = 0.4 + 3 * thread.weight;
          context.stroke(new Path2D(pathOf(thread, of)));
        }
      }
    }
  }
}
