import { counted } from '../lib/format';
import { info } from '../shell/connection';
import { sheet } from '../shell/phone';
import { texts, treeOf, trees } from './branches';
import { newText, open, session } from './story';
import { chatting, hasChat, newChat } from './chat';

/** The texts that the server remembers. */
export function SessionList() {
  const current = treeOf(session.value)?.root.id;
  const keeps = info.value?.features.includes('durable-sessions') ?? false;
  const leave = (then: () => void) => (): void => {
    sheet.value = null;
    then();
  };
  return (
    <>
      <div class="two">
        <button
          class="btn"
          onClick={leave(() => {
            chatting.value = false;
            newText();
          })}
        >
          New text
        </button>
        {hasChat.value && (
          <button class="btn" onClick={leave(newChat)}>
            New chat
          </button>
        )}
      </div>
      <h2 class="h">Sessions</h2>
      <ul>
        {trees.value.map(({ root, branches, tokens }) => (
          <li key={root.id}>
            <button
              class="ses"
              {...(root.id === current ? { 'aria-current': 'true' as const } : {})}
              onClick={leave(() => void open(root.id))}
            >
              <div class="w" dir="auto">{texts.value.get(root.id) ?? root.id}</div>
              <div class="m">
                {branches.some((branch) => branch.busy)
                  ? 'writing …'
                  : `${counted(branches.length, 'branch', 'branches')} · ${counted(tokens, 'token')}`}
              </div>
            </button>
          </li>
        ))}
      </ul>
      <p class="note foot">
        {keeps ? 'Sessions are kept on the server’s disk.' : 'Sessions stay in the server’s memory until it stops.'}
      </p>
    </>
  );
}
