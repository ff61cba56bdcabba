import { count, shown } from '../lib/format';
import { label } from '../lib/vocabulary';
import { drawBars, grouped, limitOf } from './bars';
import { Canvas } from './Canvas';
import type { Look } from './inspection';
import { sumOf } from './Loom';
import { EmbedReading } from './Reading';
import { row } from './state';

/** Bars in one strip. */
const MOST_BARS = 160;

/** The token's numbers, its position's, and their sum. */
export function EmbedPicture({ look, wide = false }: { look: Look; wide?: boolean }) {
  const i = row.value - look.from;
  const { wte, wpe, width } = look.embedding;
  const part = (of: Float32Array): Float32Array => of.subarray(i * width, (i + 1) * width);
  const strips = [
    { name: 'what it is', numbers: part(wte), norm: look.norms.wte[i] ?? 0 },
    { name: '+ where it stands', numbers: part(wpe), norm: look.norms.wpe[i] ?? 0 },
    { name: '= goes into layer 1', numbers: sumOf(look, i), norm: look.norms.sum[i] ?? 0 },
  ];
  const limit = Math.max(...strips.map(({ numbers }) => limitOf(numbers)));
  return (
    <>
      <div class="cap">
        <span>
          <b class="tokn">{shown(look.tokens[i]?.text ?? '')}</b> at place {count(row.value + 1)}
        </span>
      </div>
      {wte.length > 0 &&
        strips.map(({ name, numbers, norm }) => (
          <div key={name} class="strip">
            <span>{name}</span>
            <Canvas
              width={1000}
              height={96}
              of={[look, i, wide]}
              draw={(canvas) => drawBars(canvas, grouped(numbers, wide ? numbers.length : MOST_BARS), limit)}
            />
            <span class="num">length {norm.toFixed(1)}</span>
          </div>
        ))}
      <div class="cap near">
        <span>Nearest in the table:</span>
        {(look.nearest[i] ?? []).map(([id, cosine]) => (
          <span key={id} class="tokn">
            {label(id)} <span class="note">{cosine.toFixed(2)}</span>
          </span>
        ))}
      </div>
      <EmbedReading id={look.tokens[i]?.id ?? 0} nearest={look.nearest[i] ?? []} />
    </>
  );
}
