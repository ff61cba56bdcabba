import { percent, shown } from '../lib/format';
import { tokenText } from '../lib/vocabulary';
import { Canvas } from './Canvas';
import { heads } from './geometry';
import { attentionOf, type Look } from './inspection';
import { drawMap } from './map';
import { roleOf } from './roles';
import { AttentionReading } from './Reading';
import { MapGrid } from './MapGrid';
import { choose, head, layer, more, openMap, row } from './state';

/** Tokens of a long text that are shown around the ones that matter. */
const MOST_TOKENS = 96;

/** Where the token looks: the text itself, and a map of each head. */
export function AttentionPicture({ look, wide = false }: { look: Look; wide?: boolean }) {
  void more.value;
  const weights = attentionOf(look, layer.value, head.value, row.value);
  const chosen = look.ids[row.value] ?? 0;
  return (
    <>
      <div class="cap">
        <span>
          <b class="strong">Layer {layer.value + 1}</b>,{' '}
          {head.value === null ? 'all heads together' : `head ${head.value + 1}`}: where{' '}
          <bdi class="tokn">{shown(tokenText(chosen))}</bdi> looks
        </span>
        <HeadButtons />
      </div>
      {weights && <Text look={look} weights={weights} />}
      {weights && (
        <AttentionReading ids={look.ids} weights={weights} row={row.value} layer={layer.value} head={head.value} />
      )}
      {wide && head.value !== null ? (
        <MapGrid key={`${layer.value} ${head.value}`} look={look} layer={layer.value} head={head.value} />
      ) : (
        <>
          <div class="maps">
            {Array.from({ length: heads.value }, (_, each) => (
              <HeadMap key={each} look={look} head={each} />
            ))}
          </div>
          <p class="note">
            A map is the whole text seen by one head: a row for each token and, in it, the tokens before; the darker, the
            more it takes (as the square root, so that little can be seen). <b>rests</b>: on the first token. <b>one back</b>
            : on the token before. <b>roams</b>: here and there.
          </p>
        </>
      )}
    </>
  );
}

function HeadButtons() {
  return (
    <span class="seg" role="group" aria-label="Head">
      <button aria-pressed={head.value === null} onClick={() => choose({ head: null })}>
        All
      </button>
      {Array.from({ length: heads.value }, (_, each) => (
        <button key={each} aria-pressed={head.value === each} onClick={() => choose({ head: each })}>
          {each + 1}
        </button>
      ))}
    </span>
  );
}

function Text({ look, weights }: { look: Look; weights: Float32Array }) {
  const first = Math.max(0, row.value + 1 - MOST_TOKENS);
  const end = Math.min(look.ids.length, Math.max(row.value + 1, look.to));
  return (
    <div class="look" role="img" aria-label={summary(look, weights)}>
      {first > 0 && <span class="fut">… </span>}
      {look.ids.slice(first, end).map((id, k) => {
        const i = first + k;
        const weight = weights[i] ?? 0;
        return (
          <span
            key={i}
            class={i === row.value ? 'q' : i > row.value ? 'fut' : ''}
            style={{ '--a': i <= row.value ? Math.min(0.92, 0.95 * Math.sqrt(weight)).toFixed(3) : '0' }}
            data-v={weight >= 0.005 ? `${Math.round(100 * weight)} %` : ''}
          >
            {tokenText(id).replace(/^ /, '\u00a0').replace(/\n/g, '↵')}
          </span>
        );
      })}
    </div>
  );
}

/** Returns where a row looks most, in words. */
function summary(look: Look, weights: Float32Array): string {
  const most = [...weights.entries()].sort((a, b) => b[1] - a[1]).slice(0, 3);
  return most.map(([i, weight]) => `${shown(tokenText(look.ids[i] ?? 0))} ${percent(weight)}`).join(', ');
}

function HeadMap({ look, head: each }: { look: Look; head: number }) {
  void more.value;
  const rows = look.attention.get(layer.value)?.get(each);
  const weights = rows?.get(row.value);
  const best = weights ? weights.indexOf(Math.max(...weights)) : -1;
  const isWhole = (rows?.size ?? 0) >= look.ids.length;
  const role = roleOf(rows);
  const name = `Head ${each + 1}${role && `, ${role}`}`;
  const isChosen = head.value === each;
  return (
    <div class="mapwrap">
      <button class="map" aria-pressed={isChosen} onClick={() => choose({ head: each })}>
        {isWhole && rows && (
          <span class="square">
            <Canvas
              width={look.ids.length}
              height={look.ids.length}
              of={[look, layer.value, rows.size]}
              draw={(canvas) => drawMap(canvas, rows, look.ids.length)}
            />
            <i
              style={{
                top: `${(100 * row.value) / look.ids.length}%`,
                width: `${(100 * (row.value + 1)) / look.ids.length}%`,
                height: `${100 / look.ids.length}%`,
              }}
            />
          </span>
        )}
        <b>{name}</b>
        {best >= 0 && weights && (
          <>
            most from “<bdi>{shown(tokenText(look.ids[best] ?? 0))}</bdi>”, {percent(weights[best] ?? 0)}
          </>
        )}
      </button>
      {!isWhole && isChosen && (
        <button class="btn sm" onClick={openMap}>
          Draw its map
        </button>
      )}
    </div>
  );
}
