/**
 * The server's sampler (`src/engine/sampler.rs`), step by step, so that the page can show what each setting
 * removes. From the same logits it draws the same token.
 */

import { uniform } from './chacha';
import { exp } from './float32';

const f32 = Math.fround;

/** The smallest weight that counts. */
const VANISHING = 2 ** -126;
/** Tokens whose weights the server sums up together. */
const BLOCK = 64;
/** Length of `Draw.order`. */
const SHOWN = 32;

export interface SamplingSettings {
  seed: bigint;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  typicalP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
}

export type Filter = 'top-k' | 'top-p' | 'min-p' | 'typical-p';

/** What a filter left, and the share of the probability that it removed. */
export interface FilterStep {
  filter: Filter;
  left: number;
  removed: number;
}

export interface Draw {
  /** The model's own probabilities, by token id. */
  model: Float64Array;
  /** The likeliest tokens after penalties and temperature, the likeliest first. */
  order: number[];
  /** Probabilities of the tokens that were left, in order of id. */
  left: Map<number, number>;
  /** Which filter removed a token. */
  removedBy: (id: number) => Filter | undefined;
  steps: FilterStep[];
  /** Tokens whose logits the penalties changed. */
  penalized: number;
  /** The random number; undefined where the highest score wins. */
  u: number | undefined;
  token: number;
}

interface Candidate {
  id: number;
  logit: number;
  weight: number;
}

/** Returns the logits after the penalties, and how many of them those changed. */
function penalize(
  logits: Float32Array,
  seen: readonly number[],
  generated: readonly number[],
  settings: SamplingSettings,
): [Float32Array, number] {
  const row = logits.slice();
  const changed = new Set<number>();
  const penalty = f32(settings.repetitionPenalty);
  if (penalty !== 1) {
    for (const id of new Set(seen)) {
      const logit = row[id];
      if (logit !== undefined) {
        const penalized = f32(logit > 0 ? logit / penalty : logit * penalty);
        row[id] = Math.max(-3.4028234663852886e38, Math.min(3.4028234663852886e38, penalized));
        changed.add(id);
      }
    }
  }
  const presence = f32(settings.presencePenalty);
  const frequency = f32(settings.frequencyPenalty);
  if (presence !== 0 || frequency !== 0) {
    const counts = new Map<number, number>();
    for (const id of generated) {
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    for (const [id, count] of counts) {
      const logit = row[id];
      if (logit !== undefined) {
        row[id] = logit - f32(f32(count * frequency) + presence);
        changed.add(id);
      }
    }
  }
  return [row, changed.size];
}

/** Returns the first index of the greatest element. */
function highestOf(row: Float32Array): number {
  let best = 0;
  for (let id = 1; id < row.length; id++) {
    if ((row[id] ?? 0) > (row[best] ?? 0)) {
      best = id;
    }
  }
  return best;
}

/** Lanes that the server adds in: element `i` goes to lane `i % 16`. */
const LANES = 16;

/** Returns sums over 64 weights each, added in the server's order: in lanes, which are then folded in halves. */
function blockSums(weights: Float32Array): Float64Array {
  const sums = new Float64Array(Math.ceil(weights.length / BLOCK));
  const lanes = new Float64Array(LANES);
  for (let block = 0; block < sums.length; block++) {
    lanes.fill(0);
    const end = Math.min(weights.length, (block + 1) * BLOCK);
    for (let i = block * BLOCK; i < end; i++) {
      lanes[i % LANES] = (lanes[i % LANES] ?? 0) + (weights[i] ?? 0);
    }
    for (let width = LANES / 2; width >= 1; width /= 2) {
      for (let i = 0; i < width; i++) {
        lanes[i] = (lanes[i] ?? 0) + (lanes[i + width] ?? 0);
      }
    }
    sums[block] = lanes[0] ?? 0;
  }
  return sums;
}

function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const number of numbers) {
    total += number;
  }
  return total;
}

function weightOf(candidates: readonly Candidate[]): number {
  return sum(candidates.map((candidate) => candidate.weight));
}

/** Keeps the shortest run of candidates, lowest rank first, whose weights reach `wanted`; at least one. */
function keepShare(
  candidates: readonly Candidate[],
  rank: (candidate: Candidate) => number,
  wanted: number,
): Candidate[] {
  const sorted = candidates.map((candidate) => ({ candidate, rank: rank(candidate) }));
  sorted.sort((a, b) => a.rank - b.rank || a.candidate.id - b.candidate.id);
  let reached = 0;
  let kept = sorted.length;
  for (const [i, { candidate }] of sorted.entries()) {
    reached += candidate.weight;
    if (reached >= wanted) {
      kept = i + 1;
      break;
    }
  }
  const ids = new Set(sorted.slice(0, kept).map(({ candidate }) => candidate.id));
  return candidates.filter((candidate) => ids.has(candidate.id));
}

/** Returns the ids of the `k` highest elements, the highest first, the lower id first among equals. */
function highest(row: Float32Array, k: number): number[] {
  if (k > 256) {
    return [...row.keys()].sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b).slice(0, k);
  }
  const ids: number[] = [];
  for (let id = 0; id < row.length; id++) {
    const value = row[id] ?? 0;
    if (ids.length === k && value <= (row[ids[k - 1] ?? 0] ?? 0)) {
      continue;
    }
    let place = ids.length;
    while (place > 0 && value > (row[ids[place - 1] ?? 0] ?? 0)) {
      place--;
    }
    ids.splice(place, 0, id);
    ids.length = Math.min(ids.length, k);
  }
  return ids;
}

/** The row after temperature, and its weights. */
interface Distribution {
  row: Float32Array;
  weights: Float32Array;
  total: number;
}

/** Returns the tokens whose weight reaches `floor`, in order of id. */
function atLeast({ row, weights }: Distribution, floor: number): Candidate[] {
  const candidates: Candidate[] = [];
  for (let id = 0; id < row.length; id++) {
    const weight = weights[id] ?? 0;
    if (weight >= floor) {
      candidates.push({ id, logit: row[id] ?? 0, weight });
    }
  }
  return candidates;
}

/** Returns the heaviest tokens, enough that their weights reach `wanted`, and perhaps more. */
function atLeastAShare(distribution: Distribution, wanted: number): Candidate[] {
  for (let n = 2; ; n++) {
    const floor = Math.max(2 ** (-5 * n), VANISHING);
    const candidates = atLeast(distribution, floor);
    if (floor === VANISHING || weightOf(candidates) > wanted * (1 + 1e-9)) {
      return candidates;
    }
  }
}

/** Returns the tokens that the filters leave, in order of id, and what each filter left and removed. */
function filter(
  distribution: Distribution,
  settings: SamplingSettings,
): { kept: Candidate[]; steps: FilterStep[]; removedBy: Draw['removedBy'] } {
  const { row, total } = distribution;
  const stages: { filter: Filter; kept: Set<number>; weight: number }[] = [];
  let kept: Candidate[] | undefined;
  let weight = total;
  const apply = (name: Filter, next: Candidate[]): void => {
    kept = next;
    weight = weightOf(next);
    stages.push({ filter: name, kept: new Set(next.map((candidate) => candidate.id)), weight });
  };
  const { topK } = settings;
  const topP = f32(settings.topP);
  const minP = f32(settings.minP);
  const typicalP = f32(settings.typicalP);
  if (topK >= 1 && topK < row.length) {
    const ids = new Set(highest(row, topK));
    apply(
      'top-k',
      atLeast(distribution, VANISHING).filter((candidate) => ids.has(candidate.id)),
    );
  }
  if (topP < 1) {
    const wanted = topP * weight;
    apply(
      'top-p',
      keepShare(kept ?? atLeastAShare(distribution, wanted), (candidate) => -candidate.logit, wanted),
    );
  }
  if (minP > 0) {
    apply(
      'min-p',
      (kept ?? atLeast(distribution, minP)).filter((candidate) => candidate.weight >= minP),
    );
  }
  if (typicalP < 1) {
    const candidates = kept ?? atLeast(distribution, VANISHING);
    const rest = weightOf(candidates);
    const logTotal = Math.log(rest);
    const entropy = sum(candidates.map((c) => (c.weight / rest) * (logTotal - c.logit)));
    const distance = (c: Candidate): number => f32(Math.abs(logTotal - c.logit - entropy));
    apply('typical-p', keepShare(candidates, distance, typicalP * rest));
  }
  return {
    kept: kept ?? atLeast(distribution, VANISHING),
    steps: stages.map(({ filter: name, kept: ids, weight: after }, i) => ({
      filter: name,
      left: ids.size,
      removed: ((i > 0 ? (stages[i - 1]?.weight ?? 0) : total) - after) / total,
    })),
    removedBy: (id) => stages.find(({ kept: ids }) => !ids.has(id))?.filter,
  };
}

/** Returns the candidate that `u` falls on, walking in order of id. */
function pick(candidates: readonly Candidate[], u: number): number {
  const threshold = u * weightOf(candidates);
  let reached = 0;
  for (const candidate of candidates) {
    reached += candidate.weight;
    if (reached > threshold) {
      return candidate.id;
    }
  }
  return candidates.at(-1)?.id ?? 0;
}

/** Returns the token that `u` falls on without any filter: over the sums of blocks, then within one. */
function walk(weights: Float32Array, sums: Float64Array, u: number): number {
  const threshold = u * sum(sums);
  let reached = 0;
  let first = 0;
  for (const [block, blockSum] of sums.entries()) {
    if (reached + blockSum > threshold) {
      first = block * BLOCK;
      break;
    }
    reached += blockSum;
  }
  let drawn = first;
  for (let id = first; id < Math.min(weights.length, first + BLOCK); id++) {
    const weight = weights[id] ?? 0;
    reached += weight;
    if (weight > 0) {
      drawn = id;
    }
    if (reached > threshold) {
      break;
    }
  }
  return drawn;
}

/** Returns the model's own probabilities. */
export function softmax(logits: Float32Array): Float64Array {
  const highest = logits[highestOf(logits)] ?? 0;
  const probabilities = Float64Array.from(logits, (logit) => Math.exp(logit - highest));
  const total = sum(probabilities);
  return probabilities.map((probability) => probability / total);
}

/**
 * Draws the `n`-th token (from 0) of a request whose context is `seen`, of which `generated` was generated by the
 * request itself.
 */
export function draw(
  logits: Float32Array,
  seen: readonly number[],
  generated: readonly number[],
  settings: SamplingSettings,
  n: number,
): Draw {
  const model = softmax(logits);
  const [penalized, changed] = penalize(logits, seen, generated, settings);
  const best = highestOf(penalized);
  const shared = { model, penalized: changed, order: highest(penalized, SHOWN) };
  const temperature = f32(settings.temperature);
  if (temperature <= 0) {
    return {
      ...shared,
      left: new Map([[best, 1]]),
      removedBy: () => undefined,
      steps: [],
      u: undefined,
      token: best,
    };
  }
  const greatest = penalized[best] ?? 0;
  const factor = f32(1 / temperature);
  const row = penalized.map((logit) => f32(logit - greatest) * factor);
  const weights = row.map(exp);
  const sums = blockSums(weights);
  const { kept, steps, removedBy } = filter({ row, weights, total: sum(sums) }, settings);
  const u = uniform(settings.seed, n);
  const weight = weightOf(kept);
  return {
    ...shared,
    left: new Map(kept.map((candidate) => [candidate.id, candidate.weight / weight])),
    removedBy,
    steps,
    u,
    token: steps.length > 0 ? pick(kept, u) : walk(weights, sums, u),
  };
}
