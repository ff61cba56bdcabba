import { useEffect } from 'preact/hooks';
import { quietly } from '../api/client';
import { count, percent } from '../lib/format';
import { settings, type Name } from '../lib/settings';
import { label } from '../lib/vocabulary';
import type { Draw } from '../sampler/sampler';
import { phone } from '../shell/phone';
import { SettingRow } from '../write/Settings';
import { Copies } from './Detail';
import type { Look } from './inspection';
import { busy, choose, drawn, learnCandidates, sampled, step } from './state';

const SHOWN: readonly Name[] = ['temperature', 'topP', 'topK', 'minP', 'typicalP', 'repetitionPenalty'];
/** A token is named in the strip from this share on. */
const NAMED = 0.11;

/** The next token: what the settings leave of the model's distribution, and what the random number picks. */
export function SamplingPanel({ look }: { look: Look | null }) {
  const now = drawn.value;
  useEffect(() => quietly(learnCandidates()), [now]);
  return (
    <aside class="draw" aria-label="The next token">
      <div class="hd h">6 Sampling</div>
      <h2>One token is sampled</h2>
      {now && look ? (
        <>
          <p class="note">Outline: the model’s probability. Solid: after your settings.</p>
          <Candidates now={now} />
          <Strip now={now} />
        </>
      ) : (
        <p class="note">
          {busy.value
            ? 'The model is reading the text …'
            : look
              ? 'The next token follows the last one: show the last tokens.'
              : 'Write a text to look into.'}
        </p>
      )}
      <div class="sets">
        {SHOWN.map((name) => (
          <SettingRow key={name} name={name} explained={false} />
        ))}
      </div>
      {look && (
        <div class="cp">
          <button class="btn sm" onClick={stepByStep}>
            Step by step
          </button>
          <Copies look={look} stage="sampling" short />
        </div>
      )}
    </aside>
  );
}

/** Shows how many tokens each setting leaves, which on a phone is further up. */
function stepByStep(): void {
  choose({ stage: 'sampling' });
  if (phone.peek()) {
    const detail = document.getElementById('stage');
    detail?.scrollIntoView({ block: 'start' });
    detail?.focus({ preventScroll: true });
  }
}

function Candidates({ now }: { now: Draw }) {
  const shown = now.order.slice(0, phone.value ? 8 : 9);
  const of = (id: number): [number, number] => [now.left.get(id) ?? 0, now.model[id] ?? 0];
  const most = Math.max(...shown.flatMap(of));
  const cut = shown.findIndex((id) => now.removedBy(id) !== undefined);
  const removed = now.model.length - now.left.size;
  const greedy = now.u === undefined;
  return (
    <>
      {shown.map((id, i) => {
        const [after, model] = of(id);
        const isCut = now.removedBy(id) !== undefined;
        return (
          <div key={id}>
            {i === cut && (
              <div class="cutline">
                {now.removedBy(id)} cuts here, {count(removed)} {removed === 1 ? 'token goes' : 'tokens go'}
              </div>
            )}
            <div class={`cand${isCut ? ' cut' : ''}`}>
              <span class="w">{label(id)}</span>
              <span class="g">
                {after > 0 && <i style={{ '--v': `${(100 * after) / most}%` }} />}
                <s style={{ '--m': `${(100 * model) / most}%` }} />
              </span>
              <span class="v">{percent(after > 0 ? after : model)}</span>
            </div>
          </div>
        );
      })}
      {cut < 0 && (
        <div class="cutline">
          {greedy
            ? 'temperature 0: the highest score wins'
            : `${count(Math.max(0, now.left.size - shown.length))} more tokens are kept`}
        </div>
      )}
    </>
  );
}

/** The probabilities side by side in order of id, with the random number as a needle: that is the sampler. */
function Strip({ now }: { now: Draw }) {
  const ids = [...now.left.keys()];
  let begin = 0;
  const segments = ids.map((id) => {
    const share = now.left.get(id) ?? 0;
    const segment = { id, begin, share };
    begin += share;
    return segment;
  });
  return (
    <div class="dice">
      <span class="note">
        {now.u === undefined ? (
          'The highest score wins: there is no random number.'
        ) : (
          <>
            Random number <b>{now.u.toFixed(4)}</b> · seed {settings.value.seed}, token {sampled.value + 1}
          </>
        )}
      </span>
      <div class="g" role="img" aria-label={`${label(now.token)} is sampled`}>
        {segments
          // Those too thin to be seen are left out.
          .filter(({ id, share }) => share > 0.001 || id === now.token)
          .map(({ id, begin: left, share }) => (
            <span
              key={id}
              class={`${id === now.token ? 'hit' : ''}${share > NAMED ? ' named' : ''}`}
              style={{ left: `${(100 * left).toFixed(2)}%`, width: `${(100 * share).toFixed(2)}%` }}
            >
              {share > NAMED ? label(id) : ''}
            </span>
          ))}
        {now.u !== undefined && <i style={{ '--u': `${100 * now.u}%` }} />}
      </div>
      {now.u !== undefined && (
        <p class="note">
          Each token left has a part as wide as its probability; the random number points at one.
        </p>
      )}
      <button class="btn pri take" onClick={step}>
        Add “{label(now.token)}” and go on
      </button>
    </div>
  );
}
