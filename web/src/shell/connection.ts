/** Whether the server answers, and what it is. */

import { computed, signal } from '@preact/signals';
import { ApiError, get, keyState, whenLost } from '../api/client';
import type { Info } from '../api/types';
import { adopt } from '../lib/settings';

/** The built-in model's name. */
const BUILT_IN = 'fairy-tales';

/** The server and its model; null until it has answered. */
export const info = signal<Info | null>(null);

/** Whether the model is the built-in one, which tells fairy tales; so it is taken to be until it is known. */
export const isTeller = computed(() => (info.value?.model.id ?? BUILT_IN) === BUILT_IN);

/** `back`: it did not answer, and does again. */
export const link = signal<'connecting' | 'ready' | 'loading' | 'lost' | 'back'>('connecting');

/** Seconds to the next try. */
export const nextTry = signal(0);

/** Names the model that is served: whether texts of tokens and what was seen inside are still those of the model. */
export const served = computed(() => {
  const model = info.value?.model;
  return model ? `${model.id} ${model.fingerprint} ${model.vocab_size}` : '';
});

/** Grows each time another process answers than before. */
export const restarts = signal(0);

export const needsKey = computed(() => keyState.value !== 'accepted');

/** Longest pause between two tries, in seconds. */
const LONGEST_PAUSE = 30;
/** How often a server that answers is asked whether it still does, in milliseconds. */
const HEARTBEAT = 5000;

let pause = 1;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Asks the server what it is. */
export async function connect(): Promise<void> {
  clearTimeout(timer);
  try {
    const now = await get<Info>('/info');
    const before = info.peek();
    if (before && before.model.created !== now.model.created) {
      restarts.value++;
    }
    adopt(now);
    info.value = now;
    keyState.value = 'accepted';
    link.value = link.peek() === 'lost' || link.peek() === 'back' ? 'back' : 'ready';
    pause = 1;
  } catch (error) {
    if (error instanceof ApiError && error.status === 503) {
      link.value = 'loading';
      timer = setTimeout(() => void connect(), 1000);
    } else if (error instanceof ApiError && error.status === 429) {
      timer = setTimeout(() => void connect(), 5000);
    }
    // A lost connection has told `lost` already; without a key there is nothing to do but to ask for one.
  }
}

function lost(): void {
  if (link.peek() === 'lost' && nextTry.peek() > 0) {
    return;
  }
  link.value = 'lost';
  nextTry.value = pause;
  pause = Math.min(LONGEST_PAUSE, pause * 2);
  countDown();
}

function countDown(): void {
  clearTimeout(timer);
  timer = setTimeout(() => {
    nextTry.value--;
    if (nextTry.peek() <= 0) {
      void connect();
    } else {
      countDown();
    }
  }, 1000);
}

export function tryNow(): void {
  nextTry.value = 0;
  void connect();
}

/** The text goes on, or the banner was read: all is as before. */
export function settled(): void {
  if (link.peek() === 'back') {
    link.value = 'ready';
  }
}

/** Begins to watch the connection. */
export function watch(): void {
  whenLost(lost);
  void connect();
  setInterval(() => {
    if (document.visibilityState === 'visible' && (link.peek() === 'ready' || link.peek() === 'back')) {
      fetch('/readyz', { cache: 'no-store' }).catch(lost);
    }
  }, HEARTBEAT);
}
