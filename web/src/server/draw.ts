/** Charts on a canvas: ink on paper. */

import { token } from '../shell/theme';
import type { Dot, Point } from './series';

/** Room for the scale at the right, in pixels. */
const SCALE = 58;
const FONT = '12px "Instrument Sans", system-ui';

export interface Area {
  points: Point[];
  /** How dark the area under the line is, 0 to 1. */
  fill: number;
  /** Written into the area where it is high enough. */
  name?: string;
}

export interface Chart {
  /** Seconds shown, and when they end. */
  span: number;
  end: number;
  /** Values of the scale, the lowest first. */
  ticks: number[];
  tickText: (value: number) => string;
  logarithmic?: boolean;
  areas: Area[];
  dots: Dot[];
}

export function drawChart(canvas: HTMLCanvasElement, chart: Chart): void {
  const scale = devicePixelRatio;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext('2d');
  const low = chart.ticks[0] ?? 0;
  const high = chart.ticks.at(-1) ?? 1;
  if (!context || width <= SCALE) {
    return;
  }
  context.scale(scale, scale);
  const bottom = height - 4;
  const share = (value: number): number =>
    chart.logarithmic ? Math.log(Math.max(low, value) / low) / Math.log(high / low) : (value - low) / (high - low);
  const x = (time: number): number => (width - SCALE) * (1 - (chart.end - time) / chart.span);
  const y = (value: number): number => bottom - (bottom - 10) * Math.min(1.02, share(value));
  drawScale(context, chart, width, y);
  context.save();
  context.beginPath();
  context.rect(0, 0, width - SCALE, height);
  context.clip();
  for (const area of chart.areas) {
    drawArea(context, area, x, y, bottom);
  }
  context.fillStyle = token('--ink');
  context.globalAlpha = 0.42;
  for (const { time, milliseconds } of chart.dots) {
    context.beginPath();
    context.arc(x(time), y(milliseconds), 2.2, 0, 7);
    context.fill();
  }
  context.restore();
}

function drawScale(context: CanvasRenderingContext2D, chart: Chart, width: number, y: (value: number) => number): void {
  context.font = FONT;
  context.textBaseline = 'middle';
  context.strokeStyle = token('--line');
  context.fillStyle = token('--ink-3');
  for (const tick of chart.ticks) {
    context.beginPath();
    context.moveTo(0, y(tick));
    context.lineTo(width - SCALE, y(tick));
    context.stroke();
    context.fillText(chart.tickText(tick), width - SCALE + 7, y(tick));
  }
}

function drawArea(
  context: CanvasRenderingContext2D,
  { points, fill, name }: Area,
  x: (time: number) => number,
  y: (value: number) => number,
  bottom: number,
): void {
  for (const run of runs(points)) {
    const [first, last] = [run[0], run.at(-1)];
    if (!first || !last) {
      continue;
    }
    context.beginPath();
    run.forEach(({ time, value }) => context.lineTo(x(time), y(value)));
    context.strokeStyle = token('--ink');
    context.lineWidth = 1.75;
    context.lineJoin = 'round';
    context.stroke();
    context.lineTo(x(last.time), bottom);
    context.lineTo(x(first.time), bottom);
    context.globalAlpha = fill;
    context.fillStyle = token('--ink');
    context.fill();
    context.globalAlpha = 1;
    if (name !== undefined && bottom - y(last.value) > 20 && x(last.time) - x(first.time) > 60) {
      context.fillStyle = token('--ink-2');
      context.textAlign = 'right';
      context.fillText(name, x(last.time) - 8, bottom - 10);
      context.textAlign = 'left';
    }
  }
}

/** Returns the parts of a line between its gaps. */
function runs(points: readonly Point[]): Point[][] {
  const parts: Point[][] = [[]];
  for (const point of points) {
    if (Number.isNaN(point.value)) {
      parts.push([]);
    } else {
      parts.at(-1)?.push(point);
    }
  }
  return parts.filter((part) => part.length > 0);
}
