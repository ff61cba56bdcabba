/** What is looked at: a text, a row, a layer, a head and a stage. */

import { computed, signal } from '@preact/signals';
import { ApiError, ConnectionLost, post } from '../api/client';
import { samplerSettings, settings } from '../lib/settings';
import { learn, tokenText } from '../lib/vocabulary';
import { say } from '../lib/say';
import { draw } from '../sampler/sampler';
import { info } from '../shell/connection';
import { lookAt, PAGE, readMap, readNeurons, readRow, type Look } from './inspection';

export type Stage = 'tokenize' | 'embed' | 'attention' | 'feedforward' | 'lens' | 'sampling';

/** The text in the field. */
export const field = signal('');
export const look = signal<Look | null>(null);
/** Grows when more is known of the same text. */
export const more = signal(0);
export const trouble = signal('');
export const stage = signal<Stage>('attention');
/** The row that is pointed out, counted from the beginning of the text. */
export const row = signal(0);
export const layer = signal(0);
/** One head; null is all of them together. */
export const head = signal<number | null>(null);
/** Tokens that were sampled here. */
export const sampled = signal(0);

/** How long a row is pointed out before what is not known of it is asked for, in milliseconds. */
const REST = 60;

let ids: number[] = [];
/** The work in progress: on the text, and on what is pointed out in it. The latest of each counts. */
const working: { text?: AbortController; details?: AbortController } = {};
let wanted: { text: string; tokens: number[] } | null = null;

/** Asks for a text to be looked into when the view opens. */
export function lookInto(what: { text: string; tokens: number[] }): void {
  wanted = what;
}

export function takeWanted(): { text: string; tokens: number[] } | null {
  const what = wanted;
  wanted = null;
  return what;
}

/** What the sampler does with the last token's scores. */
export const drawn = computed(() => {
  const now = look.value;
  if (!now || now.logits.length === 0 || now.to < now.ids.length) {
    return null;
  }
  const generated = sampled.value > 0 ? now.ids.slice(-sampled.value) : [];
  return draw(now.logits, now.ids, generated, samplerSettings(settings.value), sampled.value);
});

async function guarded(on: keyof typeof working, work: (abort: AbortSignal) => Promise<void>): Promise<void> {
  working[on]?.abort();
  const controller = new AbortController();
  working[on] = controller;
  try {
    await work(controller.signal);
    trouble.value = '';
  } catch (error) {
    if (controller.signal.aborted) {
      return;
    }
    if (error instanceof ApiError) {
      trouble.value = error.message;
    } else if (!(error instanceof ConnectionLost)) {
      throw error;
    }
  }
}

async function show(end: number, chosen: number, signal: AbortSignal): Promise<void> {
  const model = info.peek()?.model;
  if (!model) {
    return;
  }
  const next = await lookAt(ids, end, model, signal);
  layer.value = Math.min(layer.peek(), model.n_layer - 1);
  row.value = Math.max(next.from, Math.min(next.to - 1, chosen));
  look.value = next;
  await readDetails(signal);
  if (drawn.peek()) {
    await learn(drawn.peek()?.order ?? []);
  }
}

/** Reads what the row, the layer and the stage need. */
async function readDetails(signal: AbortSignal): Promise<void> {
  const now = look.peek();
  const model = info.peek()?.model;
  if (!now || !model) {
    return;
  }
  await readRow(now, row.peek(), model.n_layer, signal);
  if (stage.peek() === 'feedforward') {
    await readNeurons(now, layer.peek(), signal);
  }
  more.value++;
}

/** Looks at a text as typed. */
export function lookAtText(text: string): void {
  field.value = text;
  void guarded('text', async (signal) => {
    const answer = await post<{ tokens: number[] }>('/tokenize', { content: text }, signal);
    const context = info.peek()?.model.n_positions ?? answer.tokens.length;
    ids = answer.tokens.slice(-context);
    sampled.value = 0;
    if (ids.length > 0) {
      await show(ids.length, ids.length - 1, signal);
    } else {
      look.value = null;
    }
  });
}

/** Looks at tokens whose text is known. */
export function lookAtTokens(text: string, tokens: readonly number[]): void {
  field.value = text;
  const context = info.peek()?.model.n_positions ?? tokens.length;
  ids = tokens.slice(-context);
  sampled.value = 0;
  void guarded('text', (signal) => show(ids.length, ids.length - 1, signal));
}

/** Adds the token that was sampled, and looks again. */
export function step(): void {
  const token = drawn.peek()?.token;
  const context = info.peek()?.model.n_positions ?? Infinity;
  if (token === undefined || ids.length >= context) {
    return;
  }
  void guarded('text', async (signal) => {
    await learn([token]);
    ids = [...ids, token];
    field.value += tokenText(token);
    sampled.value++;
    await show(ids.length, ids.length - 1, signal);
    say(`Added ${tokenText(token)}`);
  });
}

/** Shows the page of rows that ends before or after the present one. */
export function page(by: -1 | 1): void {
  const now = look.peek();
  if (now) {
    const end = by < 0 ? now.from : Math.min(ids.length, now.to + PAGE);
    void guarded('text', (signal) => show(end, by < 0 ? end - 1 : now.to, signal));
  }
}

export function choose(what: { row?: number; layer?: number; head?: number | null; stage?: Stage }): void {
  row.value = what.row ?? row.peek();
  layer.value = what.layer ?? layer.peek();
  head.value = what.head === undefined ? head.peek() : what.head;
  stage.value = what.stage ?? stage.peek();
  void guarded('details', async (signal) => {
    // Rows that are only passed on the way to another are not asked for.
    await new Promise((done) => setTimeout(done, what.row === undefined ? 0 : REST));
    if (!signal.aborted) {
      await readDetails(signal);
    }
  });
}

/** Reads the whole map of the head that is chosen. */
export function openMap(): void {
  void guarded('details', async (signal) => {
    const now = look.peek();
    const chosen = head.peek();
    if (now && chosen !== null) {
      await readMap(now, layer.peek(), chosen, signal);
      more.value++;
    }
  });
}

/** Settings change which tokens are likeliest: their texts are asked for. */
export async function learnCandidates(): Promise<void> {
  await learn(drawn.peek()?.order ?? []);
}
