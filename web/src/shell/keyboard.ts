/** Keys that work anywhere, and the switch for those of a single letter (WCAG 2.1.4). */

import { effect, signal } from '@preact/signals';
import { recall, remember } from '../lib/storage';
import { go, type View } from './route';

const KEPT = 'skald.letters';
/** How long `g` waits for the second letter, in milliseconds. */
const PATIENCE = 1200;

/** Whether single letters are commands. */
export const letters = signal(recall('browser', KEPT) !== 'off');
effect(() => remember('browser', KEPT, letters.value ? 'on' : 'off'));

/** Whether the table of keys is shown. */
export const help = signal(false);

export function isField(target: EventTarget | null): boolean {
  return target instanceof Element && target.closest('textarea, select, dialog, input:not([type=range])') !== null;
}

/** Returns whether an event is a command, not text or part of the browser's own. */
export function isCommand(event: KeyboardEvent): boolean {
  return letters.peek() && !event.ctrlKey && !event.metaKey && !event.altKey && !isField(event.target);
}

const TARGETS: Partial<Record<string, View>> = { w: 'write', i: 'inside', s: 'server' };

/** Begins to listen. */
export function listen(): void {
  let begun = 0;
  addEventListener('keydown', (event) => {
    if (!isCommand(event)) {
      return;
    }
    const target = TARGETS[event.key];
    if (event.key === '?') {
      help.value = true;
    } else if (event.key === 'g') {
      begun = event.timeStamp;
    } else if (target && event.timeStamp - begun < PATIENCE) {
      begun = 0;
      go(target);
    }
  });
}
