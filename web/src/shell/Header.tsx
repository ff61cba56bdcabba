import { inShort } from '../lib/format';
import { phase } from '../write/story';
import { info, link, needsKey } from './connection';
import { Mark } from './Mark';
import { view, VIEWS } from './route';
import { switchTheme, theme } from './theme';

function Status() {
  const [kind, text] = needsKey.value
    ? ['off', 'needs a key']
    : link.value === 'lost'
      ? ['off', 'no answer']
      : link.value === 'loading'
        ? ['busy', 'loading the model']
        : link.value === 'connecting'
          ? ['busy', 'connecting']
          : phase.value === 'streaming'
            ? ['busy', 'generating']
            : ['', 'ready'];
  return (
    <span class={`live ${kind}`}>
      <i />
      <span>{text}</span>
    </span>
  );
}

/** Links to the views: in the header, and at the bottom of a phone. */
export function Views({ class: name }: { class: string }) {
  return (
    <nav class={name} aria-label="Views">
      {VIEWS.map(({ id, name: title }) => (
        <a key={id} href={`#${id}`} {...(view.value === id ? { 'aria-current': 'page' as const } : {})}>
          {title}
        </a>
      ))}
    </nav>
  );
}

export function Header() {
  const model = info.value?.model;
  const other = theme.value === 'dark' ? 'light' : 'dark';
  return (
    <header class="top">
      <Mark />
      <Views class="tabs" />
      <span class="sp" />
      <span class="model">
        {model && (
          <>
            <b>{model.id}</b> {inShort(model.parameters)} parameters · {model.dtype}
          </>
        )}
      </span>
      <Status />
      <button class="icon" aria-label={`Switch to ${other} theme`} title="Theme" onClick={switchTheme}>
        <svg
          width="18"
          height="18"
          viewBox="0 0 18 18"
          fill="none"
          stroke="currentColor"
          stroke-width="1.7"
          aria-hidden="true"
        >
          <circle cx="9" cy="9" r="7" />
          <path d="M9 2a7 7 0 0 1 0 14z" fill="currentColor" />
        </svg>
      </button>
    </header>
  );
}
