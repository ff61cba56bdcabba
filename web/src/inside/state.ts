/** What is looked at: a text, a row, a layer, a head and a stage. */

import { computed, signal } from '@preact/signals';
import { ApiError, ConnectionLost, post, quietly } from '../api/client';
import { samplerSettings, settings } from '../lib/settings';
import { learn, tokenText } from '../lib/vocabulary';
import { say } from '../lib/say';
import { draw } from '../sampler/sampler';
import { closesOnBack } from '../shell/back';
import { info, served } from '../shell/connection';
import { lookAt, outline, PAGE, readMap, readNeurons, readRow, type Look } from './inspection';

export type Stage = 'tokenize' | 'embed' | 'attention' | 'feedforward' | 'lens' | 'sampling';

/** The text in the field. */
export const field = signal('');
export const look = signal<Look | null>(null);
/** Grows when more is known of the same text. */
export const more = signal(0);
export const trouble = signal('');
/** Whether the server is computing what the text's tokens are waiting for. */
export const busy = signal(false);
/** Whether the picture is open to the page's full width. */
export const wide = signal(false);
closesOnBack(
  'picture',
  () => wide.value,
  () => {
    wide.value = false;
  },
);
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

/** How long the inside of a text may take before its tokens are shown without it, in milliseconds. */
const PATIENCE = 150;

let ids: number[] = [];
/** Whether the text in the field is not the one of `ids`. */
let isTyped = false;
/** Whether something was asked for that the server did not answer. */
let isMissing = false;
/** The model that was looked into. */
let lookedInto = '';
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
    isMissing = false;
  } catch (error) {
    if (controller.signal.aborted) {
      return;
    }
    isMissing = error instanceof ConnectionLost || (error instanceof ApiError && error.status === 401);
    if (error instanceof ApiError) {
      trouble.value = error.message;
    } else if (!(error instanceof ConnectionLost)) {
      throw error;
    }
  } finally {
    if (on === 'text' && !controller.signal.aborted) {
      busy.value = false;
    }
  }
}

async function show(end: number, chosen: number, signal: AbortSignal): Promise<void> {
  const model = info.peek()?.model;
  if (!model) {
    return;
  }
  const before = look.peek();
  busy.value = true;
  const outlined = setTimeout(() => {
    // A text that only grows stays as it is until more is known.
    if (!before || commonLength(before, ids) < before.ids.length) {
      const bared = outline(ids, end).then((bare) => {
        if (busy.peek() && !signal.aborted) {
          row.value = bare.to - 1;
          look.value = bare;
        }
      });
      quietly(bared);
    }
  }, PATIENCE);
  const next = await lookAt(ids, end, model, signal).finally(() => clearTimeout(outlined));
  next.fresh = Math.max(next.from, commonLength(before, next.ids));
  busy.value = false;
  lookedInto = served.peek();
  layer.value = Math.min(layer.peek(), model.n_layer - 1);
  row.value = Math.max(next.from, Math.min(next.to - 1, chosen));
  look.value = next;
  await readDetails(signal);
  if (drawn.peek()) {
    await learn(drawn.peek()?.order ?? []);
  }
}

/** Returns how many tokens two texts begin with in common, as far as the first was looked into. */
function commonLength(before: Look | null, now: readonly number[]): number {
  const same = before === null || before.lens.length === 0 ? 0 : now.findIndex((id, i) => id !== before.ids[i]);
  return same < 0 ? now.length : same;
}

/** Reads what the row, the layer and the stage need. */
async function readDetails(signal: AbortSignal): Promise<void> {
  const now = look.peek();
  const model = info.peek()?.model;
  if (!now || !model || now.lens.length === 0) {
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
  isTyped = true;
  void guarded('text', async (signal) => {
    const answer = await post<{ tokens: number[] }>('/tokenize', { content: text }, signal);
    const context = info.peek()?.model.n_positions ?? answer.tokens.length;
    ids = answer.tokens.slice(-context);
    isTyped = false;
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
  isTyped = false;
  sampled.value = 0;
  void guarded('text', (signal) => show(ids.length, ids.length - 1, signal));
}

/** Asks again for what a server that was away did not answer, and for all of it if the model is another one. */
export function lookAgain(): void {
  const isOther = lookedInto !== '' && lookedInto !== served.peek();
  if (isTyped || isOther) {
    lookAtText(field.peek());
  } else if (isMissing) {
    void guarded('text', (signal) => show(look.peek()?.to ?? ids.length, row.peek(), signal));
  }
  isMissing = false;
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
