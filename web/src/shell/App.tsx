import { useEffect } from 'preact/hooks';
import { said, toast } from '../lib/say';
import { Inside } from '../inside/Inside';
import { Server } from '../server/Server';
import { Write } from '../write/Write';
import { Banner } from './Banner';
import { Header, Views } from './Header';
import { Help } from './Help';
import { KeyPrompt } from './KeyPrompt';
import { view, VIEWS } from './route';

export function App() {
  const shown = VIEWS.find(({ id }) => id === view.value);
  useEffect(() => {
    document.title = `Skald · ${shown?.name ?? ''}`;
  }, [shown]);
  return (
    <>
      <a class="skip" href="#view" onClick={skip}>
        Skip to content
      </a>
      <Header />
      <main id="view" tabIndex={-1}>
        <Banner />
        {view.value === 'write' && <Write />}
        {view.value === 'inside' && <Inside />}
        {view.value === 'server' && <Server />}
      </main>
      <Views class="tabbar" />
      <KeyPrompt />
      <Help />
      {toast.value && <div class="toast">{toast.value}</div>}
      <div aria-live="polite" class="vh" id="say">
        {said.value}
      </div>
    </>
  );
}

/** The fragment is the view's, so the link can't be followed. */
function skip(event: Event): void {
  event.preventDefault();
  document.getElementById('view')?.focus();
}
