import { useId } from 'preact/hooks';
import { isTeller } from '../shell/connection';
import { change, changed, reset, settingOf, settings, type Name } from '../lib/settings';

interface Props {
  name: Name;
  /** Whether its sentence is shown. */
  explained: boolean;
}

/** One setting: label, value, slider, and a sentence. */
export function SettingRow({ name, explained }: Props) {
  const id = useId();
  const { label, min, max, step, sentence, shown } = settingOf(name);
  const value = settings.value[name];
  const text = shown(value);
  const share = (100 * (Math.min(max, Math.max(min, value)) - min)) / (max - min);
  return (
    <div class="set">
      <label for={id}>{label}</label>
      <output class={text === 'off' ? 'off' : ''} for={id}>
        {text}
      </output>
      <input
        type="range"
        id={id}
        min={min}
        max={max}
        step={step}
        value={value}
        aria-valuetext={text}
        style={{ '--f': `${share}%` }}
        onInput={(event) => change({ [name]: Number(event.currentTarget.value) })}
        {...(explained ? { 'aria-describedby': `${id}-why` } : {})}
      />
      {explained && (
        <p class="note" id={`${id}-why`}>
          {isTeller.value ? sentence : sentence.replace('tale', 'text')}
        </p>
      )}
    </div>
  );
}

const FIRST: readonly Name[] = ['temperature', 'topP', 'length'];
const MORE: readonly Name[] = ['topK', 'minP', 'typicalP', 'repetitionPenalty'];

export function Settings() {
  return (
    <section>
      <div class="hd">
        <h2 class="h">Settings</h2>
        {changed.value && (
          <button class="a note" onClick={reset}>
            Reset
          </button>
        )}
      </div>
      {FIRST.map((name) => (
        <SettingRow key={name} name={name} explained />
      ))}
      <details class="more">
        <summary>More settings</summary>
        {MORE.map((name) => (
          <SettingRow key={name} name={name} explained />
        ))}
      </details>
    </section>
  );
}
