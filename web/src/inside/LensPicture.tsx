import { percent, shown } from '../lib/format';
import { label } from '../lib/vocabulary';
import { phone } from '../shell/phone';
import type { Look, Scored } from './inspection';
import { LensReading } from './Reading';
import { row } from './state';

/** Lines in one picture. */
const MOST_LINES = 7;
/** Sizes of the drawing. */
const LEFT = 44;
/** Room for the names at the right. */
const NAMES = 132;
const BOTTOM = 212;
const HEIGHT = 196;

interface Line {
  id: number;
  /** After each state. */
  probabilities: number[];
  /** Whether it is one of the final three. */
  isFinal: boolean;
  wins: boolean;
}

/** Returns a line for every token that was top in any layer, and the final top three. */
function linesOf(states: Scored[][]): Line[] {
  const last =
    states
      .at(-1)
      ?.slice(0, 3)
      .map(([id]) => id) ?? [];
  const ids = new Set([...last.slice(0, 1), ...states.flatMap((top) => top.slice(0, 1).map(([id]) => id)), ...last]);
  return [...ids].slice(0, MOST_LINES).map((id) => ({
    id,
    probabilities: states.map((top) => top.find(([each]) => each === id)?.[1] ?? 0),
    isFinal: last.includes(id),
    wins: last[0] === id,
  }));
}

const y = (probability: number): number => BOTTOM - HEIGHT * probability;

/** What could follow the token, read off after each layer. */
export function LensPicture({ look }: { look: Look }) {
  const i = row.value - look.from;
  const states = look.lens.map((state) => state[i] ?? []);
  const width = phone.value ? 358 : 740;
  const right = width - NAMES;
  const x = (state: number): number => LEFT + ((right - LEFT) * state) / Math.max(1, states.length - 1);
  const lines = linesOf(states);
  return (
    <>
      <div class="cap">
        <span>
          What could follow <b class="tokn">{shown(look.tokens[i]?.text ?? '')}</b>, read off after each layer
        </span>
      </div>
      <svg class="lensline" viewBox={`0 -12 ${width} 258`} aria-hidden="true">
        {[0, 0.25, 0.5, 0.75, 1].map((p) => (
          <g key={p}>
            <path class="rule" d={`M${LEFT} ${y(p)}H${right}`} />
            <text class="tick" x={36} y={y(p) + 4} text-anchor="end">
              {100 * p}%
            </text>
          </g>
        ))}
        {states.map((_, state) => (
          <text key={state} class="tick" x={x(state)} y={234} text-anchor="middle">
            {state === 0 ? 'input' : states.length <= 9 && !phone.value ? `layer ${state}` : state}
          </text>
        ))}
        {lines.map(({ id, probabilities, isFinal, wins }) => (
          <path
            key={id}
            class={`line${wins ? ' wins' : ''}${isFinal ? '' : ' left'}`}
            d={probabilities.map((p, state) => `${state ? 'L' : 'M'}${x(state)} ${y(p).toFixed(1)}`).join('')}
          />
        ))}
        <Labels lines={lines} x={x} right={right + 10} />
      </svg>
      <LensReading tops={states.flatMap((top) => top.slice(0, 1))} />
      <p class="note">
        Only the last layer was trained to answer. The others’ guesses are read in the same way, without correction.
      </p>
    </>
  );
}

/** Names of the lines: the final three at the right, one below the other, and the others at their peaks. */
function Labels({ lines, x, right }: { lines: Line[]; x: (state: number) => number; right: number }) {
  const finals = lines.filter(({ isFinal }) => isFinal).map((line) => ({ line, p: line.probabilities.at(-1) ?? 0 }));
  finals.sort((a, b) => b.p - a.p);
  let lowest = -Infinity;
  // The lowest first: one that peaks in the same place is named above it.
  const others = lines.filter(({ isFinal }) => !isFinal);
  others.sort((a, b) => Math.max(...a.probabilities) - Math.max(...b.probabilities));
  const taken = new Map<number, number>();
  return (
    <>
      {finals.map(({ line, p }) => {
        lowest = Math.max(y(p) + 5, lowest + 19);
        return (
          <text key={line.id} class={`word${line.wins ? ' wins' : ''}`} x={right} y={lowest}>
            {label(line.id)} <tspan class="p">{percent(p)}</tspan>
          </text>
        );
      })}
      {others.map(({ id, probabilities }) => {
        const peak = probabilities.indexOf(Math.max(...probabilities));
        const lower = Math.min(y(probabilities[peak] ?? 0) - 7, (taken.get(peak) ?? Infinity) - 19);
        taken.set(peak, lower);
        return (
          <text key={id} class="word" x={x(peak) + (peak ? 0 : 8)} y={lower} text-anchor={peak ? 'middle' : 'start'}>
            {label(id)}
          </text>
        );
      })}
    </>
  );
}
