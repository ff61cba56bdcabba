/** Whether the page is laid out for a phone, and which sheet is open there. */

import { signal } from '@preact/signals';
import { closesOnBack } from './back';

const query = matchMedia('(max-width: 760px)');

export const phone = signal(query.matches);

query.addEventListener('change', () => {
  phone.value = query.matches;
});

/** Keeps the page within what the keyboard of a phone leaves, where the browser lays it over the page (Safari). */
function fit(): void {
  const seen = globalThis.visualViewport;
  // Not what a pinch has enlarged.
  const isCovered = seen && seen.scale === 1 && innerHeight - seen.height > 80;
  document.documentElement.style.setProperty('--seen', isCovered ? `${seen.height}px` : '100%');
}
globalThis.visualViewport?.addEventListener('resize', fit);

export type Sheet = 'sessions' | 'settings' | 'branches';

export const sheet = signal<Sheet | null>(null);

closesOnBack(
  'sheet',
  () => sheet.value !== null,
  () => {
    sheet.value = null;
  },
);
