/** The text at hand: its tokens, the session that it is, and all that can be done with it. */

import { signal } from '@preact/signals';
import { ApiError, ConnectionLost, post } from '../api/client';
import { generate, score } from '../api/completions';
import { forkSession, getSession, rewindSession } from '../api/sessions';
import type { Alternative, Token } from '../api/token';
import type { Session } from '../api/types';
import { textOf } from '../lib/format';
import { say, show } from '../lib/say';
import { change, newSeed, samplingFields, settings } from '../lib/settings';
import { branchName, sessionName } from '../lib/slug';
import { forget, recall, remember } from '../lib/storage';
import { info, settled } from '../shell/connection';
import { branchAt, isTaken, refreshSessions, refreshUntil, rootOf } from './branches';
import { noteStart, startOf } from './starts';

/** `cut`: the connection was lost in the middle. */
export type Phase = 'empty' | 'loading' | 'done' | 'streaming' | 'cut';

export interface Speed {
  /** Tokens a second after the first. */
  rate: number;
  /** Milliseconds to the first token. */
  first: number;
}

const CURRENT = 'skald.session';

/** The tokens of the text. Changed in place: `length` and `revision` tell of it. */
let tokens: Token[] = [];

export const session = signal<string | null>(recall('tab', CURRENT));
export const phase = signal<Phase>(session.peek() === null ? 'empty' : 'loading');
/** Grows when the text became another one. */
export const revision = signal(0);
/** Tokens of the text, set at most once a frame. */
export const length = signal(0);
/** Tokens of the text that were given, not generated. */
export const given = signal(0);
export const speed = signal<Speed | null>(null);
/** Why the last request was refused. */
export const refusal = signal('');
/** The first line of a text that is about to begin. */
export const draft = signal('');

/** Where the last generation began. */
let start = 0;
/** Whether the server's history may be another than the page's. */
let unsure = false;
let abort: AbortController | undefined;
/** Grows with each wish: one that is still waiting for the server when the next comes gives up. */
let wishes = 0;
/** Whether the page waits for something that is needed before it can generate. */
let prepares = false;

/** Begins to wait for the server; returns whether the wish still counts. */
function waiting(toGenerate: boolean): () => boolean {
  const wish = ++wishes;
  prepares = toGenerate;
  return () => wish === wishes;
}

export function allTokens(): readonly Token[] {
  return tokens;
}

/** Returns the text before a token, as it was given or generated. */
export function textBefore(end: number): string {
  const decoder = new TextDecoder();
  return tokens
    .slice(0, end)
    .map((token) => decoder.decode(token.bytes, { stream: true }))
    .join('');
}

/** Returns what the last generation began from. */
export function lastPrompt(): string {
  return textBefore(start);
}

function become(id: string | null, next: Token[], from: number, prompt: number): void {
  tokens = next;
  start = from;
  session.value = id;
  given.value = prompt;
  length.value = tokens.length;
  revision.value++;
  refusal.value = '';
  if (id === null) {
    forget('tab', CURRENT);
  } else {
    remember('tab', CURRENT, id);
    noteStart(id, prompt, from);
  }
}

/** Leaves the text for an empty page. */
export function newText(): void {
  stop();
  waiting(false);
  draft.value = '';
  become(null, [], 0, 0);
  speed.value = null;
  phase.value = 'empty';
}

let frame = false;

/** Lets the page draw what has arrived, once in a frame. */
function draw(): void {
  if (frame) {
    return;
  }
  frame = true;
  const update = (): void => {
    frame = false;
    length.value = tokens.length;
  };
  // A tab in the background gets no frames.
  if (document.hidden) {
    setTimeout(update, 100);
  } else {
    requestAnimationFrame(update);
  }
}

interface Request {
  id: string;
  /** What comes before the new tokens and is not in the server's history. */
  prompt?: readonly number[] | string;
  /** Tokens of the prompt that the answer repeats. */
  echoed?: number;
  length?: number;
}

/** Generates at the end of the text. */
async function write({ id, prompt, echoed = 0, length: wanted }: Request): Promise<void> {
  const controller = new AbortController();
  abort = controller;
  phase.value = 'streaming';
  speed.value = null;
  refusal.value = '';
  say('Generating');
  const { length: most } = settings.peek();
  const body = {
    ...samplingFields(settings.peek()),
    session_id: id,
    max_tokens: wanted ?? most,
    ...(prompt === undefined ? {} : { prompt }),
    ...(echoed > 0 ? { echo: true } : {}),
    ...(info.peek()?.features.includes('overflow-slide') ? { overflow: 'slide' } : {}),
  };
  const ends = info.peek()?.model.end_of_text ?? [];
  const begun = performance.now();
  /** When the first tokens came, and how many came with it. */
  let [first, together] = [0, 0];
  let made = -echoed;
  try {
    const ending = await generate(body, controller.signal, (arrived) => {
      if (abort !== controller) {
        return;
      }
      // The token that ends a text is not part of it, nor of the session's history.
      const kept = arrived.filter(({ id: each }, i) => made + i < 0 || !ends.includes(each));
      tokens.push(...kept);
      made += kept.length;
      const now = performance.now();
      if (made > 0 && first === 0) {
        [first, together] = [now, made];
      }
      if (made > together) {
        speed.value = { rate: (1000 * (made - together)) / Math.max(1, now - first), first: first - begun };
      }
      draw();
    });
    if (abort === controller) {
      finish('done', `${Math.max(0, made)} tokens, finished: ${ending.reason}`);
    }
  } catch (error) {
    if (abort !== controller) {
      return;
    }
    unsure = true;
    if (error instanceof ConnectionLost) {
      finish('cut', 'The connection was lost. The text up to here is kept.');
    } else if (error instanceof ApiError) {
      if (tokens.length === 0) {
        // The server has no session of it; its text is still in the field.
        become(null, [], 0, 0);
      }
      refusal.value = error.message;
      finish('done', error.message);
    } else {
      throw error;
    }
  }
  await (phase.peek() === 'cut' || tokens.length === 0 ? refreshSessions() : refreshUntil(id, tokens.length));
}

function finish(as: Phase, message: string): void {
  abort = undefined;
  length.value = tokens.length;
  phase.value = tokens.length === 0 ? 'empty' : as;
  say(message);
  if (as === 'done') {
    settled();
  }
}

/** Ends the generation; what has arrived stays. */
export function stop(): void {
  if (abort) {
    const stopped = abort;
    unsure = true;
    finish('done', `Stopped. ${tokens.length} tokens.`);
    stopped.abort();
    void refreshSessions();
  } else if (prepares && phase.peek() === 'loading') {
    waiting(false);
    phase.value = tokens.length === 0 ? 'empty' : 'done';
  }
}

/** Begins a text. */
export async function begin(text: string): Promise<void> {
  if (phase.peek() !== 'empty') {
    return;
  }
  const counts = waiting(true);
  phase.value = 'loading';
  draft.value = text;
  try {
    const { tokens: ids } = await post<{ tokens: number[] }>('/tokenize', { content: text });
    if (!counts()) {
      return;
    }
    let id = sessionName(text);
    while (isTaken(id)) {
      id = sessionName(text);
    }
    become(id, [], ids.length, ids.length);
    unsure = false;
    await write({ id, prompt: ids.length > 0 ? ids : text, echoed: ids.length });
    if (counts() && tokens.length > 0) {
      draft.value = '';
    }
  } catch (error) {
    if (counts()) {
      refuse(error);
    }
  }
}

/** Returns a session once nothing is written in it, or after a while as it is. */
async function settledSession(id: string): Promise<Session> {
  let found = await getSession(id);
  for (let tries = 0; found.busy && tries < 40; tries++) {
    await new Promise((done) => setTimeout(done, 50));
    found = await getSession(id);
  }
  return found;
}

/**
 * Returns the tokens that the server's history lacks. What it has beyond the page's is removed where the page broke
 * off its reading, and else was written elsewhere: `changed`.
 */
async function reconcile(id: string): Promise<number[] | 'changed'> {
  const ours = tokens.map((token) => token.id);
  try {
    const theirs = await settledSession(id);
    const differs = theirs.tokens.findIndex((token, i) => token !== ours[i]);
    const common = differs < 0 ? theirs.tokens.length : differs;
    if (common < theirs.tokens.length) {
      if (!unsure) {
        return 'changed';
      }
      await rewindSession(id, theirs.tokens.length - common);
    }
    return ours.slice(common);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      return ours;
    }
    throw error;
  }
}

/** Goes on at the end of the text. */
export async function proceed(): Promise<void> {
  const id = session.peek();
  if (id === null || phase.peek() === 'streaming' || phase.peek() === 'loading') {
    return;
  }
  const rest = phase.peek() === 'cut' ? settings.peek().length - (tokens.length - start) : 0;
  const counts = waiting(true);
  phase.value = 'loading';
  try {
    const missing = await reconcile(id);
    if (!counts()) {
      return;
    }
    if (missing === 'changed') {
      await open(id);
      show('This text went on elsewhere. Here it is as it is now.');
      return;
    }
    unsure = false;
    if (rest <= 0) {
      start = tokens.length;
      noteStart(id, given.peek(), start);
    }
    await write({ id, ...(missing.length > 0 ? { prompt: missing } : {}), ...(rest > 0 ? { length: rest } : {}) });
  } catch (error) {
    if (counts()) {
      refuse(error);
    }
  }
}

function refuse(error: unknown): void {
  phase.value = tokens.length === 0 ? 'empty' : unsure ? 'cut' : 'done';
  if (error instanceof ApiError) {
    refusal.value = error.message;
    phase.value = tokens.length === 0 ? 'empty' : 'done';
    say(error.message);
  } else if (!(error instanceof ConnectionLost)) {
    throw error;
  }
}

/** Makes a branch of the first `at` tokens and generates in it, after `token` if one is chosen. */
async function branchOff(at: number, token?: Token): Promise<void> {
  const from = session.peek();
  if (from === null) {
    return;
  }
  stop();
  const counts = waiting(true);
  phase.value = 'loading';
  try {
    if (unsure) {
      const missing = await reconcile(from);
      if (!counts()) {
        return;
      }
      unsure = missing.length > 0;
    }
    const id = branchName(rootOf(from), isTaken);
    const kept = tokens.slice(0, at);
    const prompt = token ? [token.id] : [];
    if (unsure) {
      // The server has lost the session: the branch begins with all of its text.
      prompt.unshift(...kept.map((each) => each.id));
    } else {
      await forkSession(from, id, at);
      if (!counts()) {
        return;
      }
    }
    become(id, token ? [...kept, token] : kept, at, Math.min(given.peek(), at));
    await write({ id, ...(prompt.length > 0 ? { prompt } : {}) });
  } catch (error) {
    if (counts()) {
      refuse(error);
    }
  }
}

/** Goes on with another token in the place of one of the text. */
export async function branch(at: number, alternative: Alternative): Promise<void> {
  const replaced = tokens[at];
  if (!replaced || replaced.id === alternative.id) {
    return;
  }
  try {
    const there = await branchAt(session.peek(), at, alternative.id);
    if (there !== undefined) {
      await open(there);
      return;
    }
  } catch (error) {
    refuse(error);
    return;
  }
  await branchOff(at, { ...alternative, top: replaced.top });
}

/** Generates the last part again with another seed, as a branch. */
export async function retry(): Promise<void> {
  change({ seed: newSeed() });
  await branchOff(start);
}

/** Shows a session of the server. */
export async function open(id: string): Promise<void> {
  stop();
  const counts = waiting(false);
  const before = phase.peek();
  if (session.peek() !== id || before !== 'cut') {
    phase.value = 'loading';
  }
  try {
    const found = await settledSession(id);
    const window = info.peek()?.model.n_positions ?? 1024;
    const scored: Token[] = [];
    // The model sees no more than its context at once.
    for (let first = 0; first < found.tokens.length; first += window) {
      scored.push(...(await score(found.tokens.slice(first, first + window))));
    }
    if (!counts()) {
      return;
    }
    const { prompt, from } = startOf(id);
    become(id, scored, from, prompt);
    draft.value = '';
    unsure = false;
    speed.value = null;
    phase.value = 'done';
  } catch (error) {
    if (!counts()) {
      return;
    }
    if (error instanceof ApiError && error.status === 404) {
      newText();
    } else {
      refuse(error);
    }
  }
}

/** Shows the text of before the page was loaded again. */
export async function resume(): Promise<void> {
  const id = session.peek();
  if (id !== null && tokens.length === 0) {
    await open(id);
  }
}

/** Returns a token's text with what is not a character shown as bytes. */
export function tokenTextAt(i: number): string {
  const token = tokens[i];
  return token ? textOf(token.bytes) : '';
}

/** Notes that the server may no longer have what it had. */
export function doubt(): void {
  unsure = tokens.length > 0;
}
