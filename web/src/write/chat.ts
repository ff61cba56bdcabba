/** A conversation, where the model has a template for one. It is kept in this tab only. */

import { computed, effect, signal } from '@preact/signals';
import { ApiError, ConnectionLost, read, send } from '../api/client';
import { EventParser } from '../api/sse';
import type { ChatChunk, ErrorBody } from '../api/types';
import { say } from '../lib/say';
import { samplingFields, settings } from '../lib/settings';
import { recall, remember } from '../lib/storage';
import { info } from '../shell/connection';
import { newText, session } from './story';

/** A token of an answer. */
export interface Said {
  text: string;
  logprob: number;
}

export interface Turn {
  role: 'user' | 'assistant';
  tokens: Said[];
}

const KEPT = 'skald.chat';

/** Whether the model was made for conversations. */
export const hasChat = computed(() => (info.value?.model.chat_template ?? 'plain') !== 'plain');
export const chatting = signal(false);
export const turns = signal<Turn[]>(kept());
export const answering = signal(false);
export const refused = signal('');

let abort: AbortController | undefined;

function kept(): Turn[] {
  try {
    const turns: unknown = JSON.parse(recall('tab', KEPT) ?? '[]');
    return Array.isArray(turns) ? (turns as Turn[]) : [];
  } catch {
    return [];
  }
}

export function textOfTurn(turn: Turn): string {
  return turn.tokens.map(({ text }) => text).join('');
}

export function newChat(): void {
  newText();
  turns.value = [];
  refused.value = '';
  chatting.value = true;
}

/** Sends a message and reads the answer as it comes. */
export async function ask(text: string): Promise<void> {
  const controller = new AbortController();
  abort = controller;
  const before: Turn[] = [...turns.peek(), { role: 'user', tokens: [{ text, logprob: 0 }] }];
  const answer: Turn = { role: 'assistant', tokens: [] };
  turns.value = [...before, answer];
  answering.value = true;
  refused.value = '';
  say('Generating');
  let frame = 0;
  const decoder = new TextDecoder();
  const parser = new EventParser((data) => {
    if (data === '[DONE]') {
      return;
    }
    const event = JSON.parse(data) as ChatChunk & ErrorBody;
    if (typeof event.error === 'object') {
      refused.value = event.error.message ?? 'The generation failed.';
      return;
    }
    for (const { bytes, logprob } of event.choices[0]?.logprobs?.content ?? []) {
      // A character may be of several tokens.
      answer.tokens.push({ text: decoder.decode(Uint8Array.from(bytes), { stream: true }), logprob });
    }
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      turns.value = [...before, { ...answer }];
    });
  });
  try {
    const body = {
      ...samplingFields(settings.peek()),
      max_tokens: settings.peek().length,
      messages: before.map((turn) => ({ role: turn.role, content: textOfTurn(turn) })),
      stream: true,
      logprobs: true,
      top_logprobs: 0,
    };
    const response = await send('POST', '/v1/chat/completions', body, controller.signal);
    await read(response, controller.signal, (piece) => parser.push(piece));
  } catch (error) {
    if (error instanceof ApiError || error instanceof ConnectionLost) {
      refused.value = error.message;
    } else if (!controller.signal.aborted) {
      throw error;
    }
  } finally {
    cancelAnimationFrame(frame);
    turns.value = [...before, { ...answer }];
    answering.value = false;
    remember('tab', KEPT, JSON.stringify(turns.peek()));
    say(`${answer.tokens.length} tokens, finished`);
  }
}

export function stopAnswer(): void {
  abort?.abort();
}

// A text that is opened ends the conversation.
effect(() => {
  if (session.value !== null) {
    chatting.value = false;
  }
});
