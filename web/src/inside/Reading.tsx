import type { ComponentChildren } from 'preact';
import { Fragment } from 'preact';
import { count, percent } from '../lib/format';
import { label } from '../lib/vocabulary';

/** A picture read aloud: what its numbers say of this text, in a sentence. */
export function Reading({ children }: { children: ComponentChildren }) {
  return <p class="reading">{children}</p>;
}

/** A token as sentences have it. */
export function Word({ id }: { id: number }) {
  return (
    <>
      “<bdi class="tokn">{label(id)}</bdi>”
    </>
  );
}

/** Parts of a sentence, with commas and an `and`. */
export function Listed({ of }: { of: ComponentChildren[] }) {
  return (
    <>
      {of.map((part, i) => (
        <Fragment key={i}>
          {i === 0 ? '' : i === of.length - 1 ? ' and ' : ', '}
          {part}
        </Fragment>
      ))}
    </>
  );
}

/** Shares below this are not told. */
const LITTLE = 0.05;

interface AttentionProps {
  ids: readonly number[];
  weights: Float32Array;
  row: number;
  layer: number;
  head: number | null;
}

/** What a token takes from which others. */
export function AttentionReading({ ids, weights, row, layer, head }: AttentionProps) {
  const id = ids[row] ?? 0;
  if (row === 0) {
    return <Reading>The first token has nothing before it: it can look only at itself.</Reading>;
  }
  const most = [...weights.entries()]
    .filter(([, weight]) => weight >= LITTLE)
    .sort((a, b) => b[1] - a[1])
    .slice(0, 3);
  const parts = most.map(([other, weight], i) => (
    <>
      {percent(weight)} {i === 0 && 'comes '}from {other === row ? 'itself' : <Word id={ids[other] ?? 0} />}
    </>
  ));
  const rests = most[0]?.[0] === 0 && most[0][1] > 0.5;
  return (
    <Reading>
      Of all that <Word id={id} /> takes over in layer {layer + 1}
      {head === null ? '' : `, head ${head + 1}`},{' '}
      {parts.length > 0 ? <Listed of={parts} /> : `no token gives more than ${percent(LITTLE)}`}.
      {rests && ' Most comes from the first token: that is a rest, there was nothing it looked for.'}
    </Reading>
  );
}

/** How the guess changed from layer to layer; `tops` is the likeliest token after each, the embedding's first. */
export function LensReading({ tops }: { tops: readonly (readonly [number, number])[] }) {
  const first = tops[1];
  const last = tops.at(-1);
  if (!first || !last) {
    return null;
  }
  let since = tops.length - 1;
  while (since > 1 && tops[since - 1]?.[0] === last[0]) {
    since--;
  }
  const end = (
    <>
      <Word id={last[0]} />, at the end with {percent(last[1])}
    </>
  );
  return (
    <Reading>
      {since === 1 ? (
        <>After layer 1 already its guess is {end}.</>
      ) : (
        <>
          After layer 1 its guess is <Word id={first[0]} /> with {percent(first[1])}; from layer {since} on it is {end}.
        </>
      )}
    </Reading>
  );
}

/** Which tokens are used like this one. */
export function EmbedReading({ id, nearest }: { id: number; nearest: readonly (readonly [number, number])[] }) {
  const parts = nearest.slice(0, 3).map(([other]) => <Word key={other} id={other} />);
  return parts.length > 0 ? (
    <Reading>
      The numbers of <Word id={id} /> are most like those of <Listed of={parts} />: the model has learned from its texts
      that they are used in similar ways.
    </Reading>
  ) : null;
}

/** What the strongest neuron does. */
export function NeuronReading({ neuron, promotes }: { neuron: number; promotes: readonly number[] }) {
  const parts = promotes.slice(0, 3).map((id) => <Word key={id} id={id} />);
  return (
    <Reading>
      Strongest here is neuron {neuron}: it makes <Listed of={parts} /> more likely.
    </Reading>
  );
}

/** How a token was drawn. */
export function SamplingReading({ all, left, token, random }: SamplingProps) {
  return (
    <Reading>
      Of {count(all)} tokens, {left === 1 ? 'one is' : `${count(left)} are`} left
      {random ? ', and the random number points at ' : ', the one with the highest score: '}
      <Word id={token} />.
    </Reading>
  );
}

interface SamplingProps {
  all: number;
  left: number;
  token: number;
  random: boolean;
}
