import { useEffect, useRef } from 'preact/hooks';
import { percent, shown, spaced } from '../lib/format';
import { label } from '../lib/vocabulary';
import { theme, token as themeToken } from '../shell/theme';
import { drawBars, grouped, limitOf } from './bars';
import { Canvas } from './Canvas';
import { geometry, layers, layerX, rowY, type Geometry } from './geometry';
import type { Look } from './inspection';
import { choose, head, layer, more, page, row, stage } from './state';
import { drawFaint, pathOf, threadsOf } from './threads';

/** The grid: tokens are the warp, layers are the weft, attention is the thread between them. */
export function Loom({ look }: { look: Look }) {
  const of = geometry.value;
  const wrap = useRef<HTMLDivElement>(null);
  const width = layerX(of, layers.value);
  const height = rowY(of, look.to - look.from) + 6;
  useEffect(() => {
    // The last layers are those that tell most.
    if (wrap.current && layers.value > 6) {
      wrap.current.scrollLeft = wrap.current.scrollWidth;
    }
  }, [look.ids.length === 0, layers.value]);
  return (
    <>
      {look.from > 0 && (
        <button class="btn sm earlier" onClick={() => page(-1)}>
          Show the tokens before these
        </button>
      )}
      <div class="loomwrap" ref={wrap} tabIndex={-1}>
        <div class="loom" style={{ height: `${height}px`, width: `${of.token + width}px` }}>
          <Highlight look={look} of={of} />
          <div class="warp" style={{ width: `${of.token}px`, height: `${height}px` }}>
            <div class="corner" />
            {look.tokens.map((token, i) => (
              <TokenButton key={look.from + i} row={look.from + i} text={token.text} id={token.id} of={of} i={i} />
            ))}
          </div>
          <div class="weft" style={{ width: `${width}px`, height: `${height}px` }}>
            <div class="heads">
              {Array.from({ length: layers.value }, (_, l) => (
                <LayerButton key={l} layer={l} of={of} />
              ))}
            </div>
            <Threads look={look} of={of} />
            {look.tokens.map((_, i) => (
              <Row key={`${look.ids.length} ${look.from + i}`} look={look} i={i} of={of} />
            ))}
          </div>
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

function Highlight({ look, of }: { look: Look; of: Geometry }) {
  const top = rowY(of, row.value - look.from);
  return <div class="rw on" style={{ top: `${top}px`, height: `${of.row}px` }} />;
}

interface TokenProps {
  row: number;
  i: number;
  text: string;
  id: number;
  of: Geometry;
}

function TokenButton({ row: position, i, text, id, of }: TokenProps) {
  const isChosen = row.value === position;
  const element = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (isChosen) {
      element.current?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    }
  }, [isChosen]);
  return (
    <button
      ref={element}
      class="tokb"
      aria-pressed={isChosen}
      tabIndex={isChosen ? 0 : -1}
      style={{ top: `${rowY(of, i)}px`, height: `${of.row}px`, lineHeight: `${of.row}px` }}
      onClick={() => choose({ row: position })}
    >
      <span class="i">{position + 1}</span>
      <span class="w">{shown(text)}</span>
      {of.merge > 0 && text.length <= 7 && <span class="id">{id}</span>}
    </button>
  );
}

function LayerButton({ layer: l, of }: { layer: number; of: Geometry }) {
  const isChosen = layer.value === l;
  return (
    <button
      class="lay"
      aria-pressed={isChosen}
      tabIndex={isChosen ? 0 : -1}
      style={{ left: `${layerX(of, l)}px`, width: `${of.gutter + of.cell - 6}px` }}
      onClick={() => choose({ layer: l })}
    >
      Layer {l + 1}
    </button>
  );
}

/** A row of the weft: how the token came together, its numbers, and the model's guess after each layer. */
function Row({ look, i, of }: { look: Look; i: number; of: Geometry }) {
  const token = look.tokens[i];
  const top = rowY(of, i);
  const position = look.from + i;
  const parts = token?.merges.at(-2)?.parts ?? token?.merges.at(-1)?.parts ?? [token?.text ?? ''];
  return (
    <>
      {of.merge > 0 && (
        <span
          class={`mrg${parts.join('').length > 9 ? ' clip' : ''}`}
          style={{ top: `${top}px`, height: `${of.row}px`, width: `${of.merge}px` }}
        >
          {parts.map((part, k) => (
            <span key={k}>
              {k > 0 && '+'}
              <u>{spaced(part)}</u>
            </span>
          ))}
        </span>
      )}
      {of.numbers > 0 && look.embedding.wte.length > 0 && <Numbers look={look} i={i} of={of} top={top} />}
      {look.lens.slice(1).map((state, l) => {
        const [id, probability] = state[i]?.[0] ?? [0, 0];
        const text = label(id);
        return (
          <button
            key={l}
            class={`cell${text.length > 7 ? ' long' : ''}${text.length > 8 ? ' clip' : ''}`}
            tabIndex={-1}
            style={{
              '--p': String(probability),
              left: `${layerX(of, l) + of.gutter}px`,
              width: `${of.cell - 4}px`,
              top: `${top + 2}px`,
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
          </button>
        );
      })}
    </>
  );
}

interface NumbersProps {
  look: Look;
  i: number;
  of: Geometry;
  top: number;
}

function Numbers({ look, i, of, top }: NumbersProps) {
  const width = of.numbers - 16;
  const draw = (canvas: HTMLCanvasElement): void => {
    canvas.style.left = `${of.merge}px`;
    canvas.style.top = `${top + 4}px`;
    const sum = sumOf(look, i);
    drawBars(canvas, grouped(sum, width), limitOf(sum));
  };
  return <Canvas class="numbers" width={2 * width} height={52} of={[look, i, top]} draw={draw} />;
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
  const draw = (canvas: HTMLCanvasElement): void => {
    canvas.style.width = `${width}px`;
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
      <svg class="threads" width={width} height={height} aria-hidden="true">
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
