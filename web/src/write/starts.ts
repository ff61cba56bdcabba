/** Where in a session the given text ends and the last generation began: only the page knows. */

import { recall, remember } from '../lib/storage';

interface Start {
  /** Tokens that were given. */
  prompt: number;
  /** Tokens before the last generation. */
  from: number;
}

const KEPT = 'skald.starts';
/** Sessions that are remembered. */
const MOST = 200;

function all(): [string, Start][] {
  try {
    const kept: unknown = JSON.parse(recall('browser', KEPT) ?? '[]');
    return Array.isArray(kept) ? (kept as [string, Start][]) : [];
  } catch {
    return [];
  }
}

export function noteStart(id: string, prompt: number, from: number): void {
  const others = all().filter(([name]) => name !== id);
  remember('browser', KEPT, JSON.stringify([...others, [id, { prompt, from }]].slice(-MOST)));
}

export function startOf(id: string): Start {
  return all().find(([name]) => name === id)?.[1] ?? { prompt: 0, from: 0 };
}
