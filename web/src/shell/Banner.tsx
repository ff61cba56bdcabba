import { useEffect } from 'preact/hooks';
import { allTokens, phase, proceed, session } from '../write/story';
import { link, nextTry, settled, tryNow } from './connection';
import { forgotten } from './restart';

/** Tells that the server went away, came back, or came back without the session. */
export function Banner() {
  const state = link.value;
  const cut = phase.value === 'cut';
  useEffect(() => {
    // Nothing was interrupted: nothing needs to be said.
    if (state === 'back' && !cut && !forgotten.value) {
      settled();
    }
  }, [state, cut, forgotten.value]);
  if (state === 'lost') {
    return (
      <div class="banner lost" role="alert">
        <span>
          <b>The server stopped answering.</b> {allTokens().length > 0 && 'The text up to here is kept. '}
          <span aria-hidden="true">{nextTry.value > 0 ? `Next try in ${nextTry.value} s.` : 'Trying now.'}</span>
        </span>
        <span class="sp" />
        <button class="btn sm" onClick={tryNow}>
          Try now
        </button>
      </div>
    );
  }
  if (forgotten.value && session.value !== null) {
    return (
      <div class="banner" role="alert">
        <span>
          The server restarted and no longer has this session. The text is still here; Continue sends it again.
        </span>
        <span class="sp" />
        {cut ? <GoOn /> : <Close />}
      </div>
    );
  }
  if (state === 'back' && cut) {
    return (
      <div class="banner" role="alert">
        <span>The server is back.</span>
        <span class="sp" />
        <GoOn />
      </div>
    );
  }
  return null;
}

function GoOn() {
  return (
    <button class="btn sm" onClick={() => void proceed()}>
      Go on from here
    </button>
  );
}

function Close() {
  const close = (): void => {
    forgotten.value = false;
    settled();
  };
  return (
    <button class="btn sm" onClick={close}>
      Close
    </button>
  );
}
