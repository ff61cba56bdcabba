/** How the surprise of tokens is shown. */

import { signal } from '@preact/signals';

export type Mode = 'thread' | 'colour' | 'plain';

export const MODES: readonly { id: Mode; name: string }[] = [
  { id: 'thread', name: 'Thread' },
  { id: 'colour', name: 'Colour' },
  { id: 'plain', name: 'Off' },
];

export const mode = signal<Mode>('thread');

/** Returns where bits of surprise are on the scale from expected, 0, to surprising, 1. */
export function scale(bits: number): number {
  return Math.max(0, Math.min(1, (bits - 1) / 5.5));
}
