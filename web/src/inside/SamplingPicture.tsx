import { count } from '../lib/format';
import { settingOf, settings, type Name } from '../lib/settings';
import { label } from '../lib/vocabulary';
import type { Filter } from '../sampler/sampler';
import type { Look } from './inspection';
import { SamplingReading } from './Reading';
import { drawn } from './state';

const NAMES: Record<Filter, Name> = { 'top-k': 'topK', 'top-p': 'topP', 'min-p': 'minP', 'typical-p': 'typicalP' };

interface Step {
  name: string;
  left: number;
  what: string;
}

function stepsOf(look: Look): Step[] {
  const now = drawn.value;
  if (!now) {
    return [];
  }
  const all = look.logits.length;
  const { temperature } = settings.value;
  return [
    { name: 'The model’s scores', left: all, what: 'tokens' },
    { name: 'Repetition penalty', left: all, what: now.penalized > 0 ? `lowers ${count(now.penalized)}` : 'off' },
    {
      name: `Temperature ${temperature.toFixed(2)}`,
      left: all,
      what: temperature === 0 ? 'the highest score wins' : `${temperature < 1 ? 'sharpens' : 'flattens'}, removes none`,
    },
    ...now.steps.map(({ filter, left }) => {
      const { label: name, shown } = settingOf(NAMES[filter]);
      return { name: `${name} ${shown(settings.value[NAMES[filter]])}`, left, what: 'left' };
    }),
    {
      name: 'Sampled',
      left: 1,
      what: `“${label(now.token)}”${now.u === undefined ? '' : `, random number ${now.u.toFixed(4)}`}`,
    },
  ];
}

/** How many tokens each setting leaves. */
export function SamplingPicture({ look }: { look: Look }) {
  const steps = stepsOf(look);
  const now = drawn.value;
  const scale = Math.log((steps[0]?.left ?? 1) + 1);
  return (
    <>
      <div class="cap">
        <span>How many tokens are left after each setting</span>
      </div>
      <div class="fun">
        {steps.map(({ name, left, what }) => (
          <div key={name} class="line">
            <span>{name}</span>
            <span class="g" style={{ '--v': `${Math.max(0.4, (58 * Math.log(left + 1)) / scale)}%` }}>
              <i />
              <span>
                <b>{count(left)}</b> {what}
              </span>
            </span>
          </div>
        ))}
      </div>
      {now && (
        <SamplingReading
          all={now.model.length}
          left={now.left.size}
          token={now.token}
          random={now.u !== undefined}
        />
      )}
    </>
  );
}
