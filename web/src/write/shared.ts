/** Links to texts: made here, and opened here. */

import { effect, signal } from '@preact/signals';
import { copy } from '../lib/say';
import { changeTo, settings } from '../lib/settings';
import { decode, encode } from '../lib/share';
import { info } from '../shell/connection';
import { chatting } from './chat';
import { draft, lastPrompt, newText, session } from './story';

/** What is to be known about the link that was opened; null if none was. */
export const arrived = signal<{ fingerprint: string } | 'unreadable' | null>(null);

/** Copies a link that holds the text before the last generation, the settings and the seed. */
export async function copyLink(): Promise<void> {
  const fragment = await encode({
    prompt: draft.peek() || lastPrompt(),
    settings: settings.peek(),
    fingerprint: info.peek()?.model.fingerprint ?? '',
  });
  await copy(`${location.origin}${location.pathname}#${fragment}`, 'Link copied');
}

/** Opens the link that the page was loaded with, if it is one. */
export async function openShared(): Promise<void> {
  const shared = await decode(location.hash);
  if (shared === undefined) {
    return;
  }
  history.replaceState(null, '', '#write');
  chatting.value = false;
  newText();
  if (shared === 'unreadable') {
    arrived.value = shared;
    return;
  }
  changeTo(shared.settings);
  draft.value = shared.prompt;
  arrived.value = { fingerprint: shared.fingerprint };
}

// The note is about a text that was not begun yet.
effect(() => {
  if (session.value !== null) {
    arrived.value = null;
  }
});

addEventListener('hashchange', () => void openShared());
