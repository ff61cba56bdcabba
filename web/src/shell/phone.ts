/** Whether the page is laid out for a phone, and which sheet is open there. */

import { signal } from '@preact/signals';

const query = matchMedia('(max-width: 760px)');

export const phone = signal(query.matches);

query.addEventListener('change', () => {
  phone.value = query.matches;
});

export type Sheet = 'sessions' | 'settings' | 'branches';

export const sheet = signal<Sheet | null>(null);
