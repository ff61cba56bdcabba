/** The browser's back button closes what lies over the page, before it leaves the view. */

import { effect } from '@preact/signals';

interface State {
  over?: string;
}

function isMarked(state: unknown, name: string): boolean {
  return (state as State | null)?.over === name;
}

/** Makes an entry of the history of each time that something is open. */
export function closesOnBack(name: string, isOpen: () => boolean, close: () => void): void {
  effect(() => {
    const open = isOpen();
    if (open && !isMarked(history.state, name)) {
      history.pushState({ over: name } satisfies State, '');
    } else if (!open && isMarked(history.state, name)) {
      history.back();
    }
  });
  addEventListener('popstate', ({ state }) => {
    if (!isMarked(state, name)) {
      close();
    }
  });
}
