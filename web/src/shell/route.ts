/** Which view is shown: the address's fragment. */

import { signal } from '@preact/signals';
import { sheet } from './phone';

export const VIEWS = [
  { id: 'write', name: 'Write' },
  { id: 'inside', name: 'Look inside' },
  { id: 'server', name: 'Server' },
] as const;

export type View = (typeof VIEWS)[number]['id'];

function current(): View {
  const name = location.hash.slice(1);
  return VIEWS.find((view) => view.id === name)?.id ?? 'write';
}

export const view = signal<View>(current());

export function go(to: View): void {
  location.hash = to;
}

addEventListener('hashchange', () => {
  sheet.value = null;
  view.value = current();
});
