/** `POST /v1/inspect`: what the model computed for a text, decoded. Layers and heads count from 0. */

import { post } from '../api/client';
import { textOf } from '../lib/format';
import { learn, teach, tokenText } from '../lib/vocabulary';
import { numbers, tokenBytes, type Values } from './values';

/** A token id and a number: a probability or a cosine. */
export type Scored = [number, number];

interface WireToken {
  id: number;
  bytes: string;
  merges: { parts: string[]; rank: number }[];
}

interface Wire {
  id: string;
  fingerprint: string;
  length: number;
  positions: { from: number; to: number };
  tokens?: WireToken[];
  embedding?: {
    wte?: Values;
    wpe?: Values;
    norms: { wte: number[]; wpe: number[]; sum: number[] };
    nearest?: Scored[][];
  };
  attention?: (Values & { layer: number; head: number; from: number; to: number })[];
  mlp?: { layer: number; active: number[]; top: Neuron[][] }[];
  lens?: { top: Scored[][][] };
  logits?: ({ lse: number } & (Values | { top: Scored[] })) | null;
}

export interface Neuron {
  neuron: number;
  activation: number;
  write: number;
  promotes: number[];
}

/** How a token came together: its bytes, then its parts after each merge, with the merge's rank. */
export interface Merge {
  parts: string[];
  rank: number | null;
}

export interface InspectedToken {
  id: number;
  text: string;
  merges: Merge[];
}

/** Attention weights by layer, head and row; row `p` has `p + 1` of them. */
export type Attention = Map<number, Map<number, Map<number, Float32Array>>>;

/** Neurons of a layer, by row. */
export interface Neurons {
  active: Map<number, number>;
  top: Map<number, Neuron[]>;
}

/** All that is known of a text. Lists by row begin at `from`. */
export interface Look {
  fingerprint: string;
  /** The whole text. */
  ids: number[];
  from: number;
  to: number;
  /** The first token that was not there before. */
  fresh: number;
  tokens: InspectedToken[];
  /** Numbers per token; empty where there are too many to send for all rows. */
  embedding: { wte: Float32Array; wpe: Float32Array; width: number };
  norms: { wte: number[]; wpe: number[]; sum: number[] };
  nearest: Scored[][];
  /** By state (the embedding, then each layer) and row. */
  lens: Scored[][][];
  /** Of the last position. */
  logits: Float32Array;
  attention: Attention;
  neurons: Map<number, Neurons>;
}

/** Rows of one page. */
export const PAGE = 64;
/** Numbers that are sent for the rows of a page, at most. */
const MOST_VALUES = 64 * 768;
/** Attention weights that are sent for the rows of a page, at most. */
const MOST_WEIGHTS = 400_000;
const NEAREST = 5;
const LENS = 8;
const NEURONS = 8;

function inspect(body: object, abort?: AbortSignal): Promise<Wire> {
  return post<Wire>('/v1/inspect', body, abort);
}

function readAttention(wire: Wire, into: Attention): void {
  for (const head of wire.attention ?? []) {
    const weights = numbers(head);
    const heads = into.get(head.layer) ?? new Map<number, Map<number, Float32Array>>();
    const rows = heads.get(head.head) ?? new Map<number, Float32Array>();
    let at = 0;
    for (let row = head.from; row < head.to; row++) {
      rows.set(row, weights.subarray(at, at + row + 1));
      at += row + 1;
    }
    heads.set(head.head, rows);
    into.set(head.layer, heads);
  }
}

function readToken({ id, bytes, merges }: WireToken): InspectedToken {
  const all = tokenBytes(bytes);
  const text = textOf(all);
  teach(id, text);
  const single: Merge = { parts: [...all].map((byte) => textOf(Uint8Array.of(byte))), rank: null };
  const merged = merges.map(({ parts, rank }) => ({ parts: parts.map((part) => textOf(tokenBytes(part))), rank }));
  return { id, text, merges: [single, ...merged] };
}

/** Looks at a page of a text's rows. */
export async function lookAt(
  ids: readonly number[],
  end: number,
  model: { n_layer: number; n_head: number; n_embd: number; vocab_size: number },
  abort: AbortSignal,
): Promise<Look> {
  const from = Math.max(0, end - PAGE);
  const rows = end - from;
  // The attention of all rows at once, where that is not too much; else of the row that is pointed out.
  const weights = (model.n_layer * model.n_head * rows * (rows + 1)) / 2;
  const isWhole = from === 0 && weights <= MOST_WEIGHTS;
  const values = rows * model.n_embd <= MOST_VALUES;
  const wire = await inspect(
    {
      tokens: ids,
      positions: { from, to: end },
      stages: ['tokens', 'embedding', 'lens', 'logits', ...(isWhole ? ['attention'] : [])],
      embedding: { nearest: NEAREST, values },
      lens: { top: LENS },
      attention: { layers: layersOf(model), form: 'rows' },
    },
    abort,
  );
  const attention: Attention = new Map();
  readAttention(wire, attention);
  const tokens = (wire.tokens ?? []).map(readToken);
  const lens = wire.lens?.top ?? [];
  const nearest = wire.embedding?.nearest ?? [];
  await learn([...ids, ...lens.flat(2).map(([id]) => id), ...nearest.flat().map(([id]) => id)]);
  const { wte, wpe } = wire.embedding ?? {};
  return {
    fingerprint: wire.fingerprint,
    ids: [...ids],
    from,
    to: end,
    fresh: from,
    tokens,
    embedding: {
      wte: wte ? numbers(wte) : new Float32Array(),
      wpe: wpe ? numbers(wpe) : new Float32Array(),
      width: model.n_embd,
    },
    norms: wire.embedding?.norms ?? { wte: [], wpe: [], sum: [] },
    nearest,
    lens,
    logits: logitsOf(wire, model.vocab_size),
    attention,
    neurons: new Map(),
  };
}

/** Returns what can be shown of a text whose inside is not known yet: its tokens. */
export async function outline(ids: readonly number[], end: number): Promise<Look> {
  const from = Math.max(0, end - PAGE);
  const shown = ids.slice(from, end);
  await learn(shown);
  return {
    fingerprint: '',
    ids: [...ids],
    from,
    to: end,
    fresh: from,
    tokens: shown.map((id) => ({ id, text: tokenText(id), merges: [] })),
    embedding: { wte: new Float32Array(), wpe: new Float32Array(), width: 0 },
    norms: { wte: [], wpe: [], sum: [] },
    nearest: [],
    lens: [],
    logits: new Float32Array(),
    attention: new Map(),
    neurons: new Map(),
  };
}

function layersOf(model: { n_layer: number }): number[] {
  return [...Array(model.n_layer).keys()];
}

/** Returns the logits of the last position. Of a large vocabulary the server sends the highest only. */
function logitsOf(wire: Wire, vocabulary: number): Float32Array {
  const sent = wire.logits;
  if (!sent) {
    return new Float32Array();
  }
  if ('top' in sent) {
    const row = new Float32Array(vocabulary).fill(-1e4);
    for (const [id, logit] of sent.top) {
      row[id] = logit;
    }
    return row;
  }
  return numbers(sent);
}

/** Reads the attention of one row in all layers, if it is not known. */
export async function readRow(look: Look, row: number, layers: number, abort: AbortSignal): Promise<void> {
  if (
    look.attention
      .get(layers - 1)
      ?.get(0)
      ?.has(row)
  ) {
    return;
  }
  const wire = await inspect(
    {
      tokens: look.ids,
      positions: { from: row, to: row + 1 },
      stages: ['attention'],
      attention: { layers: layersOf({ n_layer: layers }), form: 'rows' },
    },
    abort,
  );
  readAttention(wire, look.attention);
}

/** Reads all rows of one head, if they are not known. */
export async function readMap(look: Look, layer: number, head: number, abort: AbortSignal): Promise<void> {
  if ((look.attention.get(layer)?.get(head)?.size ?? 0) < look.ids.length) {
    const attention = { layers: [layer], heads: [head], form: 'map' };
    const wire = await inspect({ tokens: look.ids, stages: ['attention'], attention }, abort);
    readAttention(wire, look.attention);
  }
}

/** Reads the strongest neurons of a layer, if they are not known. */
export async function readNeurons(look: Look, layer: number, abort: AbortSignal): Promise<void> {
  if (look.neurons.has(layer)) {
    return;
  }
  const wire = await inspect(
    {
      tokens: look.ids,
      positions: { from: look.from, to: look.to },
      stages: ['mlp'],
      mlp: { layers: [layer], top: NEURONS },
    },
    abort,
  );
  const sent = wire.mlp?.[0];
  if (sent) {
    await learn(sent.top.flat().flatMap((neuron) => neuron.promotes));
    look.neurons.set(layer, {
      active: new Map(sent.active.map((active, i) => [look.from + i, active])),
      top: new Map(sent.top.map((top, i) => [look.from + i, top])),
    });
  }
}

/** Returns what a row attends to: in one head, or the mean of all. Undefined until it is known. */
export function attentionOf(look: Look, layer: number, head: number | null, row: number): Float32Array | undefined {
  const heads = look.attention.get(layer);
  if (head !== null) {
    return heads?.get(head)?.get(row);
  }
  if (!heads || heads.size === 0) {
    return undefined;
  }
  const mean = new Float32Array(row + 1);
  for (const rows of heads.values()) {
    const weights = rows.get(row);
    // A map that was opened has rows of one head only.
    if (!weights) {
      return undefined;
    }
    for (let i = 0; i <= row; i++) {
      mean[i] = (mean[i] ?? 0) + (weights[i] ?? 0) / heads.size;
    }
  }
  return mean;
}
