import { count, shown } from '../lib/format';
import { label } from '../lib/vocabulary';
import { info } from '../shell/connection';
import type { Look } from './inspection';
import { NeuronReading } from './Reading';
import { innerOf } from './stages';
import { layer, more, row } from './state';

/** The neurons that write most at the token, and what they push towards. */
export function FeedForwardPicture({ look }: { look: Look }) {
  void more.value;
  const model = info.value?.model;
  const neurons = look.neurons.get(layer.value);
  const top = neurons?.top.get(row.value) ?? [];
  const most = Math.max(...top.map(({ write }) => write));
  return (
    <>
      <div class="cap">
        <span>
          <b class="strong">Layer {layer.value + 1}</b>, strongest neurons at{' '}
          <b class="tokn">{shown(look.tokens[row.value - look.from]?.text ?? '')}</b>
        </span>
        {neurons && model && (
          <span>
            {count(neurons.active.get(row.value) ?? 0)} of {count(innerOf(model))} are active
          </span>
        )}
      </div>
      {top.map(({ neuron, activation, write, promotes }) => (
        <div key={neuron} class={`nrn${activation < 0 ? ' neg' : ''}`}>
          <span>{neuron}</span>
          <span class="g">
            <i style={{ '--v': `${(100 * write) / most}%` }} />
          </span>
          <span class="num">{activation.toFixed(2)}</span>
          <span class="up">
            {promotes.map((id, i) => (
              <span key={id}>
                {i > 0 && <i>·</i>}
                {label(id)}
              </span>
            ))}
          </span>
        </div>
      ))}
      {top[0] && <NeuronReading {...top[0]} />}
      <p class="note">Solid: the neuron fires. Hollow: it is held below zero. Right: the tokens it pushes towards.</p>
    </>
  );
}
