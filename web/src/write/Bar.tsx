import { count } from '../lib/format';
import { link } from '../shell/connection';
import { sheet, type Sheet } from '../shell/phone';
import { treeOf } from './branches';
import { begin, draft, phase, proceed, refusal, retry, session, speed, stop } from './story';

function Main() {
  if (phase.value === 'streaming') {
    return (
      <button class="btn pri" onClick={stop}>
        Stop <kbd>Esc</kbd>
      </button>
    );
  }
  const [name, act] =
    phase.value === 'empty'
      ? (['Begin', () => void begin(draft.peek())] as const)
      : ([phase.value === 'cut' ? 'Go on from here' : 'Continue', () => void proceed()] as const);
  const waits = phase.value === 'loading' || link.value === 'lost' || link.value === 'loading';
  return (
    <button class="btn pri" disabled={waits} onClick={act}>
      {name} <kbd>Ctrl ↵</kbd>
    </button>
  );
}

function Speed() {
  if (link.value === 'lost') {
    return <>Waiting for the server</>;
  }
  if (refusal.value) {
    return <span class="refusal">{refusal.value}</span>;
  }
  const now = speed.value;
  return now ? (
    <>
      <b>{count(Math.round(now.rate))}</b> tokens a second · first after <b>{Math.round(now.first)} ms</b>
    </>
  ) : null;
}

/** What can be done with the text, and how fast it comes. */
export function Bar() {
  const opens = (which: Sheet, name: string) => (
    <button class="btn only-phone" aria-haspopup="dialog" onClick={() => (sheet.value = which)}>
      {name}
    </button>
  );
  const canRetry = phase.value === 'done' && treeOf(session.value) !== undefined && link.value !== 'lost';
  return (
    <div class="bar">
      <Main />
      {canRetry && (
        <button class="btn again" onClick={() => void retry()}>
          Retry with new seed
        </button>
      )}
      {opens('settings', 'Settings')}
      {phase.value !== 'empty' && opens('branches', 'Branches')}
      <span class="speed">
        <Speed />
      </span>
    </div>
  );
}
