import { useEffect, useRef } from 'preact/hooks';
import { inWords } from '../lib/format';
import { info, isTeller } from '../shell/connection';
import { arrived } from './shared';
import { begin, draft } from './story';

const TALES = [
  'Once upon a time there was a king who had three',
  'In the deep snow a wolf knocked at the door, and',
  '“Who are you?” said the moon to the little tailor.',
];
const TEXTS = [
  'The three most important things about rivers are',
  'Dear neighbour, I am writing because',
  'def fibonacci(n):',
];

/** What a page without a text shows. */
export function FirstRun() {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => field.current?.focus(), []);
  const model = info.value?.model;
  const tells = isTeller.value;
  const examples = tells ? TALES : TEXTS;
  const link = arrived.value;
  const differs = link !== null && link !== 'unreadable' && model && link.fingerprint !== model.fingerprint;
  return (
    <div class="sheet">
      <div class="empty">
        <h2>{tells ? 'How does the tale begin?' : 'Begin a text'}</h2>
        <p class="lead">
          Write a first line and the model goes on from there. It{' '}
          {model && `has ${inWords(model.parameters, 0)} parameters, `}
          {tells && 'was trained on fairy tales, '}and runs on this server. Nothing you write is sent anywhere else.
        </p>
        {link && (
          <p class="lead">
            {link === 'unreadable'
              ? 'This link can’t be read. It may have been cut off when it was copied.'
              : differs
                ? 'This link was made with another model or another version of the server: the result will differ.'
                : 'The text, the settings and the seed are those of the link: Begin gives the same result.'}
          </p>
        )}
        <label class="vh" for="first">
          First line
        </label>
        <textarea
          id="first"
          ref={field}
          dir="auto"
          placeholder={tells ? 'Once upon a time…' : 'The three most important things…'}
          value={draft.value}
          onInput={(event) => (draft.value = event.currentTarget.value)}
        />
        <ul class="examples">
          {examples.map((example) => (
            <li key={example}>
              <button onClick={() => void begin(example)}>
                <span>{example}</span>
                <em>Continue →</em>
              </button>
            </li>
          ))}
        </ul>
      </div>
    </div>
  );
}
