/** From samples to what the charts show. A value is NaN where there is none. */

import { GAP, type Sample, type Times } from './samples';

/** Points of a line. */
const POINTS = 120;
/** Dots of a chart. */
const MOST_DOTS = 1500;

export interface Point {
  time: number;
  value: number;
}

/** A request, or a token, of which the time is known to a factor of two or so. */
export interface Dot {
  time: number;
  milliseconds: number;
}

/** Returns the samples of the last seconds. */
export function recent(samples: readonly Sample[], seconds: number): Sample[] {
  const end = samples.at(-1)?.time ?? 0;
  return samples.filter((sample) => sample.time >= end - seconds);
}

/** Returns a line through the samples, with a break where the server or the reader was away. */
export function line(samples: readonly Sample[], value: (now: Sample, i: number) => number): Point[] {
  const step = Math.max(1, Math.ceil(samples.length / POINTS));
  const points: Point[] = [];
  samples.forEach((sample, i) => {
    const before = samples[i - 1];
    if (before && sample.time - before.time > GAP) {
      points.push({ time: (before.time + sample.time) / 2, value: NaN });
    }
    if ((samples.length - 1 - i) % step === 0) {
      points.push({ time: sample.time, value: value(sample, i) });
    }
  });
  return points;
}

/** Returns the increase of a counter per unit of another, or per second, over the last few samples. */
export function rate(
  samples: readonly Sample[],
  of: (sample: Sample) => number,
  per: (sample: Sample) => number,
  span: number,
): (now: Sample, i: number) => number {
  return (now, i) => {
    let first = i;
    while (first > 0 && i - first < span) {
      const [here, before] = [samples[first], samples[first - 1]];
      // Not over a gap, and not over a restart, after which counters begin at zero.
      if (!here || !before || here.time - before.time > GAP || before.generated > here.generated) {
        break;
      }
      first--;
    }
    const then = samples[first];
    const units = then ? per(now) - per(then) : 0;
    return then && units > 0 ? (of(now) - of(then)) / units : NaN;
  };
}

/** Fraction of a turn that spreads points evenly however many there are: the golden ratio's. */
const TURN = 0.618_034;

/** Returns a dot per observation, somewhere within its bucket; of very many only a part, evenly of all. */
export function dots(samples: readonly Sample[], times: (sample: Sample) => Times[], most: number): Dot[] {
  const every = Math.ceil(samples.length / MOST_DOTS);
  const perSample = Math.max(1, Math.min(most, Math.floor(MOST_DOTS / samples.length)));
  return samples.flatMap((sample, i) => {
    const observed = i % every === 0 ? times(sample) : [];
    const shown = Math.min(
      perSample,
      observed.reduce((total, { count }) => total + count, 0),
    );
    return Array.from({ length: shown }, (_, k) => ({
      time: sample.time - 0.5 * ((k * TURN) % 1),
      milliseconds: valueAt(observed, (k + 0.5) / shown),
    }));
  });
}

function within(low: number, high: number, share: number): number {
  const least = low > 0 ? low : high / 3;
  return Number.isFinite(high) ? least * (high / least) ** share : low;
}

/** Returns the time that a share of all observations stays below, in milliseconds; NaN if there are none. */
export function quantile(samples: readonly Sample[], times: (sample: Sample) => Times[], share: number): number {
  const counts = new Map<number, Times>();
  for (const each of samples.flatMap(times)) {
    const known = counts.get(each.high);
    counts.set(each.high, { ...each, count: each.count + (known?.count ?? 0) });
  }
  return valueAt(
    [...counts.values()].sort((a, b) => a.high - b.high),
    share,
  );
}

function valueAt(buckets: readonly Times[], share: number): number {
  const wanted = share * buckets.reduce((total, { count }) => total + count, 0);
  let below = 0;
  for (const { low, high, count } of buckets) {
    if (below + count >= wanted) {
      return 1000 * within(low, high, (wanted - below) / count);
    }
    below += count;
  }
  return NaN;
}
