import { signal } from '@preact/signals';
import { count, inWords } from '../lib/format';
import { copy } from '../lib/say';
import { settings } from '../lib/settings';
import { hasKey } from '../api/client';
import { info } from '../shell/connection';
import { lastPrompt } from '../write/story';
import { LANGUAGES, program, type Language } from './code';

const language = signal<Language>('curl');

const ISA: Partial<Record<string, string>> = { avx512: 'AVX-512', avx2: 'AVX2', neon: 'NEON', portable: 'portable' };
const ARCHITECTURE: Partial<Record<string, string>> = { gpt2: 'GPT-2' };
const PROMPT = 'Once upon a time there was a king who had three';

/** The model, programs that ask for the same as the page, and where to read on. */
export function Facts() {
  return (
    <aside class="facts" aria-label="Model and code">
      <Model />
      <Programs />
      <div class="srow links">
        <a class="a" href="/docs">
          API reference
        </a>
        <a class="a" href="/metrics">
          Raw metrics
        </a>
      </div>
    </aside>
  );
}

function Model() {
  const now = info.value;
  if (!now) {
    return null;
  }
  const { model } = now;
  const kernels = model.device === 'cpu' ? (model.fingerprint.split('-').at(-1) ?? '') : model.device;
  const rows: [string, string][] = [
    ['Name', model.id],
    [
      'Architecture',
      `${ARCHITECTURE[model.architecture] ?? model.architecture}, ${model.n_layer} layers, ${model.n_head} heads, width ${model.n_embd}`,
    ],
    ['Parameters', `${inWords(model.parameters, 1)}, ${model.dtype}`],
    ['Context', `${count(model.n_positions)} tokens`],
    ['Vocabulary', `${count(model.vocab_size)} tokens`],
    ['Kernels', ISA[kernels] ?? kernels],
    ['Version', now.version],
  ];
  return (
    <>
      <h2 class="h">Model</h2>
      <dl>
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </>
  );
}

function Programs() {
  const model = info.value?.model.id ?? '';
  const request = { model, prompt: lastPrompt() || PROMPT, settings: settings.value, needsKey: hasKey() };
  const code = program(language.value, request);
  return (
    <>
      <div class="srow">
        <h2 class="h">Use it from a program</h2>
        <span class="seg" role="group" aria-label="Language">
          {LANGUAGES.map(({ id, name }) => (
            <button key={id} aria-pressed={language.value === id} onClick={() => (language.value = id)}>
              {name}
            </button>
          ))}
        </span>
      </div>
      <pre tabIndex={0} aria-label="Program">
        {code}
      </pre>
      <div class="srow">
        <span class="note">With the settings from Write.</span>
        <button class="btn sm" onClick={() => void copy(code)}>
          Copy
        </button>
      </div>
    </>
  );
}
