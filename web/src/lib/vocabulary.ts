/** The texts of token ids, asked for once each. */

import { effect, signal } from '@preact/signals';
import { post } from '../api/client';
import { info, isTeller, served } from '../shell/connection';
import { shown } from './format';

interface Detokenized {
  content: string;
}

const texts = new Map<number, string>();

/** Grows when texts have arrived. */
const known = signal(0);

let of = '';
effect(() => {
  // Another model has other tokens.
  if (of !== '' && served.value !== of) {
    texts.clear();
    known.value = known.peek() + 1;
  }
  of = served.value;
});

async function detokenize(tokens: number[]): Promise<string> {
  return (await post<Detokenized>('/detokenize', { tokens })).content;
}

/** Notes texts that came with an answer. */
export function teach(id: number, text: string): void {
  texts.set(id, text);
}

/** Asks for the texts of those ids that are not known yet. */
export async function learn(ids: Iterable<number>): Promise<void> {
  const separator = info.peek()?.model.end_of_text[0];
  const unknown = [...new Set(ids)].filter((id) => !texts.has(id) && id !== separator);
  if (unknown.length === 0) {
    return;
  }
  if (separator === undefined) {
    const answers = await Promise.all(unknown.map((id) => detokenize([id])));
    answers.forEach((text, i) => texts.set(unknown[i] ?? 0, text));
  } else {
    // One request for all: between any two of them stands a token whose text is in no other.
    const name = await detokenize([separator]);
    const joined = await detokenize(unknown.flatMap((id) => [id, separator]));
    joined.split(name).forEach((text, i) => {
      const id = unknown[i];
      if (id !== undefined) {
        texts.set(id, text);
      }
    });
  }
  known.value++;
}

/** Returns the name of the end of a text. */
function ending(): string {
  return isTeller.peek() ? 'end of tale' : 'end of text';
}

/** Returns a token's text; `…` until it is known. What is shown of it follows when it is. */
export function tokenText(id: number): string {
  void known.value;
  if (info.peek()?.model.end_of_text.includes(id)) {
    return ending();
  }
  const text = texts.get(id);
  return text === undefined ? '…' : text.includes('\ufffd') ? '‹byte›' : text;
}

/** Returns a token's text as lists show it. */
export function label(id: number): string {
  return shown(tokenText(id));
}
