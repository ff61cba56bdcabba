import { useEffect } from 'preact/hooks';
import { count, counted } from '../lib/format';
import { info, link } from '../shell/connection';
import { isField } from '../shell/keyboard';
import { phone, sheet } from '../shell/phone';
import { Alternatives } from './Alternatives';
import { Bar } from './Bar';
import { refreshSessions, treeOf } from './branches';
import { BranchTree } from './BranchTree';
import { Chat } from './Chat';
import { chatting } from './chat';
import { FirstRun } from './FirstRun';
import { Manuscript } from './Manuscript';
import { SeedShare } from './SeedShare';
import { selection, unselect } from './selection';
import { SessionList } from './SessionList';
import { SessionsButton } from './SessionsButton';
import { Settings } from './Settings';
import { SidePanel } from './SidePanel';
import { begin, draft, length, phase, proceed, resume, session, stop } from './story';
import { mode, MODES } from './surprise';

/** Keys of this view. */
function key(event: KeyboardEvent): void {
  if (event.key === 'Escape') {
    if (selection.peek()) {
      unselect();
    } else if (sheet.peek()) {
      sheet.value = null;
    } else {
      stop();
    }
  } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !chatting.peek()) {
    const writesElsewhere = isField(event.target) && !(event.target instanceof HTMLTextAreaElement);
    if (!writesElsewhere && phase.peek() !== 'streaming') {
      event.preventDefault();
      void (phase.peek() === 'empty' ? begin(draft.peek()) : proceed());
    }
  }
}

/** The view in which text is written. */
export function Write() {
  useEffect(() => {
    addEventListener('keydown', key);
    return () => removeEventListener('keydown', key);
  }, []);
  const connected = link.value === 'ready' || link.value === 'back';
  useEffect(() => {
    if (connected) {
      void refreshSessions();
      void resume();
    }
  }, [connected]);
  const isEmpty = phase.value === 'empty';
  return (
    <section class="view write" aria-label="Write">
      <h1 class="vh">Write</h1>
      <SidePanel class="rail" name="Sessions" as="sessions">
        <SessionList />
      </SidePanel>
      <div class="desk">
        {chatting.value ? (
          <Chat />
        ) : (
          <>
            <DeskHead />
            {isEmpty ? <FirstRun /> : <Manuscript />}
            <Bar />
          </>
        )}
      </div>
      <aside class="side" aria-label="Branches and settings">
        {!isEmpty && !chatting.value && (
          <SidePanel name="Branches" as="branches">
            <Branches />
          </SidePanel>
        )}
        <SidePanel name="Settings" as="settings">
          <Settings />
          <SeedShare />
        </SidePanel>
      </aside>
      {!phone.value || !sheet.value ? <Alternatives /> : null}
    </section>
  );
}

function Branches() {
  const tree = treeOf(session.value);
  return (
    <section>
      <div class="hd">
        <h2 class="h">Branches</h2>
        {tree && <span class="note">{counted(tree.branches.length, 'branch', 'branches')}</span>}
      </div>
      <BranchTree />
      <p class="note why">
        Choose a token, a word or a piece of one, to see what else could stand there. Choose another, and the text goes on
        from it as a branch.
      </p>
    </section>
  );
}

function DeskHead() {
  const context = info.value?.model.n_positions ?? 0;
  const isEmpty = phase.value === 'empty';
  const used = context > 0 ? Math.min(100, (100 * length.value) / context) : 0;
  return (
    <div class="deskhead">
      <span class="name">{session.value ?? 'New text'}</span>
      <span class="window">
        <i style={{ '--v': `${used}%` }} />
        <span>
          {context > 0 ? `${count(length.value)} of ${count(context)} tokens` : ''}
        </span>
      </span>
      <span class="sp" />
      {!isEmpty && (
        <>
          {mode.value !== 'plain' && <Legend />}
          <span class="seg" role="group" aria-label="Show surprise as">
            {MODES.map(({ id, name }) => (
              <button key={id} aria-pressed={mode.value === id} onClick={() => (mode.value = id)}>
                {name}
              </button>
            ))}
          </span>
        </>
      )}
      <SessionsButton />
    </div>
  );
}

function Legend() {
  return (
    <span class="legend" title="How likely the model found each token: the thicker the line, the less it expected it.">
      <span>expected</span>
      <svg width="86" height="12" aria-hidden="true">
        <defs>
          <linearGradient id="surprise">
            <stop offset="0" class="rest" />
            <stop offset="1" class="most" />
          </linearGradient>
        </defs>
        <path d="M0 6.6L86 1v10L0 7.8z" fill="url(#surprise)" />
      </svg>
      <span>surprising</span>
    </span>
  );
}
