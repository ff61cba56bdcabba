import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { percent, shown } from '../lib/format';
import { tokenText } from '../lib/vocabulary';
import { Canvas } from './Canvas';
import type { Look } from './inspection';
import { drawMap } from './map';
import { choose, more, openMap, row as chosenRow } from './state';

/** Texts up to this length have the names of their tokens beside the rows. */
const MOST_NAMES = 48;

interface Props {
  look: Look;
  layer: number;
  head: number;
}

/**
 * The map of one head as large as there is room. It is a grid of which the row that is pointed at is in the page; the
 * others are drawn.
 */
export function MapGrid({ look, layer, head }: Props) {
  void more.value;
  const rows = look.attention.get(layer)?.get(head);
  const size = look.ids.length;
  const isWhole = (rows?.size ?? 0) >= size;
  const grid = useRef<HTMLDivElement>(null);
  const [at, point] = useState<[row: number, column: number]>(() => {
    const weights = rows?.get(chosenRow.peek());
    return [chosenRow.peek(), weights ? weights.indexOf(Math.max(...weights)) : 0];
  });
  /** Whether the focus goes where the keys have gone. */
  const moved = useRef(false);
  useEffect(() => {
    if (!isWhole) {
      openMap();
    }
  }, [isWhole]);
  useLayoutEffect(() => {
    if (moved.current) {
      moved.current = false;
      grid.current?.querySelector<HTMLElement>('[tabindex="0"]')?.focus();
    }
  }, [at]);
  if (!rows || !isWhole) {
    return <p class="note">The map is on its way …</p>;
  }
  const [row, column] = at;
  const go = (toRow: number, toColumn: number): void => {
    const r = Math.max(0, Math.min(size - 1, toRow));
    moved.current = true;
    point([r, Math.max(0, Math.min(r, toColumn))]);
    if (r >= look.from && r < look.to) {
      choose({ row: r });
    }
  };
  const key = (event: KeyboardEvent): void => {
    const steps: Partial<Record<string, [number, number]>> = {
      ArrowDown: [row + 1, column],
      ArrowUp: [row - 1, column],
      ArrowRight: [row, column + 1],
      ArrowLeft: [row, column - 1],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? size - 1 : row, size],
      PageDown: [row + 10, column],
      PageUp: [row - 10, column],
    };
    const step = event.altKey || event.metaKey || event.shiftKey ? undefined : steps[event.key];
    if (step) {
      event.preventDefault();
      go(...step);
    }
  };
  const press = (event: MouseEvent): void => {
    const box = grid.current?.getBoundingClientRect();
    if (box) {
      go(
        Math.floor((size * (event.clientY - box.top)) / box.height),
        Math.floor((size * (event.clientX - box.left)) / box.width),
      );
    }
  };
  const name = (i: number): string => shown(tokenText(look.ids[i] ?? 0));
  const weights = rows.get(row) ?? new Float32Array();
  return (
    <>
      <p class="reading" aria-hidden="true">
        <bdi class="tokn">{name(row)}</bdi>, token {row + 1}, takes <b>{percent(weights[column] ?? 0)}</b> from{' '}
        {row === column ? 'itself' : <bdi class="tokn">{name(column)}</bdi>}
        {row !== column && `, token ${column + 1}`}.
      </p>
      <div class="mapgrid">
        {size <= MOST_NAMES && (
          <ol class="names" aria-hidden="true">
            {look.ids.map((_, i) => (
              <li key={i} class={i === row ? 'on' : ''}>
                <bdi>{name(i)}</bdi>
              </li>
            ))}
          </ol>
        )}
        <div
          ref={grid}
          class="square"
          role="grid"
          aria-label={`Map of head ${head + 1} in layer ${layer + 1}`}
          aria-rowcount={size}
          aria-colcount={size}
          onKeyDown={key}
          onClick={press}
        >
          <Canvas width={size} height={size} of={[look, layer, rows.size]} draw={(canvas) => drawMap(canvas, rows, size)} />
          <div
            role="row"
            class="line"
            aria-rowindex={row + 1}
            style={{ top: `${(100 * row) / size}%`, width: `${(100 * (row + 1)) / size}%`, height: `${100 / size}%` }}
          >
            {[...weights].map((weight, i) => (
              <span
                key={i}
                role="gridcell"
                aria-colindex={i + 1}
                tabIndex={i === column ? 0 : -1}
                aria-selected={i === column}
                aria-label={`${name(row)} takes ${percent(weight)} from ${i === row ? 'itself' : name(i)}`}
              />
            ))}
          </div>
        </div>
      </div>
      <p class="note">Rows: the token that looks. Columns: the tokens it looks at. Arrow keys go from one to the next.</p>
    </>
  );
}
