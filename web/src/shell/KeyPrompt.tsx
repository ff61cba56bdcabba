import { useState } from 'preact/hooks';
import { keyState, setKey } from '../api/client';
import { connect, needsKey } from './connection';
import { Dialog } from './Dialog';

/** Asks for an API key and keeps it for this tab. */
export function KeyPrompt() {
  const [key, edit] = useState('');
  if (!needsKey.value) {
    return null;
  }
  const use = (event: Event): void => {
    event.preventDefault();
    const typed = key.trim();
    // Nothing else can be in a header: the browser would not even ask.
    if (/^[\x21-\x7e]+$/.test(typed)) {
      setKey(typed);
      void connect();
    } else {
      keyState.value = 'refused';
    }
  };
  return (
    <Dialog title="This server needs an API key">
      <form class="key" onSubmit={use}>
        <p class="note">The key stays in this tab and is forgotten when the tab is closed.</p>
        <label for="key" class="h">
          API key
        </label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          autofocus
          required
          value={key}
          onInput={(event) => edit(event.currentTarget.value)}
          {...(keyState.value === 'refused' ? { 'aria-describedby': 'key-refused', 'aria-invalid': true } : {})}
        />
        {keyState.value === 'refused' && (
          <p class="err" id="key-refused" role="alert">
            This key was not accepted. Check it, or ask the server’s administrator.
          </p>
        )}
        <button class="btn pri">Use key</button>
      </form>
    </Dialog>
  );
}
