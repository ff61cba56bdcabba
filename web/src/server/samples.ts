/** What the server's metrics were, twice a second, for as long as they were looked at. */

import { signal } from '@preact/signals';
import { ApiError, send } from '../api/client';
import { parseMetrics, type Buckets, type Metrics } from './prometheus';

/** Milliseconds between two samples. */
const PERIOD = 500;
/** Samples that are kept: an hour's. */
const MOST = 7200;
/** A pause longer than this is a gap in the charts, in seconds. */
export const GAP = 2;

/** Requests, or tokens, whose time fell between two bounds, in seconds. */
export interface Times {
  low: number;
  high: number;
  count: number;
}

export interface Sample {
  /** Seconds. */
  time: number;
  running: number;
  waiting: number;
  used: number;
  cached: number;
  blocks: number;
  generated: number;
  asked: number;
  hit: number;
  /** Since the sample before. */
  first: Times[];
  between: Times[];
}

/** Milliseconds until a server that refused its metrics is asked again. */
const PAUSE = 10_000;

let samples: Sample[] = [];
let tried = 0;
let before: Metrics | undefined;

/** Grows with each sample. */
export const sampleCount = signal(0);
export const paused = signal(false);
/** Why there are no metrics; empty if there are. */
export const unreadable = signal('');

export function allSamples(): readonly Sample[] {
  return samples;
}

/** Returns what was added to a histogram. */
function added(now: Buckets | undefined, then: Buckets | undefined): Times[] {
  const times: Times[] = [];
  let [low, below] = [0, 0];
  for (const [i, [high, count]] of (now ?? []).entries()) {
    const cumulative = count - (then?.[i]?.[1] ?? count);
    if (cumulative > below) {
      times.push({ low, high, count: cumulative - below });
    }
    below = Math.max(below, cumulative);
    low = high;
  }
  return times;
}

function sampleOf(now: Metrics): Sample {
  const value = (name: string): number => now.values.get(`skald_${name}`) ?? 0;
  const times = (name: string): Times[] => added(now.histograms.get(name), before?.histograms.get(name));
  return {
    time: performance.now() / 1000,
    running: value('requests_running'),
    waiting: value('requests_waiting'),
    used: value('kv_blocks_used'),
    cached: value('kv_blocks_cached'),
    blocks: value('kv_blocks'),
    generated: value('generated_tokens_total'),
    asked: value('prefix_cache_query_tokens_total'),
    hit: value('prefix_cache_hit_tokens_total'),
    first: times('skald_time_to_first_token_seconds'),
    between: times('skald_inter_token_latency_seconds'),
  };
}

async function take(): Promise<void> {
  const isRefused = unreadable.peek() !== '' && performance.now() - tried < PAUSE;
  if (paused.peek() || document.hidden || isRefused) {
    return;
  }
  tried = performance.now();
  try {
    const now = parseMetrics(await (await send('GET', '/metrics')).text());
    const restarted = (now.values.get('skald_steps_total') ?? 0) < (before?.values.get('skald_steps_total') ?? 0);
    if (restarted) {
      before = undefined;
    }
    samples.push(sampleOf(now));
    samples = samples.slice(-MOST);
    before = now;
    unreadable.value = '';
    sampleCount.value++;
  } catch (error) {
    before = undefined;
    if (error instanceof ApiError) {
      unreadable.value =
        error.status === 403 ? 'This key may not read the metrics: it lacks the scope “metrics”.' : error.message;
    }
  }
}

/** Takes samples until the returned function is called. */
export function sample(): () => void {
  before = undefined;
  void take();
  const timer = setInterval(() => void take(), PERIOD);
  return () => clearInterval(timer);
}
