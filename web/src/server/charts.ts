/** The six charts: what each shows of the samples. */

import { count } from '../lib/format';
import type { Chart } from './draw';
import type { Sample } from './samples';
import { roundUp } from './scale';
import { dots, line, quantile, rate, type Dot } from './series';

export interface Described {
  id: string;
  title: string;
  sentence: string;
  /** The present value, and its unit with further values between double asterisks. */
  now: (samples: Sample[]) => [value: string, unit: string];
  chart: (samples: Sample[]) => Pick<Chart, 'ticks' | 'tickText' | 'areas' | 'dots' | 'logarithmic'>;
}

/** Samples that a rate is taken over. */
const SPAN = 4;
const HIT_SPAN = 12;
/** Dots of one sample. */
const MOST_DOTS = 12;

const throughput = (samples: Sample[]) =>
  rate(
    samples,
    (sample) => sample.generated,
    (sample) => sample.time,
    SPAN,
  );
const hits = (samples: Sample[]) => {
  const share = rate(
    samples,
    (sample) => sample.hit,
    (sample) => sample.asked,
    HIT_SPAN,
  );
  return (now: Sample, i: number): number => 100 * share(now, i);
};

function most(values: number[]): number {
  return Math.max(0, ...values.filter((value) => !Number.isNaN(value)));
}

function scale(end: number): number[] {
  return [0, end / 2, end];
}

function last(samples: Sample[], value: (now: Sample, i: number) => number): number {
  const sample = samples.at(-1);
  return sample ? value(sample, samples.length - 1) : NaN;
}

function number(value: number, digits = 0): string {
  return Number.isNaN(value) ? '–' : digits > 0 ? value.toFixed(digits) : count(Math.round(value));
}

/** Times as dots, with their median as a line. */
function times(
  id: string,
  title: string,
  sentence: string,
  of: (sample: Sample) => Sample['first'],
  ticks: number[],
): Described {
  const unitOf = (samples: Sample[]): [string, string] => {
    const [middle, slow] = [quantile(samples, of, 0.5), quantile(samples, of, 0.95)];
    return [
      number(middle, 1),
      Number.isNaN(slow) ? 'ms median' : `ms median, **${number(slow, slow < 100 ? 1 : 0)}** at 95 %`,
    ];
  };
  return {
    id,
    title,
    sentence,
    now: unitOf,
    chart: (samples) => {
      const shown: Dot[] = dots(samples, of, MOST_DOTS);
      return {
        ticks,
        tickText: (value) => `${value} ms`,
        logarithmic: true,
        areas: [{ points: median(samples, of), fill: 0 }],
        dots: shown,
      };
    },
  };
}

/** Returns the median over a few samples at a time. */
function median(samples: Sample[], of: (sample: Sample) => Sample['first']) {
  const reach = 6;
  return line(samples, (_, i) => quantile(samples.slice(Math.max(0, i - reach), i + 1), of, 0.5)).filter(
    ({ value }) => !Number.isNaN(value),
  );
}

export const CHARTS: readonly Described[] = [
  {
    id: 'requests',
    title: 'Requests',
    sentence: 'Running requests share each step of the model; others wait.',
    now: (samples) => [
      number(last(samples, (sample) => sample.running)),
      `running, **${number(last(samples, (sample) => sample.waiting))}** waiting`,
    ],
    chart: (samples) => ({
      ticks: scale(2 * Math.ceil(roundUp(most(samples.map((sample) => sample.running + sample.waiting)), 4) / 2)),
      tickText: (value) => String(value),
      areas: [
        { points: line(samples, (sample) => sample.running + sample.waiting), fill: 0.08 },
        { points: line(samples, (sample) => sample.running), fill: 0.12 },
      ],
      dots: [],
    }),
  },
  {
    id: 'throughput',
    title: 'Throughput',
    sentence: 'Generated tokens per second, all requests together.',
    now: (samples) => [number(last(samples, throughput(samples))), 'tokens/s'],
    chart: (samples) => ({
      ticks: scale(roundUp(most(samples.map(throughput(samples))), 100)),
      tickText: (value) => count(value),
      areas: [{ points: line(samples, throughput(samples)), fill: 0.12 }],
      dots: [],
    }),
  },
  {
    id: 'kv',
    title: 'KV cache',
    sentence: 'Computed context in blocks of 16 tokens: in use, cached, free.',
    now: (samples) => [
      number(last(samples, (sample) => sample.used)),
      `in use, **${number(last(samples, (sample) => sample.cached))}** cached, **${number(
        last(samples, (sample) => sample.blocks - sample.used - sample.cached),
      )}** free`,
    ],
    chart: (samples) => ({
      ticks: scale(Math.max(1, samples.at(-1)?.blocks ?? 1)),
      tickText: (value) => count(Math.round(value)),
      areas: [
        { points: line(samples, (sample) => sample.used + sample.cached), fill: 0.12, name: 'cached' },
        { points: line(samples, (sample) => sample.used), fill: 0.9 },
      ],
      dots: [],
    }),
  },
  {
    id: 'prefix',
    title: 'Prefix cache',
    sentence: 'Prompt tokens that were in the cache and were not computed again.',
    now: (samples) => {
      const first = samples[0];
      const end = samples.at(-1);
      const asked = first && end ? end.asked - first.asked : 0;
      const share = first && end && asked > 0 ? (100 * (end.hit - first.hit)) / asked : NaN;
      return [number(share), '% of prompt tokens'];
    },
    chart: (samples) => ({
      ticks: [0, 50, 100],
      tickText: (value) => `${value} %`,
      areas: [{ points: line(samples, hits(samples)).filter(({ value }) => !Number.isNaN(value)), fill: 0.12 }],
      dots: [],
    }),
  },
  times(
    'first',
    'Time to first token',
    'How long a request waits for its first token. Each dot is a request.',
    (sample) => sample.first,
    [1, 10, 100, 1000],
  ),
  times(
    'between',
    'Time between tokens',
    'How long each further token takes. Dots are a sample of tokens.',
    (sample) => sample.between,
    [0.3, 1, 3, 10, 30],
  ),
];
