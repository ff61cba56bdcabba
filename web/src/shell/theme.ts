/** Light or dark: the system's choice until the page has one. `theme.js` sets it before the first paint. */

import { signal } from '@preact/signals';
import { remember } from '../lib/storage';

type Theme = 'light' | 'dark';

const root = document.documentElement;

export const theme = signal<Theme>(root.dataset['theme'] === 'dark' ? 'dark' : 'light');

export function switchTheme(): void {
  theme.value = theme.peek() === 'dark' ? 'light' : 'dark';
  root.dataset['theme'] = theme.value;
  remember('browser', 'skald.theme', theme.value);
}

/** Returns the value of a custom property under the present theme. */
export function token(name: string): string {
  return getComputedStyle(root).getPropertyValue(name).trim();
}
