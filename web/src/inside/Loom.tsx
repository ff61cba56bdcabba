import { effect } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { percent, shown, spaced } from '../lib/format';
import { label } from '../lib/vocabulary';
import { theme, token as themeToken } from '../shell/theme';
import { drawBars, grouped, limitOf } from './bars';
import { Canvas } from './Canvas';
import { geometry, layers, layerX, rowY, type Geometry } from './geometry';
import { TOKEN, useGrid } from './grid';
import type { Look } from './inspection';
import { busy, choose, head, layer, more, page, row, stage } from './state';
import { drawFaint, pathOf, threadsOf } from './threads';

/** The grid: tokens are the warp, layers are the weft, attention is the thread between them. */
export function Loom({ look }: { look: Look }) {
  const of = geometry.value;
  const wrap = useRef<HTMLDivElement>(null);
  const grid = useRef<HTMLDivElement>(null);
  const width = layerX(of, layers.value);
  const height = rowY(of, look.to - look.from) + 6;
  useEffect(() => {
    // The last layers are those that tell most.
    if (wrap.current && layers.value > 6) {
      wrap.current.scrollLeft = wrap.current.scrollWidth;
    }
  }, [look.ids.length === 0, layers.value]);
  const keys = useGrid(grid, look);
  useEffect(
    () =>
      effect(() => {
        // Within the grid only: what is above it stays in view.
        const top = rowY(of, row.value - look.from);
        const scroller = wrap.current;
        if (scroller) {
          const low = top + of.row - scroller.clientHeight;
          scroller.scrollTop = Math.max(low, Math.min(top - of.head, scroller.scrollTop));
        }
      }),
    [look, of],
  );
  return (
    <>
      {look.from > 0 && (
        <button class="btn sm earlier" onClick={() => page(-1)}>
          Show the tokens before these
        </button>
      )}
      <div class="loomwrap" ref={wrap} tabIndex={-1}>
        <div
          ref={grid}
          class="loom"
          role="grid"
          aria-label="Tokens and layers: the likeliest next token after each layer"
          aria-rowcount={look.ids.length + 1}
          aria-colcount={layers.value + 1}
          aria-busy={busy.value}
          style={{ height: `${height}px`, width: `${of.token + width}px` }}
          onKeyDown={keys}
        >
          <Highlight look={look} of={of} />
          <Threads look={look} of={of} />
          <div class="heads" role="row" aria-rowindex={1}>
            <span class="corner" role="columnheader" style={{ width: `${of.token}px` }}>
              <span class="vh">Token</span>
            </span>
            {Array.from({ length: layers.value }, (_, l) => (
              <LayerHead key={l} layer={l} of={of} />
            ))}
          </div>
          {look.tokens.map((_, i) => (
            <Row key={look.from + i} look={look} i={i} of={of} />
          ))}
          <Veils look={look} of={of} />
        </div>
      </div>
      {look.to < look.ids.length && (
        <button class="btn sm earlier" onClick={() => page(1)}>
          Show the tokens after these
        </button>
      )}
    </>
  );
}

/** Covers what is new in each layer for a moment: the cells appear layer by layer, as they are computed. */
function Veils({ look, of }: { look: Look; of: Geometry }) {
  const first = look.fresh - look.from;
  const rows = look.to - look.fresh;
  if (rows <= 0 || look.lens.length === 0) {
    return null;
  }
  return (
    <div key={`${look.ids.length} ${look.fresh} ${look.ids.join()}`} aria-hidden="true">
      {Array.from({ length: layers.value }, (_, l) => (
        <i
          key={l}
          class="veil"
          style={{
            '--l': String(l),
            left: `${of.token + layerX(of, l)}px`,
            width: `${of.gutter + of.cell}px`,
            top: `${rowY(of, first)}px`,
            height: `${rows * of.row}px`,
          }}
        />
      ))}
    </div>
  );
}

function Highlight({ look, of }: { look: Look; of: Geometry }) {
  const top = rowY(of, row.value - look.from);
  return <div class="rw on" aria-hidden="true" style={{ top: `${top}px`, height: `${of.row}px` }} />;
}

function LayerHead({ layer: l, of }: { layer: number; of: Geometry }) {
  const isChosen = layer.value === l;
  return (
    <span
      role="columnheader"
      class={`lay${isChosen ? ' on' : ''}`}
      style={{ left: `${of.token + layerX(of, l)}px`, width: `${of.gutter + of.cell - 6}px` }}
      onClick={() => choose({ layer: l })}
    >
      Layer {l + 1}
    </span>
  );
}

interface RowProps {
  look: Look;
  i: number;
  of: Geometry;
}

/** A row: a token, how it came together, its numbers, and the model's guess after each layer. */
function Row({ look, i, of }: RowProps) {
  const token = look.tokens[i];
  const position = look.from + i;
  const parts = token?.merges.at(-2)?.parts ?? token?.merges.at(-1)?.parts ?? [token?.text ?? ''];
  return (
    <div class="line" role="row" aria-rowindex={position + 2} style={{ top: `${rowY(of, i)}px`, height: `${of.row}px` }}>
      <TokenHead look={look} i={i} of={of} />
      {of.merge > 0 && (
        <span
          class={`mrg${parts.join('').length > 9 ? ' clip' : ''}`}
          aria-hidden="true"
          style={{ left: `${of.token}px`, height: `${of.row}px`, width: `${of.merge}px` }}
        >
          {parts.map((part, k) => (
            <span key={k}>
              {k > 0 && '+'}
              <u>{spaced(part)}</u>
            </span>
          ))}
        </span>
      )}
      {of.numbers > 0 && look.embedding.wte.length > 0 && <Numbers look={look} i={i} of={of} />}
      {look.lens.slice(1).map((state, l) => {
        const [id, probability] = state[i]?.[0] ?? [0, 0];
        const text = label(id);
        return (
          <span
            key={l}
            role="gridcell"
            class={`cell${text.length > 7 ? ' long' : ''}${text.length > 8 ? ' clip' : ''}`}
            tabIndex={-1}
            data-row={position}
            data-column={l}
            style={{
              '--p': String(probability),
              left: `${of.token + layerX(of, l) + of.gutter}px`,
              width: `${of.cell - 4}px`,
              height: `${of.row - 4}px`,
            }}
            title={(state[i] ?? [])
              .slice(0, 5)
              .map(([each, p]) => `${label(each)}  ${percent(p)}`)
              .join('\n')}
            aria-label={`Layer ${l + 1}, after ${shown(token?.text ?? '')}: ${text}, ${percent(probability)}`}
            onClick={() => {
              const stays = stage.peek() === 'attention' || stage.peek() === 'feedforward';
              choose({ row: position, layer: l, ...(stays ? {} : { stage: 'lens' }) });
            }}
          >
            {text}
          </span>
        );
      })}
    </div>
  );
}

function TokenHead({ look, i, of }: RowProps) {
  const position = look.from + i;
  const { text = '', id = 0 } = look.tokens[i] ?? {};
  const element = useRef<HTMLSpanElement>(null);
  // Not by rendering: only two of all rows change.
  useEffect(
    () =>
      effect(() => {
        element.current?.setAttribute('aria-selected', String(row.value === position));
      }),
    [position],
  );
  return (
    <span
      ref={element}
      role="rowheader"
      class="tokb"
      tabIndex={-1}
      data-row={position}
      data-column={TOKEN}
      style={{ width: `${of.token}px`, height: `${of.row}px`, lineHeight: `${of.row}px` }}
      onClick={() => choose({ row: position })}
    >
      <span class="i">{position + 1}</span>
      <bdi class="w">{shown(text)}</bdi>
      {of.merge > 0 && text.length + String(position + 1).length <= 9 && <span class="id">{id}</span>}
    </span>
  );
}

function Numbers({ look, i, of }: RowProps) {
  const width = of.numbers - 16;
  const draw = (canvas: HTMLCanvasElement): void => {
    canvas.style.left = `${of.token + of.merge}px`;
    const sum = sumOf(look, i);
    drawBars(canvas, grouped(sum, width), limitOf(sum));
  };
  return <Canvas class="numbers" width={2 * width} height={52} of={[look, i]} draw={draw} />;
}

/** Returns what goes into the first layer: the token's numbers and its position's. */
export function sumOf(look: Look, i: number): Float32Array {
  const { wte, wpe, width } = look.embedding;
  return Float32Array.from({ length: width }, (_, k) => (wte[i * width + k] ?? 0) + (wpe[i * width + k] ?? 0));
}

function Threads({ look, of }: { look: Look; of: Geometry }) {
  void more.value;
  const width = layerX(of, layers.value);
  const height = rowY(of, look.to - look.from) + 6;
  const known = look.attention.get(0)?.get(0)?.size ?? 0;
  const left = `${of.token}px`;
  const draw = (canvas: HTMLCanvasElement): void => {
    canvas.style.width = `${width}px`;
    canvas.style.left = left;
    drawFaint(canvas, look, of, layers.value, head.peek(), themeToken('--att-rgb'));
  };
  const threads = Array.from({ length: layers.value }, (_, l) => threadsOf(look, of, l, head.value, row.value));
  return (
    <>
      {look.from === 0 && (
        <Canvas
          class="faint"
          width={width}
          height={height}
          of={[look, head.value, known > 1, theme.value]}
          draw={draw}
        />
      )}
      <svg class="threads" width={width} height={height} aria-hidden="true" style={{ left }}>
        {threads.flat().map((thread, i) => (
          <path
            key={i}
            class="th"
            d={pathOf(thread, of)}
            stroke-width={(0.6 + 11 * thread.weight).toFixed(2)}
            opacity={thread.rests ? 0.45 : 0.95}
          />
        ))}
      </svg>
    </>
  );
}
