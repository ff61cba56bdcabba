/** The keys of the grid: one tab stop, from which arrow keys go from cell to cell. */

import { effect } from '@preact/signals';
import type { RefObject } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import type { Look } from './inspection';
import { layers } from './geometry';
import { choose, layer, row } from './state';

/** The column of the tokens; those of the layers count from 0. */
export const TOKEN = -1;

/** Rows that Page Up and Page Down go. */
const PAGE_ROWS = 10;

/** Returns by how many rows and columns a key moves. */
function stepOf(event: KeyboardEvent): [rows: number, columns: number] | undefined {
  switch (event.key) {
    case 'ArrowDown':
      return [1, 0];
    case 'ArrowUp':
      return [-1, 0];
    case 'ArrowRight':
      return [0, 1];
    case 'ArrowLeft':
      return [0, -1];
    case 'PageDown':
      return [PAGE_ROWS, 0];
    case 'PageUp':
      return [-PAGE_ROWS, 0];
    case 'Home':
      return [event.ctrlKey ? -Infinity : 0, -Infinity];
    case 'End':
      return [event.ctrlKey ? Infinity : 0, Infinity];
    default:
      return undefined;
  }
}

const clamp = (value: number, low: number, high: number): number => Math.max(low, Math.min(high, value));

function cellAt(grid: HTMLElement | null, at: number, column: number): HTMLElement | null {
  return grid?.querySelector<HTMLElement>(`[data-row="${at}"][data-column="${column}"]`) ?? null;
}

/**
 * Keeps the one cell that can be reached by Tab that of the row and the layer that are pointed out, and the focus on
 * it while it is in the grid; returns what to do at a key.
 */
export function useGrid(grid: RefObject<HTMLElement | null>, look: Look): (event: KeyboardEvent) => void {
  /** Whether the keys are in the column of the tokens. */
  const atToken = useRef(true);
  useEffect(() => {
    const root = grid.current;
    let stop: HTMLElement | null = null;
    const mark = (): void => {
      stop?.setAttribute('tabindex', '-1');
      stop = cellAt(root, row.value, atToken.current ? TOKEN : layer.value);
      stop?.setAttribute('tabindex', '0');
    };
    const follow = (event: FocusEvent): void => {
      const { column } = (event.target as HTMLElement).dataset;
      atToken.current = column === String(TOKEN);
      // A click chooses the cell only when the button is let go.
      mark();
    };
    root?.addEventListener('focusin', follow);
    const end = effect(() => {
      mark();
      if (root?.contains(document.activeElement) && document.activeElement !== stop) {
        stop?.focus();
      }
    });
    return () => {
      end();
      root?.removeEventListener('focusin', follow);
    };
  }, [look]);
  return (event) => {
    const step = event.altKey || event.metaKey || event.shiftKey ? undefined : stepOf(event);
    const [rows, columns] = step ?? [0, 0];
    const isBound = event.ctrlKey && event.key.startsWith('Arrow');
    if (!step || isBound) {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        (event.target as HTMLElement).click();
      }
      return;
    }
    event.preventDefault();
    // Not for the view, whose arrow keys work outside of the grid.
    event.stopPropagation();
    const now = atToken.current ? TOKEN : layer.peek();
    const column = clamp(now + columns, TOKEN, layers.peek() - 1);
    atToken.current = column === TOKEN;
    const to = clamp(row.peek() + rows, look.from, look.to - 1);
    choose({ row: to, ...(column === TOKEN ? {} : { layer: column }) });
    cellAt(grid.current, to, column)?.focus();
  };
}
