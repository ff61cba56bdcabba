/** The token whose alternatives are shown. */

import { signal } from '@preact/signals';

export interface Selection {
  token: number;
  /** Where it is on the screen. */
  place: { left: number; top: number; bottom: number; width: number };
  /** Shown for as long as the pointer is over it, or until it is closed. */
  kind: 'hover' | 'pinned';
}

export const selection = signal<Selection | null>(null);

export function select(token: number, element: Element, kind: Selection['kind']): void {
  const box = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const { left, top, bottom, width } = box;
  selection.value = { token, place: { left, top, bottom, width }, kind };
}

export function unselect(): void {
  selection.value = null;
}
